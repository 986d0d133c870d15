"""A source as records: only the cells that are needed, each record with the line or row it came from."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llm_neo.errors import InputError

Cells = tuple[object, ...]

SHOWN_CHARACTERS = 60
SHOWN_NAMES = 12
COMPARED_NAMES = 1000


@dataclass(frozen=True, slots=True)
class Table:
    """The needed columns of a source.

    Args:
        source: the file or spec, as errors name it.
        unit: what the numbers of the records count from 1, "line" or "row".
        columns: the names of the cells, in their order.
        records: number and cells of each record, in the order of the source.
        class_names: for a column of class numbers, what the source itself calls class 0, 1, ...
    """

    source: str
    unit: Literal["line", "row"]
    columns: tuple[str, ...]
    records: list[tuple[int, Cells]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def at(self, number: int) -> str:
        """Where record `number` stands, for the beginning of an error."""
        return f"{self.source}, {self.unit} {number}"


def shown(value: object) -> str:
    """The value as Python writes it, cut to about 60 characters: safe to print whatever it holds."""
    if isinstance(value, str | bytes):
        return repr(value[:SHOWN_CHARACTERS]) + ("..." if len(value) > SHOWN_CHARACTERS else "")
    written = repr(value)
    return written if len(written) <= SHOWN_CHARACTERS else written[:SHOWN_CHARACTERS] + "..."


def listed(names: Sequence[str]) -> str:
    """The names in a row, at most a dozen of them."""
    left = len(names) - SHOWN_NAMES
    return ", ".join(shown(name) for name in names[:SHOWN_NAMES]) + (f" and {left} more" if left > 0 else "")


def repeated(names: Iterable[str]) -> str:
    """The first name that an earlier one equals; there must be one."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    raise ValueError("no name occurs twice")


def is_text(text: str) -> bool:
    """Whether the text is free of NUL and can be written as UTF-8: half a surrogate pair cannot."""
    if text.isascii():
        return "\0" not in text
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def positions(wanted: Sequence[str], columns: Sequence[str], where: str, remedy: str = "") -> tuple[int, ...]:
    """The places of the `wanted` columns among a source's `columns`.

    Args:
        where: the source and line that the columns are named in, for the error.
        remedy: a sentence to add when a column is missing.

    Raises:
        InputError: a name occurs twice, or a wanted one is missing; the nearest one is named.
    """
    places = {name: place for place, name in enumerate(columns)}
    if len(places) < len(columns):
        twice = shown(repeated(columns))
        raise InputError(f"{where}: the column name {twice} occurs twice; rename one of the two")
    for name in wanted:
        if name not in places:
            folded = {column.casefold(): column for column in columns[:COMPARED_NAMES]}
            near = difflib.get_close_matches(name.casefold(), folded, n=1)
            hint = f"; did you mean {shown(folded[near[0]])}?" if near else ";"
            raise InputError(
                f"{where}: there is no column {shown(name)}{hint} The columns are {listed(columns)}.{remedy}"
            )
    return tuple(places[name] for name in wanted)
