"""The one loop: teacher and student, hard labels and soft targets alike. It knows no task and no file format."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from llm_neo.batching import Batch, TokenRows, epoch_order, packed_batch
from llm_neo.checkpoint import CheckpointStore, TrainingState
from llm_neo.engine import Objective, PlainEngine, StepFigures
from llm_neo.errors import NonFiniteError
from llm_neo.evaluate import classifier_forward
from llm_neo.models.adapters import trainable_parameters
from llm_neo.progress import Progress
from llm_neo.runtime import seed_everything

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class TrainSettings:
    """How long, how fast and how often; the names are those of the recipe's `train` section."""

    epochs: int
    batch_size: int
    micro_batch_size: int | None
    learning_rate: float
    weight_decay: float
    schedule: Literal["linear", "cosine", "constant"]
    warmup_fraction: float
    max_gradient_norm: float | None
    seed: int
    evaluate_every_steps: int | None
    checkpoint_every_steps: int | None
    log_every_steps: int

    def steps(self, rows: int) -> int:
        """Optimizer steps of the whole run; the last batch of an epoch may be short."""
        return self.epochs * math.ceil(rows / self.batch_size)


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


@dataclass(frozen=True)
class Listener:
    """What the caller does with the loop's news.

    Attributes:
        log: every `log_every_steps` and at the end.
        evaluate: every `evaluate_every_steps`, but not at the last step; gets the step, the epochs done so far and
            the mean training loss since the evaluation before. What it returns (as JSON can write it) is kept.
    """

    log: Callable[[Logged], None]
    evaluate: Callable[[int, float, float], dict[str, Any]]


@dataclass(frozen=True)
class TrainResult:
    """How the loop ended.

    Attributes:
        steps: optimizer steps taken.
        tokens: tokens that went through the model, evaluations not counted.
        training_loss: mean since the last evaluation.
        evaluations: what the listener returned, in order.
    """

    steps: int
    tokens: int
    training_loss: float
    evaluations: tuple[dict[str, Any], ...]


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
) -> TrainResult:
    """Train the model's trainable parameters; it stays in training mode.

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

    Raises:
        NonFiniteError: a loss or gradient is not finite; the step, the term and the rows are named.
    """
    seed_everything(settings.seed)
    total = settings.steps(len(rows))
    engine = _engine(model, objective, settings, total, device, autocast_dtype)
    state = TrainingState()
    if store is not None:
        state = store.restore(model, engine.optimizer, engine.scheduler) or state
    model.train()
    clock = time.monotonic() - state.seconds
    with progress.bar(label, total, "steps") as bar:
        bar.advance(state.step)
        for step, batches in _schedule(rows, settings, state.step):
            figures = _named(engine, step, batches, rows)
            state.add(step, figures, time.monotonic() - clock)
            bar.advance(1, loss=figures.loss, tokens=figures.tokens)
            if step % settings.log_every_steps == 0 or step == total:
                listener.log(Logged(step, state.pop_mean(), state.seconds))
            if _due(step, settings.evaluate_every_steps, total):
                epoch = step / total * settings.epochs
                state.evaluations.append(listener.evaluate(step, epoch, state.pop_training_loss()))
                model.train()
            if store is not None and _due(step, settings.checkpoint_every_steps, total):
                store.save(model, engine.optimizer, engine.scheduler, state)
    return TrainResult(total, state.tokens, state.pop_training_loss(), tuple(state.evaluations))


def _due(step: int, every: int | None, total: int) -> bool:
    return every is not None and step % every == 0 and step < total


def _named(engine: PlainEngine, step: int, batches: list[Batch], rows: TokenRows) -> StepFigures:
    """One step; a failure names the step and its rows."""
    try:
        return engine.step(batches)
    except NonFiniteError as error:
        ids = [rows.ids[row] for batch in batches for row in batch.rows.tolist()]
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        raise NonFiniteError(f"step {step}: {error} (rows {shown})") from error


def _schedule(rows: TokenRows, settings: TrainSettings, done: int) -> Iterator[tuple[int, list[Batch]]]:
    """The micro-batches of every step after the first `done`, steps counted from 1."""
    per_epoch = math.ceil(len(rows) / settings.batch_size)
    for epoch in range(done // per_epoch, settings.epochs):
        order = epoch_order(len(rows), settings.seed, epoch)
        for index in range(done % per_epoch if epoch == done // per_epoch else 0, per_epoch):
            chosen = order[index * settings.batch_size : (index + 1) * settings.batch_size]
            yield epoch * per_epoch + index + 1, _micro_batches(rows, chosen, settings.micro_batch_size)


def _micro_batches(rows: TokenRows, chosen: "NDArray[np.int64]", size: int | None) -> list[Batch]:
    size = size or len(chosen)
    return [packed_batch(rows, chosen[start : start + size]) for start in range(0, len(chosen), size)]


def _engine(
    model: torch.nn.Module,
    objective: Objective,
    settings: TrainSettings,
    total_steps: int,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
) -> PlainEngine:
    from transformers import get_scheduler

    groups = _decay_groups(model, settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=device.type == "cuda")
    scheduler = get_scheduler(
        settings.schedule,
        optimizer,
        num_warmup_steps=math.floor(settings.warmup_fraction * total_steps),
        num_training_steps=total_steps,
    )
    return PlainEngine(
        model=model,
        forward=classifier_forward(model),
        objective=objective,
        optimizer=optimizer,
        scheduler=scheduler,
        max_gradient_norm=settings.max_gradient_norm,
        autocast_dtype=autocast_dtype,
        device=device,
    )


def _decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay pulls matrices alone; gains and biases keep theirs."""
    parameters = trainable_parameters(model)
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups: list[dict[str, object]] = [{"params": matrices, "weight_decay": weight_decay}]
    return [*groups, {"params": vectors, "weight_decay": 0.0}] if vectors else groups
