"""How long and how fast a training is, and which rows each of its steps learns from."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llm_neo.batching import Batch, TokenRows, epoch_order, packed_batch

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


def scheduled(rows: TokenRows, settings: TrainSettings, done: int) -> Iterator[tuple[int, list[Batch]]]:
    """The micro-batches of every step after the first `done`, steps counted from 1."""
    per_epoch = math.ceil(len(rows) / settings.batch_size)
    for epoch in range(done // per_epoch, settings.epochs):
        for index, chosen in enumerate(_chosen(rows, settings, epoch)):
            step = epoch * per_epoch + index + 1
            if step > done:
                yield step, _micro_batches(rows, chosen, settings.micro_batch_size)


def largest_micro_batch(rows: TokenRows, settings: TrainSettings) -> Batch:
    """The micro-batch with the most tokens of the whole run: what fits it fits all."""
    lengths = rows.lengths
    steps = [chosen for epoch in range(settings.epochs) for chosen in _chosen(rows, settings, epoch)]
    parts = [part for chosen in steps for part in _parts(chosen, settings.micro_batch_size)]
    return packed_batch(rows, max(parts, key=lambda part: int(lengths[part].sum())))


def _chosen(rows: TokenRows, settings: TrainSettings, epoch: int) -> "list[NDArray[np.int64]]":
    """Which texts each step of an epoch learns from."""
    order, size = epoch_order(len(rows), settings.seed, epoch), settings.batch_size
    return [order[start : start + size] for start in range(0, len(rows), size)]


def _micro_batches(rows: TokenRows, chosen: "NDArray[np.int64]", size: int | None) -> list[Batch]:
    return [packed_batch(rows, part) for part in _parts(chosen, size)]


def _parts(chosen: "NDArray[np.int64]", size: int | None) -> "list[NDArray[np.int64]]":
    size = size or len(chosen)
    return [chosen[start : start + size] for start in range(0, len(chosen), size)]
