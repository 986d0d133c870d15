"""Which engine takes the steps of a training run, and the optimizer that it needs."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from llm_neo.captured import CapturedEngine
from llm_neo.engine import Engine, Objective, PlainEngine
from llm_neo.errors import InputError
from llm_neo.evaluate import EngineName, classifier_forward
from llm_neo.models.adapters import trainable_parameters
from llm_neo.models.fused import unsupported
from llm_neo.models.quantization import waits_for_host

EngineUsed = Literal["plain", "fused", "captured"]
"""plain = modules of transformers and peft; fused = `models.fused`, op by op; captured = the same as CUDA graphs."""


class StepSettings(Protocol):
    """What the choice needs of `train.TrainSettings`, which says what each means."""

    @property
    def batch_size(self) -> int:
        """Rows of one optimizer step."""

    @property
    def micro_batch_size(self) -> int | None:
        """Rows of one forward; None = all."""

    @property
    def learning_rate(self) -> float:
        """Before the schedule."""

    @property
    def weight_decay(self) -> float:
        """Of matrices."""

    @property
    def schedule(self) -> str:
        """Its name in transformers."""

    @property
    def warmup_fraction(self) -> float:
        """Share of the steps, 0 to 1."""

    @property
    def max_gradient_norm(self) -> float | None:
        """None = no clipping."""


@dataclass(frozen=True)
class Chosen:
    """An engine and why it is this one.

    Attributes:
        engine: takes the steps.
        used: its name, as `run.json` has it.
        reason: why not a faster one; empty where there is none.
    """

    engine: Engine
    used: EngineUsed
    reason: str


def choose_engine(
    model: torch.nn.Module,
    objective: Objective,
    settings: StepSettings,
    *,
    total_steps: int,
    longest_text: int,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
    wanted: EngineName,
) -> Chosen:
    """The fastest engine that can take this model's steps, or the one that is asked for.

    Args:
        model: a classifier on `device`, frozen but for what is to learn.
        objective: losses of each row.
        settings: batch sizes, optimizer and schedule.
        total_steps: of the run, for the schedule.
        longest_text: tokens of the longest training text.
        device: where the model is.
        autocast_dtype: see `PlainEngine`.
        wanted: the recipe's `runtime.engine`.

    Raises:
        InputError: the captured engine is asked for and cannot take this model.
    """
    used, reason = _decide(model, device, wanted)
    optimizer = _optimizer(model, settings, device, captured=used == "captured")
    scheduler = _scheduler(optimizer, settings, total_steps)
    forward = classifier_forward(model, "plain" if used == "plain" else "captured", compiled=used == "captured")
    if used != "captured":
        plain = PlainEngine(
            forward, objective, optimizer, scheduler, settings.max_gradient_norm, autocast_dtype, device
        )
        return Chosen(plain, used, reason)
    rows = settings.micro_batch_size or settings.batch_size
    captured = CapturedEngine(
        forward,
        objective,
        optimizer,
        scheduler,
        settings.max_gradient_norm,
        autocast_dtype,
        device,
        rows_of_batch=rows,
        longest_text=longest_text,
        accumulates=rows < settings.batch_size,
    )
    return Chosen(captured, used, reason)


def _decide(model: torch.nn.Module, device: torch.device, wanted: EngineName) -> tuple[EngineUsed, str]:
    if wanted == "plain":
        return "plain", "the recipe asks for it"
    reason = unsupported(model)
    if reason is None and device.type == "cuda" and waits_for_host(model):
        reason = "its int8 layers wait for the host in every product"
    if reason is not None:
        if wanted == "captured":
            raise InputError(f"runtime.engine: captured cannot train this model: {reason}; choose auto or plain")
        return "plain", reason
    if device.type != "cuda":
        return "fused", f"a {device.type.upper()} has no graphs to capture"
    return "captured", ""


def _optimizer(
    model: torch.nn.Module, settings: StepSettings, device: torch.device, *, captured: bool
) -> torch.optim.Optimizer:
    """AdamW; weight decay pulls matrices alone, gains and biases keep theirs."""
    parameters = trainable_parameters(model)
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups: list[dict[str, object]] = [{"params": matrices, "weight_decay": settings.weight_decay}]
    if vectors:
        groups.append({"params": vectors, "weight_decay": 0.0})
    if not captured:
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=device.type == "cuda")
    rate = torch.tensor(settings.learning_rate, device=device)
    return torch.optim.AdamW(groups, lr=rate, fused=True, capturable=True)


def _scheduler(
    optimizer: torch.optim.Optimizer, settings: StepSettings, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    from transformers import get_scheduler

    scheduler: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
        settings.schedule,
        optimizer,
        num_warmup_steps=math.floor(settings.warmup_fraction * total_steps),
        num_training_steps=total_steps,
    )
    return scheduler
