"""What goes to experiment trackers besides `metrics.jsonl`; accelerate speaks their languages."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol


class Tracker(Protocol):
    """One open tracker."""

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        """Send figures of one step."""

    def finish(self) -> None:
        """Flush and close."""


@contextmanager
def open_trackers(names: Sequence[str], folder: Path) -> Iterator[list[Tracker]]:
    """The named trackers, closed with the context.

    Args:
        names: of the recipe's `trackers`; so far "tensorboard".
        folder: the run directory; TensorBoard's files go to `folder/tensorboard`.
    """
    opened: list[Tracker] = []
    with ExitStack() as stack:
        for _ in names:
            from accelerate.tracking import TensorBoardTracker

            tracker = TensorBoardTracker("tensorboard", logging_dir=str(folder))
            start = getattr(tracker, "start", None)  # older releases of accelerate open the file at once
            if start is not None:
                start()
            stack.callback(tracker.finish)
            opened.append(tracker)
        yield opened
