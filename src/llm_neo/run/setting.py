"""What every stage of one run shares: where it computes, where it writes, whom it tells, what it measured."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field

import torch

from llm_neo.interrupts import raise_if_arrived
from llm_neo.meter import StageMeter
from llm_neo.progress import Bar, Progress
from llm_neo.run.directory import RunDirectory
from llm_neo.run.metrics_log import MetricsLine, MetricsLog
from llm_neo.run.trackers import Tracker
from llm_neo.runtime import Precision, release
from llm_neo.train_state import Logged


class CountedProgress:
    """A `Progress` that also adds the tokens which the bars are told of to the stage being measured.

    Attributes:
        meter: of that stage; None between the stages.
    """

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self.meter: StageMeter | None = None

    def stage(self, name: str) -> None:
        """See `Progress`."""
        self._shown.stage(name)

    def say(self, message: str) -> None:
        """See `Progress`."""
        self._shown.say(message)

    @contextmanager
    def bar(self, label: str, total: int | None, unit: str) -> Iterator[Bar]:
        """See `Progress`."""
        with self._shown.bar(label, total, unit) as shown:
            yield _CountedBar(self, shown)


@dataclass(frozen=True)
class _CountedBar:
    progress: CountedProgress
    shown: Bar

    def advance(self, amount: int = 1, **figures: float) -> None:
        """See `Bar`."""
        # A signal's exception is lost where it is raised in a destructor or swallowed by a library.
        raise_if_arrived()
        if self.progress.meter is not None:
            self.progress.meter.tokens += int(figures.get("tokens", 0))
        self.shown.advance(amount, **figures)


@dataclass
class Setting:
    """One run's surroundings.

    Attributes:
        device: where models are.
        precision: dtype of frozen weights and arithmetic, and why.
        progress: whom to tell; it also counts the tokens of a stage.
        run: the run directory.
        metrics: its `metrics.jsonl`.
        trackers: open experiment trackers.
        meters: what each stage took so far, by name.
    """

    device: torch.device
    precision: Precision
    progress: CountedProgress
    run: RunDirectory
    metrics: MetricsLog
    trackers: Sequence[Tracker] = ()
    meters: dict[str, StageMeter] = field(default_factory=dict)

    def meter(self, stage: str) -> StageMeter:
        """What a stage took; all zeros where it was not needed."""
        return self.meters.setdefault(stage, StageMeter(self.device))

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Count seconds, tokens and memory for a stage; inside another one, that one's clock stands still.

        Before a stage that is not inside another, what the one before left behind is given back to the device.
        """
        outer = self.progress.meter
        meter = self.meter(stage)
        if outer is None:
            self.progress.stage(stage)
            release(self.device)
        with nullcontext() if outer is None else outer.paused(), meter:
            self.progress.meter = meter
            try:
                yield
            finally:
                self.progress.meter = outer

    def begin(self, stage: str, logged: Sequence[Logged]) -> None:
        """Make `metrics.jsonl` hold these lines of a stage and no others: the stage goes on from there."""
        self.metrics.replace(stage, [_line(stage, line) for line in logged])

    def log(self, stage: str, logged: Logged) -> None:
        """A line of `metrics.jsonl`, and the same to the trackers."""
        figures = logged.figures
        self.metrics.write(_line(stage, logged))
        named = {"loss": figures.loss, "hard_loss": figures.hard_loss, "soft_loss": figures.soft_loss}
        rates = {"learning_rate": figures.learning_rate, "gradient_norm": figures.gradient_norm}
        self.track(stage, logged.step, named | rates)

    def track(self, stage: str, step: int, figures: dict[str, float]) -> None:
        """Send figures to the trackers under `stage/name`."""
        for tracker in self.trackers:
            tracker.log({f"{stage}/{name}": value for name, value in figures.items()}, step=step)


def _line(stage: str, logged: Logged) -> MetricsLine:
    return MetricsLine(stage=stage, step=logged.step, seconds=logged.seconds, **asdict(logged.figures))
