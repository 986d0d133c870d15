"""Commands of llm-neo in processes that are forked from this one, which has imported everything: 0.1 s instead of 5."""

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from llm_neo import cli
from llm_neo.terminal import RichProgress

SECONDS = 300.0
"""No command here may take longer."""


class Reporting(RichProgress):
    """What the command line shows, and each stage and bar as a line of a file that the driver reads."""

    file: Path

    def stage(self, name: str) -> None:
        self._note(f"stage {name}")
        super().stage(name)

    def say(self, message: str) -> None:
        self._note(f"say {message.partition(' ')[0]}")
        super().say(message)

    @contextmanager
    def bar(self, label: str, total: int | None, unit: str) -> Iterator[object]:
        self._note(f"bar {label}")
        with super().bar(label, total, unit) as bar:
            yield bar
        self._note(f"end {label}")

    def _note(self, event: str) -> None:
        with self.file.open("a") as file:
            file.write(event + "\n")


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (negative: the signal), what it printed, what it said."""

    code: int
    stdout: str
    stderr: str
    seconds: float


class Child:
    """One running command."""

    def __init__(
        self, words: Sequence[str], folder: Path, cache: Path, prepare: Callable[[], None] = lambda: None
    ) -> None:
        """Fork; `folder` gets stdout, stderr and events; `prepare` runs in the child first."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.began = folder, time.monotonic()
        for name in ("stdout", "stderr", "events"):
            (folder / name).write_bytes(b"")
        self.pid = os.fork()
        if self.pid == 0:
            self._run(words, cache, prepare)

    def _run(self, words: Sequence[str], cache: Path, prepare: Callable[[], None]) -> None:
        code = 70
        try:
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(self.folder / name, os.O_WRONLY | os.O_APPEND), number)
            # PyTorch makes its thread pool anew after a fork, which must not happen in two threads at once.
            torch.set_num_threads(1)
            # A shell ignores it in its background jobs.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ["LLM_NEO_CACHE"] = str(cache)
            Reporting.file = self.folder / "events"
            prepare()
            code = cli.main(list(words))
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def events(self) -> list[str]:
        """Stages and bars so far."""
        return (self.folder / "events").read_text().splitlines()

    def is_over(self) -> bool:
        """Whether it has ended; it stays to be waited for."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait_for(self, event: str) -> bool:
        """Until the event has come; False where the command ended before it did."""
        while event not in self.events():
            if self.is_over():
                return event in self.events()
            time.sleep(0.002)
        return True

    def send(self, number: signal.Signals) -> None:
        """Send a signal; one that has ended takes it no more."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Until it has ended."""
        limit = time.monotonic() + SECONDS
        while not self.is_over():
            if time.monotonic() > limit:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"still running after {SECONDS} s: {self.events()[-3:]}")
            time.sleep(0.005)
        _, status = os.waitpid(self.pid, 0)
        texts = [(self.folder / name).read_text(errors="replace") for name in ("stdout", "stderr")]
        return Ended(os.waitstatus_to_exitcode(status), *texts, time.monotonic() - self.began)


def run(words: Sequence[str], folder: Path, cache: Path) -> Ended:
    """A command from its beginning to its end."""
    return Child(words, folder, cache).wait()


def warm_up(words: Sequence[str], folder: Path, cache: Path) -> None:
    """Import here what this command imports in a child, so that later children need not; no thread is started."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    cli._progress = lambda: Reporting(_console())
    names = folder / "modules"
    names.parent.mkdir(parents=True, exist_ok=True)

    def report_modules() -> None:
        act = cli.main

        def main(arguments: Sequence[str] | None = None) -> int:
            code = act(arguments)
            names.write_text("\n".join(sys.modules))
            return code

        cli.main = main

    ended = Child(words, folder, cache, report_modules).wait()
    assert ended.code == 0, ended.stderr
    for name in names.read_text().splitlines():
        if name not in sys.modules and not name.startswith("__"):
            with suppress(Exception):
                importlib.import_module(name)


def _console() -> object:
    from rich.console import Console

    return Console(stderr=True)
