"""The terminal's form of `Progress`: live bars on a terminal, plain lines elsewhere; always on stderr."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from llm_neo.printing import printable, redacted
from llm_neo.progress import Bar

_PLAIN_SECONDS = 10.0
_RATE_SECONDS = 30.0
_MIB = 2**20


@dataclass
class _Count:
    """How far one bar is: units done, the last figures, and the tokens of the last half minute.

    Rates are counted from the first report on, which may hold what an earlier run did before it was resumed.
    """

    label: str
    total: int | None
    unit: str
    clock: Callable[[], float]
    done: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    first: tuple[float, int] | None = None
    recent: deque[tuple[float, float]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def add(self, amount: int, figures: dict[str, float]) -> None:
        """Count units; `tokens` are those of these units and become a rate, other figures are shown."""
        self.done += amount
        now = self.clock()
        self.first = self.first or (now, self.done)
        self.recent.append((now, figures.pop("tokens", 0.0)))
        while len(self.recent) > 2 and self.recent[0][0] < now - _RATE_SECONDS:
            self.recent.popleft()
        self.figures |= figures

    def text(self) -> str:
        """What stands beside the bar: `2/9 steps  loss 0.69  12,345 tokens/s  0:34 elapsed  1:20 left`."""
        parts = [self._amount()]
        parts += [f"{name.replace('_', ' ')} {value:.4g}" for name, value in self.figures.items()]
        if tokens_per_second := self._tokens_per_second():
            parts.append(f"{tokens_per_second:,.0f} tokens/s")
        parts.append(f"{_clock_time(self.clock() - self.started)} elapsed")
        left = self._seconds_left()
        if left is not None:
            parts.append(f"{_clock_time(left)} left")
        return "  ".join(parts)

    def _tokens_per_second(self) -> float | None:
        seconds = self.recent[-1][0] - self.recent[0][0] if self.recent else 0.0
        return sum(tokens for _, tokens in list(self.recent)[1:]) / seconds if seconds > 0 else None

    def _seconds_left(self) -> float | None:
        if self.total is None or self.first is None or not self.first[1] < self.done < self.total:
            return None
        seconds_per_unit = (self.clock() - self.first[0]) / (self.done - self.first[1])
        return seconds_per_unit * (self.total - self.done)

    def _amount(self) -> str:
        if self.unit in ("B", "bytes"):
            total = "" if self.total is None else f"/{self.total / _MIB:,.1f}"
            return f"{self.done / _MIB:,.1f}{total} MiB"
        total = "" if self.total is None else f"/{self.total:,}"
        return f"{self.done:,}{total} {self.unit}"


class RichProgress:
    """A `Progress` on a console.

    On a terminal each bar is drawn live; a bar inside another one leaves the screen when it ends. On anything
    else (a file, a CI log) each bar writes a line at most every ten seconds and one when it ends, without
    control characters.

    Args:
        console: where to write; the command line gives one on stderr.
        clock: seconds that only grow; another one than time.monotonic is for tests.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._live: Progress | None = None
        # FORCE_COLOR makes rich take a file for a terminal; only a true one gets control characters.
        self._is_terminal = console.file.isatty() and not console.is_dumb_terminal

    def stage(self, name: str) -> None:
        """Begin a stage with a header of its own."""
        self._line(f"== {name}", style="bold" if self._is_terminal else "")

    def say(self, message: str) -> None:
        """Write a line that stays."""
        self._line(message)

    @contextmanager
    def bar(self, label: str, total: int | None, unit: str) -> Iterator[Bar]:
        """Show a count until the context ends, with an error or without."""
        count = _Count(printable(label), total, printable(unit), self._clock)
        if self._is_terminal:
            with self._live_bar(count) as bar:
                yield bar
            return
        plain = _PlainBar(count, self._line)
        try:
            yield plain
        finally:
            plain.end()

    @contextmanager
    def _live_bar(self, count: _Count) -> Iterator[Bar]:
        outermost = self._live is None
        if self._live is None:
            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[figures]}", markup=False),
                console=self._console,
                refresh_per_second=4,
            )
            self._live.start()
        live = self._live
        task = live.add_task(count.label, total=count.total, figures=count.text())
        try:
            yield _LiveBar(count, live, task)
        finally:
            live.update(task, figures=count.text())
            if outermost:
                live.stop()
                self._live = None
            else:
                live.remove_task(task)

    def _line(self, message: str, style: str = "") -> None:
        text = Text(redacted(printable(message)), style=style)
        self._console.print(text, soft_wrap=True, highlight=False)


class _LiveBar:
    """A bar that rich draws."""

    def __init__(self, count: _Count, live: Progress, task: TaskID) -> None:
        self._count, self._live, self._task = count, live, task

    def advance(self, amount: int = 1, **figures: float) -> None:
        """Count and redraw, at rich's own pace."""
        self._count.add(amount, figures)
        self._live.update(self._task, completed=self._count.done, figures=self._count.text())


class _PlainBar:
    """A bar that is a line now and then."""

    def __init__(self, count: _Count, line: Callable[[str], None]) -> None:
        self._count, self._line = count, line
        self._written_at, self._written = count.started, 0

    def advance(self, amount: int = 1, **figures: float) -> None:
        """Count, and write a line if the last one is ten seconds old."""
        self._count.add(amount, figures)
        if self._count.clock() - self._written_at >= _PLAIN_SECONDS:
            self._write()

    def end(self) -> None:
        """Write where the bar ended, unless the last line says so."""
        if self._count.done != self._written:
            self._write()

    def _write(self) -> None:
        self._written_at, self._written = self._count.clock(), self._count.done
        self._line(f"{self._count.label}: {self._count.text()}")


def _clock_time(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
