"""Bars and lines on a terminal, and plain lines where there is none."""

import io
import os
import pty
import re
import termios
import threading
import tty
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import pytest
from rich.console import Console

from llm_neo.terminal import RichProgress


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def plain(clock: Clock) -> tuple[RichProgress, io.StringIO]:
    stream = io.StringIO()
    return RichProgress(Console(file=stream, width=40), clock), stream


def test_a_file_gets_a_line_every_ten_seconds_and_one_at_the_end() -> None:
    clock = Clock()
    progress, stream = plain(clock)
    with progress.bar("train", 100, "steps") as bar:
        bar.advance(0)
        for _ in range(50):
            clock.now += 0.5
            bar.advance(2, loss=0.69314, tokens=512)
    assert stream.getvalue().splitlines() == [
        "train: 40/100 steps  loss 0.6931  1,024 tokens/s  0:10 elapsed  0:15 left",
        "train: 80/100 steps  loss 0.6931  1,024 tokens/s  0:20 elapsed  0:05 left",
        "train: 100/100 steps  loss 0.6931  1,024 tokens/s  0:25 elapsed",
    ]


def test_a_resumed_bar_counts_speed_from_where_it_went_on() -> None:
    """60 of 100 steps were there at the start; 10 more took 20 s, so that 30 more take 60 s."""
    clock = Clock()
    progress, stream = plain(clock)
    with progress.bar("train", 100, "steps") as bar:
        bar.advance(60)
        clock.now += 20
        bar.advance(10)
    assert stream.getvalue() == "train: 70/100 steps  0 tokens/s  0:20 elapsed  1:00 left\n".replace("  0 tokens/s", "")


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    clock = Clock()
    progress, stream = plain(clock)
    with progress.bar("score", None, "rows") as bar:
        for tokens in (0, 6000, 6000, 60, 60, 60):
            bar.advance(1000, tokens=tokens)
            clock.now += 15
    assert stream.getvalue().splitlines()[-1] == "score: 6,000 rows  4 tokens/s  1:15 elapsed"


def test_bytes_are_shown_in_mebibytes_and_hours_as_hours() -> None:
    clock = Clock()
    progress, stream = plain(clock)
    with progress.bar("download", 3 * 2**20, "B") as bar:
        bar.advance(0)
        clock.now += 3600
        bar.advance(2**20)
    with progress.bar("download", None, "bytes") as bar:
        bar.advance(2**19)
    assert stream.getvalue().splitlines() == [
        "download: 1.0/3.0 MiB  1:00:00 elapsed  2:00:00 left",
        "download: 0.5 MiB  0:00 elapsed",
    ]


def test_a_bar_that_never_moved_says_nothing() -> None:
    progress, stream = plain(Clock())
    with progress.bar("train", 5, "steps"):
        pass
    assert stream.getvalue() == ""


def test_a_bar_says_where_an_error_ended_it() -> None:
    progress, stream = plain(Clock())

    def fail_midway() -> None:
        with progress.bar("train", 5, "steps") as bar:
            bar.advance(2)
            raise KeyError

    with pytest.raises(KeyError):
        fail_midway()
    assert stream.getvalue() == "train: 2/5 steps  0:00 elapsed\n"


def test_lines_are_whole_without_markup_and_without_control_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also with FORCE_COLOR, for which rich would take the file for a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    progress, stream = plain(Clock())
    progress.stage("teacher")
    progress.say("[bold]rows[/bold] 1,234 " + "x" * 60)
    progress.say("red \x1b[31m and a bell \a\nsecond line")
    assert stream.getvalue().splitlines() == [
        "== teacher",
        "[bold]rows[/bold] 1,234 " + "x" * 60,
        "red \\x1b[31m and a bell \\x07",
        "second line",
    ]


def seen_on_terminal(action: Callable[[Console], None]) -> str:
    """What a true terminal is sent while `action` writes to its console, without the cursor's movements."""
    reading, writing = pty.openpty()
    tty.setraw(writing, termios.TCSANOW)
    chunks: list[bytes] = []

    def read() -> None:
        # Linux says EIO, other systems end the file, once the writing end is closed.
        with suppress(OSError):
            while chunk := os.read(reading, 4096):
                chunks.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(writing, "w", encoding="utf-8") as file:
        action(Console(file=file, width=100, color_system=None))
    reader.join()
    os.close(reading)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(chunks).decode())


def test_a_terminal_gets_bars_that_leave_the_outermost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    clock = Clock()

    def action(console: Console) -> None:
        progress = RichProgress(console, clock)
        progress.stage("train")
        with progress.bar("train", 4, "steps") as steps:
            steps.advance(0)
            clock.now += 2
            steps.advance(1, loss=0.5, tokens=100)
            with progress.bar("evaluate", 200, "rows") as rows:
                rows.advance(200)
                progress.say("accuracy 0.9")

    lines = [line.rstrip() for line in seen_on_terminal(action).replace("\r", "\n").split("\n")]
    assert lines[0] == "== train"
    assert "accuracy 0.9" in lines
    bars = [line for line in lines if line.startswith(("train ", "evaluate "))]
    assert any(line.startswith("evaluate ") for line in bars)
    assert bars[-1].startswith("train ")
    assert bars[-1].endswith("1/4 steps  loss 0.5  50 tokens/s  0:02 elapsed  0:06 left")


def test_a_second_bar_after_the_first_is_drawn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")

    def action(console: Console) -> None:
        progress = RichProgress(console)
        for label in ("first", "second"):
            with progress.bar(label, 1, "steps") as bar:
                bar.advance()

    bars = [line for line in seen_on_terminal(action).replace("\r", "\n").split("\n") if "1/1 steps" in line]
    assert {line.split()[0] for line in bars} == {"first", "second"}


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")

    def action(console: Console) -> None:
        with RichProgress(console, Clock()).bar("train", 4, "steps") as bar:
            bar.advance(4)

    assert seen_on_terminal(action) == "train: 4/4 steps  0:00 elapsed\n"
