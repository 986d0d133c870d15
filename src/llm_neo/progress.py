"""What a stage tells the person who waits for it; the terminal's own form of it is `llm_neo.terminal`."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bar(Protocol):
    """One running count, such as steps, bytes or rows."""

    def advance(self, amount: int = 1, **figures: float) -> None:
        """Count `amount` more units.

        `figures` stand beside the bar: `loss` as it is, `tokens` (of these units) as tokens per second.
        """


class Progress(Protocol):
    """Where the stages of a run report to."""

    def stage(self, name: str) -> None:
        """A stage of the run begins: data, teacher, targets, train, evaluate or export."""

    def say(self, message: str) -> None:
        """One line that stays on the screen."""

    def bar(self, label: str, total: int | None, unit: str) -> AbstractContextManager[Bar]:
        """A bar for `total` units (None: not known) that ends with the context."""


class _SilentBar:
    def advance(self, amount: int = 1, **figures: float) -> None:
        """Count nothing."""


class SilentProgress:
    """A `Progress` that shows nothing: the default of the library's functions."""

    def stage(self, name: str) -> None:
        """Show nothing."""

    def say(self, message: str) -> None:
        """Show nothing."""

    @contextmanager
    def bar(self, label: str, total: int | None, unit: str) -> Iterator[Bar]:
        """A bar that is never drawn."""
        yield _SilentBar()
