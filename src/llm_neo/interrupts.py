"""SIGINT and SIGTERM: raised as exceptions, but noted for later where the program must not be cut in two."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Terminated(BaseException):
    """SIGTERM arrived. Not an Exception, so that only `finally` and `with` act on it on its way out."""


INTERRUPTIONS = (KeyboardInterrupt, Terminated)
"""What `raised_signals` raises."""

_arrived: list[signal.Signals] = []


@contextmanager
def raised_signals() -> Iterator[None]:
    """Within the context SIGINT raises KeyboardInterrupt and SIGTERM `Terminated`; to be used in the main thread.

    Both give the program time to save what it has: a second SIGTERM is passed over (some senders, `timeout` for one,
    signal twice), a second SIGINT ends the process at once.
    """
    before = _heeded()
    for number in before:
        signal.signal(number, _raise)
    _arrived.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _arrived.clear()


def raise_if_arrived() -> None:
    """Raise again what has arrived: for worker threads, and where a library may have swallowed the exception."""
    if _arrived:
        raise Terminated if _arrived[0] == signal.SIGTERM else KeyboardInterrupt


def _heeded() -> dict[signal.Signals, Any]:
    """What is done about each signal that is not ignored, as it is in a shell's background job."""
    handlers = {number: signal.getsignal(number) for number in _NUMBERS}
    return {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}


def _raise(number: int, _frame: FrameType | None) -> None:
    is_first = signal.SIGTERM not in _arrived
    _arrived.append(signal.Signals(number))
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt
    if is_first:
        raise Terminated


class Held:
    """Signals that wait.

    Attributes:
        number: of the first one that arrived; None so far.
    """

    def __init__(self) -> None:
        self.number: signal.Signals | None = None
        # Only the main thread may say what a signal does; in another one nothing is held.
        self._before = _heeded() if threading.current_thread() is threading.main_thread() else {}

    def hold(self) -> None:
        """From now on a signal is noted; the second SIGINT ends the process at once."""
        for number in self._before:
            signal.signal(number, self._note)

    def let_go(self) -> None:
        """Signals do again what they did before; one that was noted does it now."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.number is not None:
            arrived, self.number = self.number, None
            signal.raise_signal(arrived)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Signals do at once what they did before, within the context."""
        try:
            self.let_go()
            yield
        finally:
            self.hold()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.number is None:
            self.number = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def held_signals() -> Iterator[Held]:
    """Note SIGINT and SIGTERM instead of acting on them; at the end of the context a noted one is delivered."""
    held = Held()
    held.hold()
    try:
        yield held
    finally:
        held.let_go()
