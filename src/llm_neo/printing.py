"""What may be shown: no control character that steers a terminal, no secret of the environment or of an address."""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO, cast

_SECRET_NAMES = re.compile(
    r"(?:^|_)(?:TOKENS?|SECRETS?|PASS(?:WORD|WD)?|(?:API|ACCESS|PRIVATE)_?KEY)(?:_|$)", re.IGNORECASE
)
_SHORTEST_SECRET = 6
"""Shorter values are words that any text may hold."""
_LOGIN = re.compile(r"(?<=://)[^\s/@'\"]+@")
_HIDDEN = "***"


def printable(text: str) -> str:
    """The text with control characters written out; line breaks stay."""
    return "\n".join(map(_printable_line, text.split("\n")))


def one_line(text: str) -> str:
    """The text on one line, with control characters written out."""
    return _printable_line(" ".join(text.split()))


def redacted(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text without secrets: values of variables such as HF_TOKEN, and who logs in in `https://who:what@host`.

    Args:
        environment: the variables to go by; None for those of this process.
    """
    environment = os.environ if environment is None else environment
    text = _LOGIN.sub(f"{_HIDDEN}@", text) if "://" in text else text
    for name, value in environment.items():
        if len(value) >= _SHORTEST_SECRET and value in text and _SECRET_NAMES.search(name):
            text = text.replace(value, _HIDDEN)
    return text


class _Redacting:
    """A stream through which no secret passes; whatever else is asked of it, the stream below answers."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text without its secrets."""
        return self._stream.write(redacted(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def redacted_stderr() -> Iterator[None]:
    """Keep secrets out of all that goes to stderr: messages, tracebacks, what libraries log."""
    before = sys.stderr
    sys.stderr = cast(TextIO, _Redacting(before))
    try:
        yield
    finally:
        sys.stderr = before


def _printable_line(text: str) -> str:
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
