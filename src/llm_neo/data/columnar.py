"""Arrow to records: Parquet files and what the hub's loader returns; pyarrow is imported when needed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_neo.data.table import Cells, Table, positions, shown
from llm_neo.errors import InputError


def read_parquet(path: Path, source: str, wanted: Sequence[str], columns: tuple[str, ...] | None) -> Table:
    """The `wanted` columns of a Parquet file; its rows are numbered from 1.

    Class names that the `datasets` library left in the file's metadata are kept.

    Args:
        source: what errors call the file.
        columns: must be None, since the file names its columns itself.

    Raises:
        InputError: the file is no Parquet file, has no rows, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if columns is not None:
        raise InputError(f"{source} names its columns itself; remove `columns`, which is for TSV and CSV files")
    try:
        with pq.ParquetFile(path) as file:
            positions(wanted, file.schema_arrow.names, source)
            table = file.read(columns=list(wanted))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{source} cannot be read as Parquet ({shown(str(error).strip())}); write it again") from error
    return from_arrow(table, source, wanted, _class_names(table.schema.metadata or {}))


def from_arrow(table: Any, source: str, wanted: Sequence[str], class_names: Mapping[str, tuple[str, ...]]) -> Table:
    """An Arrow table as records.

    Args:
        table: a `pyarrow.Table` that has the `wanted` columns.
        class_names: names of the class numbers, by column.

    Raises:
        InputError: there are no rows, or a text is not UTF-8.
    """
    if not table.num_rows:
        raise InputError(f"{source} has no rows; it must hold at least one")
    values = [_values(table.column(name), name, source) for name in wanted]
    records: list[tuple[int, Cells]] = list(enumerate(zip(*values, strict=True), start=1))
    return Table(source, "row", tuple(wanted), records, class_names)


def _values(column: Any, name: str, source: str) -> list[object]:
    try:
        values: list[object] = column.to_pylist()
    except ValueError as error:
        number = next(number for number, cell in enumerate(column, start=1) if not _readable(cell))
        raise InputError(
            f"{source}, row {number}: the value in column {shown(name)} cannot be read ({error})"
        ) from error
    return values


def _readable(cell: Any) -> bool:
    try:
        cell.as_py()
    except ValueError:
        return False
    return True


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """The `ClassLabel` names that the `datasets` library wrote into the schema; {} if there are none."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            column: tuple(feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
