"""Text formats to records: TSV (unquoted), CSV (RFC 4180), JSON lines and a JSON list, all UTF-8.

An empty line ends a file but is an error inside it: in a file of one column it could be an empty text.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from llm_neo.data.table import Cells, Table, positions, repeated, shown
from llm_neo.errors import InputError

Columns = tuple[str, ...] | None

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_tsv(path: Path, source: str, wanted: Sequence[str], columns: Columns) -> Table:
    """Tab-separated text: a quote is a character like any other, a line is a row.

    Args:
        source: what errors call the file.
        wanted: the columns to keep.
        columns: their names, where the file has no header line.

    Raises:
        InputError: naming line and value.
    """
    text = _decoded(path, source).replace("\r\n", "\n").rstrip("\r\n")
    rows = ((number, line.split("\t")) for number, line in enumerate(text.split("\n"), start=1))
    return _from_cells(rows, source, wanted, columns, "replace the tabs inside its text by blanks")


def read_csv(path: Path, source: str, wanted: Sequence[str], columns: Columns) -> Table:
    """Comma-separated text (RFC 4180); a record is numbered by its first line. Else as `read_tsv`."""
    text = _decoded(path, source).rstrip("\r\n")
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    try:
        rows = _csv_rows(text, source)
        return _from_cells(rows, source, wanted, columns, "put the text that holds a comma in double quotes")
    finally:
        csv.field_size_limit(limit)


def read_json_lines(path: Path, source: str, wanted: Sequence[str], columns: Columns) -> Table:
    """One JSON object a line; a key that only some lines have is null in the others. Else as `read_tsv`."""
    _refuse_columns(source, columns)
    return _from_json_lines(_decoded(path, source), source, wanted)


def read_json(path: Path, source: str, wanted: Sequence[str], columns: Columns) -> Table:
    """A JSON list of objects, numbered from 1; without the list's bracket it is read as JSON lines."""
    _refuse_columns(source, columns)
    text = _decoded(path, source)
    if not text.lstrip().startswith("["):
        return _from_json_lines(text, source, wanted)
    try:
        items = _JSON.decode(text)
    except json.JSONDecodeError as error:
        near = text[error.pos : error.pos + 100]
        raise InputError(
            f"{source}, line {error.lineno}: invalid JSON ({error.msg}) at {shown(near)}; it must be a list of objects"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: invalid JSON ({error}); it must be a list of objects") from error
    table = Table(source, "row", tuple(wanted), [])
    return _from_objects(enumerate(items, start=1), table)


def _decoded(path: Path, source: str) -> str:
    """The text of a file without its byte order mark, free of NUL and not empty."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror or error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        wrong = bytes(error.object[max(0, error.start - 20) : error.start + 20])
        kind = "it looks like UTF-16; " if data.startswith(_UTF16_MARKS) else ""
        raise InputError(f"{source}, line {line}: {wrong!r} is not UTF-8; {kind}save the file as UTF-8") from error
    nul = text.find("\0")
    if nul >= 0:
        line = text.count("\n", 0, nul) + 1
        near = text[max(0, nul - 20) : nul + 20]
        raise InputError(f"{source}, line {line}: {shown(near)} holds a NUL character; remove it from the file")
    if not text.strip():
        raise InputError(f"{source} is empty; it must hold at least one row")
    return text


def _from_cells(
    rows: Iterator[tuple[int, list[str]]], source: str, wanted: Sequence[str], columns: Columns, surplus: str
) -> Table:
    """The wanted cells of `rows`, whose first one is the header unless `columns` are given.

    Args:
        surplus: what to do about a row with too many cells.
    """
    number, names, remedy = 1, list(columns or ()), ""
    if columns is None:
        number, cells = next(rows)
        names = [cell.strip() for cell in cells]
        remedy = " If this line is a row already, name the columns in the recipe (columns: [...])."
    where = f"{source}, line {number}" if columns is None else f"{source}, columns of the recipe"
    picked = positions(wanted, names, where, remedy)
    width = len(names)
    records: list[tuple[int, Cells]] = []
    for number, cells in rows:
        if len(cells) != width:
            raise InputError(f"{source}, line {number}: {_ragged(cells, width, columns is None, surplus)}")
        records.append((number, tuple([cells[place] for place in picked])))
    if not records:
        raise InputError(f"{source} has a header line but no rows; it must hold at least one")
    return Table(source, "line", tuple(wanted), records)


def _ragged(cells: list[str], width: int, header: bool, surplus: str) -> str:
    if cells in ([], [""]):
        return "the line is empty; delete it"
    origin = "the header line" if header else "columns in the recipe"
    found = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
    remedy = "add the missing ones" if len(cells) < width else surplus
    return f"the row {shown(cells[0])} has {found}, but {origin} has {width}; {remedy}"


def _csv_rows(text: str, source: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    start = 1
    try:
        for cells in reader:
            yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        line = next(islice(io.StringIO(text, newline=""), start - 1, None), "")
        raise InputError(
            f"{source}, line {start}: {shown(line)} is not CSV as RFC 4180 has it ({error}); "
            "put a cell that holds a quote in quotes and double the quotes in it"
        ) from error


def _from_json_lines(text: str, source: str, wanted: Sequence[str]) -> Table:
    table = Table(source, "line", tuple(wanted), [])
    lines = text.replace("\r\n", "\n").rstrip().split("\n")
    return _from_objects(((number, _parsed(line, table, number)) for number, line in enumerate(lines, 1)), table)


def _parsed(line: str, table: Table, number: int) -> object:
    if not line or line.isspace():
        raise InputError(f"{table.at(number)}: the line is empty; delete it")
    try:
        return _JSON.decode(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise InputError(
            f"{table.at(number)}: {shown(line)} is invalid JSON ({reason}); each line must be one JSON object"
        ) from error


def _from_objects(items: Iterable[tuple[int, object]], table: Table) -> Table:
    """The table with the wanted values of each object; a key is missing only if no object has it."""
    seen: dict[str, None] = {}
    for number, item in items:
        if not isinstance(item, dict):
            raise InputError(f"{table.at(number)}: {shown(item)} is not a JSON object; correct or remove it")
        seen.update(dict.fromkeys(item))
        table.records.append((number, tuple([item.get(name) for name in table.columns])))
    if not table.records:
        raise InputError(f"{table.source} is an empty list; it must hold at least one row")
    positions(table.columns, tuple(seen), table.source)
    return table


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {shown(repeated(name for name, _ in pairs))} occurs twice")
    return found


def _refuse_columns(source: str, columns: Columns) -> None:
    if columns is not None:
        raise InputError(f"{source} names its columns itself; remove `columns`, which is for TSV and CSV files")


_JSON = json.JSONDecoder(object_pairs_hook=_distinct)
