"""The one loop: teacher and student, hard labels and soft targets alike. It knows no task and no file format."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from llm_neo.batching import TokenRows
from llm_neo.checkpoint import CheckpointStore
from llm_neo.engine import Engine, NonFiniteStepError, Objective, StepMemoryError
from llm_neo.engines import EngineUsed, choose_engine
from llm_neo.errors import NonFiniteError, ResourceError
from llm_neo.evaluate import EngineName
from llm_neo.interrupts import INTERRUPTIONS, Held, held_signals
from llm_neo.progress import Bar, Progress
from llm_neo.runtime import seed_everything
from llm_neo.schedule import TrainSettings, largest_micro_batch, scheduled
from llm_neo.train_state import Logged, TrainingState


@dataclass(frozen=True)
class Listener:
    """What the caller does with the loop's news.

    Attributes:
        begin: at the start; gets what was logged before the checkpoint that the loop goes on from.
        log: every `log_every_steps` and at the end.
        evaluate: every `evaluate_every_steps`, but not at the last step; gets the step, the epochs done so far and
            the mean training loss since the evaluation before. What it returns (as JSON can write it) is kept.
    """

    log: Callable[[Logged], None]
    evaluate: Callable[[int, float, float], dict[str, Any]]
    begin: Callable[[Sequence[Logged]], None] = lambda _: None


@dataclass(frozen=True)
class TrainResult:
    """How the loop ended.

    Attributes:
        steps: optimizer steps taken.
        tokens: tokens that went through the model, evaluations not counted.
        training_loss: mean since the last evaluation.
        evaluations: what the listener returned, in order.
        engine: which one took the steps.
    """

    steps: int
    tokens: int
    training_loss: float
    evaluations: tuple[dict[str, Any], ...]
    engine: EngineUsed


def train(
    model: torch.nn.Module,
    rows: TokenRows,
    objective: Objective,
    settings: TrainSettings,
    *,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
    listener: Listener,
    progress: Progress,
    label: str,
    store: CheckpointStore | None = None,
    engine: EngineName = "auto",
    section: str = "train",
) -> TrainResult:
    """Train the model's trainable parameters; it stays in training mode.

    SIGINT and SIGTERM wait for the end of the step, or end an evaluation at once; the state is saved before they act.

    Args:
        model: a classifier on `device`, frozen but for what is to learn.
        rows: the tokens of the training texts.
        objective: losses of each row of `rows`.
        settings: schedule and sizes.
        device: where the model is.
        autocast_dtype: see `PlainEngine`.
        listener: is told of losses and asked to evaluate.
        progress: shows the bar.
        label: the bar's name.
        store: where the state is saved to every `checkpoint_every_steps` and continued from; None = nowhere.
        engine: the recipe's `runtime.engine`.
        section: what the recipe calls `settings`, for messages.

    Raises:
        ResourceError: no memory for a micro-batch, which on a GPU shows before the first step, or a full disk.
        NonFiniteError: a loss or gradient is not finite; the step, the term and the rows are named.
        InputError: the recipe asks for the captured engine and it cannot take this model; the reason is named.
    """
    seed_everything(settings.seed)
    total = settings.steps(len(rows))
    chosen = choose_engine(
        model,
        objective,
        settings,
        total_steps=total,
        longest_text=int(rows.lengths.max()),
        device=device,
        autocast_dtype=autocast_dtype,
        wanted=engine,
    )
    progress.say(f"{label}: {chosen.used} engine" + (f" ({chosen.reason})" if chosen.reason else ""))
    loop = _Loop(chosen.engine, rows, settings, total, listener, store, progress.say, section, device)
    model.train()
    with progress.bar(label, total, "steps") as bar, held_signals() as held:
        state = loop.run(model, bar, held)
    if state.step < total:
        raise KeyboardInterrupt  # nobody else acted on the signal that ended the loop
    return TrainResult(total, state.tokens, state.training_loss, tuple(state.evaluations), chosen.used)


@dataclass(frozen=True)
class _Loop:
    """The parts of a run that do not change from step to step."""

    engine: Engine
    rows: TokenRows
    settings: TrainSettings
    total: int
    listener: Listener
    store: CheckpointStore | None
    say: Callable[[str], None]
    section: str
    device: torch.device

    def rehearse(self) -> None:
        """Try the micro-batch with the most tokens.

        Raises:
            ResourceError: the device has no memory for it.
        """
        largest = largest_micro_batch(self.rows, self.settings)
        self._named(partial(self.engine.rehearse, largest), TrainingState(), 0.0)

    def run(self, model: torch.nn.Module, bar: Bar, held: Held) -> TrainingState:
        """All steps that the newest checkpoint has not behind it; fewer where a signal is held at the end."""
        engine, state = self.engine, TrainingState()
        if self.store is not None:
            state = self.store.restore(model, engine.optimizer, engine.scheduler, self.say) or state
        if _has_own_memory(self.device):
            # What will not fit shows now, not when the longest texts of the epoch happen to meet; and only now, since
            # a captured step reads the very tensors that were restored.
            self.rehearse()
        self.listener.begin(state.logged)
        bar.advance(state.step)
        self._evaluate(model, state, held)
        clock = time.monotonic() - state.seconds
        for step, batches in scheduled(self.rows, self.settings, state.step):
            self._named(partial(engine.step, batches), state, clock)
            # Looked at once: a signal that comes later waits for the next step, whose figures are read then.
            stops = held.number is not None
            if engine.full or stops or self._is_due(step):
                figures = self._named(engine.read, state, clock)
                state.add(figures, time.monotonic() - clock)
                bar.advance(len(figures), loss=figures[-1].loss, tokens=sum(f.tokens for f in figures))
                self._tell(model, state, held)
            if stops:
                self._save(model, state)
                break
        return state

    def _is_due(self, step: int) -> bool:
        """Whether the host needs the figures of the steps so far."""
        every = (self.settings.log_every_steps, self.settings.evaluate_every_steps)
        saves = self.settings.checkpoint_every_steps if self.store is not None else None
        return step == self.total or any(n is not None and step % n == 0 for n in (*every, saves))

    def _tell(self, model: torch.nn.Module, state: TrainingState, held: Held) -> None:
        """Log, evaluate and save what is due after this step."""
        settings, last = self.settings, state.step == self.total
        if state.step % settings.log_every_steps == 0 or last:
            self.listener.log(state.log())
        self._evaluate(model, state, held)
        if settings.checkpoint_every_steps and (state.step % settings.checkpoint_every_steps == 0 or last):
            self._save(model, state)

    def _evaluate(self, model: torch.nn.Module, state: TrainingState, held: Held) -> None:
        """Evaluate where that is due after this step and no signal waits."""
        step, every = state.step, self.settings.evaluate_every_steps
        is_due = every is not None and step > state.evaluated_step and step % every == 0 and step < self.total
        if not is_due or held.number is not None:
            return
        try:
            with held.paused():
                returned = self.listener.evaluate(step, step / self.total * self.settings.epochs, state.training_loss)
        except INTERRUPTIONS:
            self._save(model, state)
            raise
        state.evaluated(returned)
        model.train()

    def _save(self, model: torch.nn.Module, state: TrainingState) -> None:
        if self.store is not None:
            self.store.save(model, self.engine.optimizer, self.engine.scheduler, state)

    def _named(self, act: Callable[[], Any], state: TrainingState, clock: float) -> Any:
        """Do it; a failure names the step and its rows."""
        try:
            return act()
        except StepMemoryError as error:
            raise ResourceError(f"{error}; {self._smaller(error.rows)}") from error
        except NonFiniteStepError as error:
            state.add(error.before, time.monotonic() - clock)
            ids = [self.rows.ids[row] for batch in error.micro_batches for row in batch.rows.tolist()]
            shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
            raise NonFiniteError(f"step {state.step + 1}: {error} (rows {shown})") from error

    def _smaller(self, rows: int) -> str:
        """The way out where the device has no memory for so many rows at once."""
        if rows == 1:
            return "lower data.max_length_tokens or choose a smaller model"
        return (
            f"set {self.section}.micro_batch_size to {rows // 2}: the loss stays the same up to rounding and dropout, "
            "and an interrupted run may go on with it"
        )


def _has_own_memory(device: torch.device) -> bool:
    return device.type == "cuda"
