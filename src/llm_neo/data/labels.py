"""Label cells to class indices: integers, words, booleans, class numbers with names, thresholded scores."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from llm_neo.data.table import Cells, Table, is_text, listed, shown
from llm_neo.errors import InputError
from llm_neo.recipe.tree import ScoreLabel

Value = int | str | None

SCORE_CLASSES = ("negative", "positive")
BOOLEAN_CLASSES = ("false", "true")
MAX_INFERRED_CLASSES = 1000

_INTEGER = re.compile(r"(0|-?[1-9][0-9]{0,17})(\.0+)?")
_FRACTION = re.compile(r"[+-]?[0-9]*\.[0-9]+(e[+-]?[0-9]+)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of a run.

    Args:
        names: in label order.
        ordered: the order has a meaning outside this run (given in the recipe, or by the source), so that an
            integer label may stand for the name at its index.
    """

    names: tuple[str, ...]
    ordered: bool


@dataclass(frozen=True, slots=True)
class LabelColumn:
    """The labels of a table's records before they are matched with the run's classes.

    Args:
        values: one per record; None = no label. With `names` each integer is an index into them.
        names: what the source itself calls the classes 0, 1, ...; None = it gives no names.
    """

    values: list[Value]
    names: tuple[str, ...] | None


def read_labels(table: Table, label: str | ScoreLabel | None) -> tuple[Table, LabelColumn]:
    """The labels in the last cell of each record (no cell if `label` is None).

    Returns:
        The table, less the records whose score lies between the thresholds, and its labels.

    Raises:
        InputError: a cell can be no label; names line and value.
    """
    if label is None:
        return table, LabelColumn([None] * len(table.records), None)
    if isinstance(label, ScoreLabel):
        return _scored(table, label)
    cells = [cells[-1] for _, cells in table.records]
    names = table.class_names.get(label)
    if names is not None:
        return table, LabelColumn(_each(table, lambda cell: _class_number(cell, len(names))), names)
    if {bool} == {type(cell) for cell in cells if cell is not None}:
        numbers: list[Value] = [None if cell is None else int(bool(cell)) for cell in cells]
        return table, LabelColumn(numbers, BOOLEAN_CLASSES)
    return table, LabelColumn(_each(table, plain), None)


def infer_classes(table: Table, column: LabelColumn) -> Classes:
    """The source's own class names, else the sorted values: integers by size, words by letter.

    Raises:
        InputError: the values are no classes: fractions, or more than a thousand different ones.
    """
    if column.names is not None:
        return Classes(column.names, ordered=True)
    seen = {value for value in column.values if value is not None}
    for (number, _), value in zip(table.records, column.values, strict=True):
        if isinstance(value, str) and _FRACTION.fullmatch(value):
            raise InputError(
                f"{table.at(number)}: the label {shown(value)} is a score; give it thresholds, as in label: "
                "{column: ..., negative_below: ..., positive_above: ...}"
            )
    if len(seen) > MAX_INFERRED_CLASSES:
        name, example = table.columns[-1], next(value for value in column.values if value is not None)
        raise InputError(
            f"{table.source}: the label column {shown(name)} has {len(seen):,} different values, such as "
            f"{shown(example)}; name another column, or list the classes in data.classes"
        )
    integers = sorted(value for value in seen if isinstance(value, int))
    if len(integers) == len(seen):
        return Classes(tuple(map(str, integers)), ordered=integers == list(range(len(integers))))
    return Classes(tuple(sorted(map(str, seen))), ordered=False)


def index_labels(table: Table, column: LabelColumn, classes: Classes) -> list[int | None]:
    """The class index of each record; None = no label.

    A word must be the name of a class. An integer is the name of a class if any class is named by a number,
    else the index of one (of ordered classes).

    Raises:
        InputError: a label is unknown; names line, value and the known classes.
    """
    if column.names is not None:
        indices: dict[Value, int] = dict(enumerate(_translation(table, column.names, classes)))
    else:
        indices = {_word(name): index for index, name in reversed(list(enumerate(classes.names)))}
        if classes.ordered and not any(isinstance(name, int) for name in indices):
            indices |= {index: index for index in range(len(classes.names))}
    found: list[int | None] = []
    for (number, cells), value in zip(table.records, column.values, strict=True):
        index = None if value is None else indices.get(value)
        if index is None and value is not None:
            raise InputError(
                f"{table.at(number)}: the label {shown(cells[-1])} is none of the classes "
                f"{listed(classes.names)}; correct the row, or list all classes in data.classes"
            )
        found.append(index)
    return found


def plain(cell: object) -> Value:
    """A label cell in one form: integers (1, "1", 1.0, "1.0") as int, words stripped; None = no label.

    Raises:
        ValueError: the cell can be no label; says why.
    """
    if cell is None:
        return None
    if isinstance(cell, bool):
        return BOOLEAN_CLASSES[cell]
    if isinstance(cell, int):
        return cell
    if isinstance(cell, float):
        if math.isnan(cell):
            return None
        if not cell.is_integer():
            raise ValueError("is no whole number; for a score, give thresholds (negative_below, positive_above)")
        return int(cell)
    if not isinstance(cell, str):
        raise ValueError(f"is a {type(cell).__name__}; a label must be an integer or a word")
    if not is_text(cell):
        raise ValueError("holds a NUL or half a surrogate pair; remove it")
    return _word(cell)


def _word(text: str) -> Value:
    word = text.strip()
    match = _INTEGER.fullmatch(word)
    return int(match[1]) if match else word or None


def _each(table: Table, convert: Callable[[object], Value]) -> list[Value]:
    """`convert` for the last cell of each record; cells that are equal are converted once."""
    known: dict[tuple[type, object], Value] = {}
    values: list[Value] = []
    for number, cells in table.records:
        cell = cells[-1]
        try:
            # 1, 1.0 and True are equal keys; a list or an object is no key at all.
            key = (type(cell), cell if isinstance(cell, str | int | float) else repr(cell))
            if key not in known:
                known[key] = convert(cell)
        except ValueError as error:
            raise InputError(f"{table.at(number)}: the label {shown(cell)} {error}") from error
        values.append(known[key])
    return values


def _class_number(cell: object, count: int) -> int | None:
    if cell is None or cell == -1:
        return None
    if not isinstance(cell, int) or not 0 <= cell < count:
        raise ValueError(f"is no class number from 0 to {count - 1} (-1 = no label)")
    return cell


def _scored(table: Table, label: ScoreLabel) -> tuple[Table, LabelColumn]:
    kept: list[tuple[int, Cells]] = []
    values: list[Value] = []
    for number, cells in table.records:
        cell = cells[-1]
        empty = cell is None or (isinstance(cell, str) and not cell.strip())
        score = None if empty else _score(cell)
        if score is None and not empty:
            raise InputError(f"{table.at(number)}: the score {shown(cell)} is no finite number; correct it")
        if score is None or not label.negative_below < score < label.positive_above:
            kept.append((number, cells))
            values.append(None if score is None else int(score >= label.positive_above))
    return replace(table, records=kept), LabelColumn(values, SCORE_CLASSES)


def _score(cell: object) -> float | None:
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        return None
    try:
        score = float(cell)
    except (ValueError, OverflowError):
        return None
    return score if math.isfinite(score) else None


def _translation(table: Table, names: tuple[str, ...], classes: Classes) -> list[int]:
    """The run's class index of each of the source's own classes: by name, or in order if all names differ."""
    common = set(names) & set(classes.names)
    if common == set(names):
        return [classes.names.index(name) for name in names]
    if not common and classes.ordered and len(names) == len(classes.names):
        return list(range(len(names)))
    raise InputError(
        f"{table.source}: its label column {shown(table.columns[-1])} has the classes {listed(names)}, which "
        f"do not match {listed(classes.names)}; list the source's names in data.classes, or rename all"
    )
