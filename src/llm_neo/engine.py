"""One optimizer step over padding-free batches: the plain form, which every faster one must equal.

Shapes: B texts of a micro-batch, C classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch

from llm_neo.batching import Batch
from llm_neo.errors import NonFiniteError, ResourceError, is_out_of_memory
from llm_neo.evaluate import Forward
from llm_neo.losses import RowLosses

Objective = Callable[[torch.Tensor, torch.Tensor], RowLosses]
"""Losses of each row from the student's logits (B, C) and the rows' places in the split (B,)."""


@dataclass(frozen=True)
class StepFigures:
    """What one optimizer step measured.

    Attributes:
        loss: mean over the step's rows, nats.
        hard_loss: mean cross-entropy with the labels; a row without one counts as 0.
        soft_loss: mean temperature-scaled divergence from the teacher.
        gradient_norm: before clipping.
        learning_rate: the one that the step was taken with.
        tokens: tokens of all micro-batches.
    """

    loss: float
    hard_loss: float
    soft_loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int


class NonFiniteStepError(NonFiniteError):
    """A step met a NaN or an infinity; the weights are those before it.

    Attributes:
        micro_batches: of that step.
        before: figures of the steps since the last read that came before it.
    """

    def __init__(self, figures: StepFigures, micro_batches: Sequence[Batch], before: Sequence[StepFigures]) -> None:
        """Name the first term that is not finite."""
        named = {
            "loss": figures.loss,
            "hard loss": figures.hard_loss,
            "soft loss": figures.soft_loss,
            "gradient": figures.gradient_norm,
        }
        name = next((name for name, value in named.items() if not math.isfinite(value)), "loss")
        super().__init__(
            f"the {name} is {named[name]}; the weights are those before this step: lower the learning rate, "
            "or try runtime.precision=float32"
        )
        self.micro_batches, self.before = list(micro_batches), list(before)


class StepMemoryError(ResourceError):
    """The device has no memory for a step; the weights are those before it.

    Attributes:
        rows: of the largest micro-batch.
    """

    def __init__(self, micro_batches: Sequence[Batch]) -> None:
        """Name the largest micro-batch."""
        self.rows = max(len(batch.rows) for batch in micro_batches)
        tokens = max(batch.tokens for batch in micro_batches)
        super().__init__(f"the device has no memory for {self.rows} rows ({tokens:,} tokens) at once")


class Engine(Protocol):
    """What the loop needs of an engine: queue a step, and later read what the steps measured."""

    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler

    @property
    def full(self) -> bool:
        """Whether `read` should come before the next step."""

    def rehearse(self, batch: Batch) -> None:
        """Take the memory that a step with this micro-batch needs, and leave no other trace."""

    def step(self, micro_batches: Sequence[Batch]) -> None:
        """Take one step, or queue it."""

    def read(self) -> list[StepFigures]:
        """Figures of every step since the last call."""


@dataclass
class PlainEngine:
    """Forward, loss, backward, clip, update, one kernel after the other.

    Attributes:
        forward: logits (B, C) of a batch.
        objective: losses of each row.
        optimizer: over the trainable parameters.
        scheduler: sets the learning rate of each step.
        max_gradient_norm: None = no clipping.
        autocast_dtype: arithmetic of a model whose weights are kept in float32; None = as the weights are.
        device: where the model is.
        full: reading costs nothing here, so every step may be read at once.
    """

    forward: Forward
    objective: Objective
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    max_gradient_norm: float | None
    autocast_dtype: torch.dtype | None
    device: torch.device
    full: bool = True
    _unread: list[StepFigures] = field(default_factory=list)

    def rehearse(self, batch: Batch) -> None:
        """One forward and backward whose gradients and random numbers are forgotten.

        Raises:
            StepMemoryError: the device is out of memory.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), self._out_of_memory_named([batch]):
            self._accumulate(batch, len(batch.rows))
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, micro_batches: Sequence[Batch]) -> None:
        """Take one step; the loss is divided by the rows of the whole step, so its split changes nothing.

        Raises:
            NonFiniteStepError: the loss or a gradient is NaN or infinite; no parameter was changed.
            StepMemoryError: the device is out of memory.
        """
        rows = sum(len(batch.rows) for batch in micro_batches)
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        with self._out_of_memory_named(micro_batches):
            sums = torch.stack([self._accumulate(batch, rows) for batch in micro_batches]).sum(dim=0)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_gradient_norm or math.inf)
        measured = torch.cat([sums / rows, norm.detach()[None].to(sums)]).tolist()
        loss, hard, soft, gradient_norm = measured
        tokens = sum(batch.tokens for batch in micro_batches)
        figures = StepFigures(loss, hard, soft, gradient_norm, learning_rate, tokens)
        if not all(map(math.isfinite, measured)):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteStepError(figures, micro_batches, self.read())
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._unread.append(figures)

    def read(self) -> list[StepFigures]:
        """Figures of every step since the last call."""
        unread, self._unread = self._unread, []
        return unread

    @contextmanager
    def _out_of_memory_named(self, micro_batches: Sequence[Batch]) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.optimizer.zero_grad(set_to_none=True)
            raise StepMemoryError(micro_batches) from error

    def _accumulate(self, batch: Batch, rows: int) -> torch.Tensor:
        """Add this micro-batch's share of the gradient; returns the sums of its losses, (3,)."""
        on_device = batch.to(self.device)
        with self._autocast():
            logits_BC = self.forward(on_device)
        losses = self.objective(logits_BC.float(), on_device.rows)
        (losses.total_B.sum() / rows).backward()
        return torch.stack([term.detach().sum() for term in losses])

    def _autocast(self) -> AbstractContextManager[object]:
        if self.autocast_dtype is None or self.autocast_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)
