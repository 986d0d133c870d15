"""How far a training loop is: what it counted, logged and evaluated so far."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llm_neo.engine import StepFigures

_SUMMED = ("loss", "hard_loss", "soft_loss", "gradient_norm", "learning_rate", "tokens")


@dataclass(frozen=True)
class Logged:
    """The mean of the steps since the line before.

    Attributes:
        step: the last of them, counted from 1.
        figures: their mean; tokens are their sum.
        seconds: since the run began, interruptions not counted.
    """

    step: int
    figures: StepFigures
    seconds: float


@dataclass
class TrainingState:
    """What the loop counts while it runs.

    Attributes:
        step: optimizer steps done.
        tokens: tokens trained on.
        seconds: training time, interruptions not counted.
        window: sums of the steps' figures since the last log line.
        window_steps: how many those are.
        loss_sum: of the training loss since the last evaluation.
        loss_steps: how many steps that is.
        evaluations: what the evaluations so far returned.
        evaluated_step: the last evaluation came after this step; 0 = there was none.
        logged: what was logged so far, so that the log can be made what it was.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    window: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_SUMMED, 0.0))
    window_steps: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    evaluated_step: int = 0
    logged: list[Logged] = field(default_factory=list)

    def add(self, steps: Sequence[StepFigures], seconds: float) -> None:
        """Count some steps, the last of which ended `seconds` after the run began."""
        self.seconds = seconds
        for figures in steps:
            self.step += 1
            self.tokens += figures.tokens
            for name in _SUMMED:
                self.window[name] += getattr(figures, name)
            self.window_steps += 1
            self.loss_sum += figures.loss
            self.loss_steps += 1

    def log(self) -> Logged:
        """Mean figures (tokens: their sum) of the steps since the last call; they are kept in `logged`."""
        sums, steps = self.window, self.window_steps
        self.window, self.window_steps = dict.fromkeys(_SUMMED, 0.0), 0
        means = {name: sums[name] / steps for name in _SUMMED if name != "tokens"}
        self.logged.append(Logged(self.step, StepFigures(**means, tokens=int(sums["tokens"])), self.seconds))
        return self.logged[-1]

    @property
    def training_loss(self) -> float:
        """Mean training loss of the steps since the last evaluation."""
        return self.loss_sum / max(1, self.loss_steps)

    def evaluated(self, returned: dict[str, Any]) -> None:
        """Keep what an evaluation after this step returned."""
        self.evaluations.append(returned)
        self.evaluated_step, self.loss_sum, self.loss_steps = self.step, 0.0, 0

    def document(self) -> dict[str, Any]:
        """The state as JSON can write it."""
        return asdict(self)

    @staticmethod
    def of(document: Mapping[str, Any]) -> "TrainingState":
        """The state that `document` described."""
        logged = [Logged(line["step"], StepFigures(**line["figures"]), line["seconds"]) for line in document["logged"]]
        return TrainingState(**{**document, "logged": logged})
