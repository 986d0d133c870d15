"""Wall-clock time of work that a GPU may still be busy with."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import torch


def now(device: "torch.device") -> float:
    """Seconds on a monotonic clock, once the device has done all it was given."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Steady:
    """The usual time of a step.

    A shared machine now and then stops for seconds. The median of some blocks of steps does not see one that stopped,
    where a mean would multiply it by the steps of an epoch; the slowest block is told beside it, so that it shows.

    Attributes:
        seconds: the median of the blocks.
        slowest: the slowest block as a multiple of it.
    """

    seconds: float
    slowest: float


def steady(blocks: Sequence[float]) -> Steady:
    """The usual time of a step from the seconds a step of each block, of which one at least."""
    middle = statistics.median(blocks)
    return Steady(middle, max(blocks) / middle)


class Stopwatch:
    """Seconds that the work inside the context took, the device's part included.

    Attributes:
        seconds: set on leaving.
    """

    def __init__(self, device: "torch.device") -> None:
        self.seconds = 0.0
        self._device = device
        self._entered = 0.0

    def __enter__(self) -> Self:
        self._entered = now(self._device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.seconds = now(self._device) - self._entered
