"""`metrics.jsonl`: what the training loops measured, one JSON line for each logged step."""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from llm_neo.files import explained, write_text_atomically


@dataclass(frozen=True)
class MetricsLine:
    """One line of `metrics.jsonl`: means over the steps since the line before; null where not finite.

    Attributes:
        stage: teacher or train.
        step: the last optimizer step of the mean, counted from 1.
        loss: what is minimised, nats.
        hard_loss: cross-entropy with the labels, nats.
        soft_loss: temperature-scaled divergence from the teacher, nats.
        learning_rate: of the step.
        gradient_norm: before clipping.
        tokens: without padding, summed.
        seconds: since the stage began.
    """

    stage: str
    step: int
    loss: float | None
    hard_loss: float | None
    soft_loss: float | None
    learning_rate: float | None
    gradient_norm: float | None
    tokens: int
    seconds: float


def read_metrics(path: Path) -> list[MetricsLine]:
    """All whole lines of a `metrics.jsonl`; a line that a crash cut short is left out, a missing file is empty."""
    lines = []
    with suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            with suppress(ValueError, TypeError):
                lines.append(MetricsLine(**json.loads(text)))
    return lines


class MetricsLog:
    """`metrics.jsonl`, to append to; every line is on its way to the disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        with explained(self._path):
            self._open(read_metrics(self._path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            # Closing tries again what a full disk refused; once that has been said it needs no saying twice.
            with explained(self._path) if kind is None else suppress(OSError):
                file.close()

    def write(self, line: MetricsLine) -> None:
        """Append a line; NaN and infinities become null.

        Raises:
            InputError: the file cannot be written.
            ResourceError: the disk is full.
        """
        with explained(self._path):
            assert self._file is not None, "a MetricsLog is written inside its context"
            self._file.write(_json_line(line))
            self._file.flush()

    def replace(self, stage: str, lines: Sequence[MetricsLine]) -> None:
        """Drop what the log holds of a stage and append these lines of it: those before a checkpoint, say.

        So no step is there twice when a stage goes on, and none is missing, whatever became of the file.

        Raises:
            InputError: the file cannot be written.
            ResourceError: the disk is full.
        """
        with explained(self._path):
            self.__exit__(None, None, None)
            self._open([line for line in read_metrics(self._path) if line.stage != stage] + list(lines))

    def _open(self, kept: Sequence[MetricsLine]) -> None:
        """Begin after `kept`, the whole lines; a torn one is gone with that."""
        write_text_atomically(self._path, "".join(map(_json_line, kept)))
        self._file = self._path.open("a", encoding="utf-8", newline="\n")


def _json_line(line: MetricsLine) -> str:
    values = {key: _finite(value) if isinstance(value, float) else value for key, value in asdict(line).items()}
    return json.dumps(values, allow_nan=False) + "\n"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
