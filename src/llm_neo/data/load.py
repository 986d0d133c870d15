"""The data section of a recipe to rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llm_neo.data import notes
from llm_neo.data.labels import Classes, LabelColumn, index_labels, infer_classes, read_labels
from llm_neo.data.rows import Dataset, Row, Split
from llm_neo.data.source import read_source
from llm_neo.data.split import hold_out, sample, text_key
from llm_neo.data.table import Table, is_text, shown
from llm_neo.errors import InputError
from llm_neo.progress import Progress, SilentProgress
from llm_neo.recipe.tree import Data, HeldOut, LabelledSource, ScoreLabel, TextSource


def load_data(data: Data, progress: Progress = SilentProgress()) -> Dataset:
    """Read, check and split the rows of a recipe.

    The classes are those of all labelled rows of the training source, whatever its limit. A limit takes a
    deterministic pseudo-random sample (`split.sample`), after the split.

    Returns:
        The rows; `notes` tells what was dropped, what contradicts and what overlaps.

    Raises:
        InputError: a source cannot be read, or a row cannot be used; names file, line and value.
    """
    source = _read(data.train, progress)
    classes = Classes(data.classes, ordered=True) if data.classes else infer_classes(source.table, source.column)
    rows = source.rows("train", classes)
    if data.train.label is not None:
        _refuse_one_class(rows, source, classes)
    extra = [] if data.unlabelled is None else list(read_texts(data.unlabelled, "unlabelled", progress).rows)
    if isinstance(data.validation, HeldOut):
        rows, extra, validation, facts = _held_out(rows, extra, data.validation, source)
        unit: str = source.table.unit
    else:
        validation, unit, facts = _labelled(data.validation, "validation", classes, progress)
    spec = source.spec if data.unlabelled is None else f"{source.spec} + {data.unlabelled.source}"
    train = Split("train", (*sample(rows, data.train.limit), *extra), spec)
    doubts, said = notes.doubts((train, source.table.unit), (validation, unit))
    facts = [
        *source.notes("train"),
        *facts,
        *said,
        *notes.class_counts(train, classes.names),
        *notes.class_counts(validation, classes.names),
    ]
    return Dataset(train, validation, classes.names, tuple(facts), doubts)


def read_rows(
    source: LabelledSource,
    classes: tuple[str, ...],
    name: str = "data",
    progress: Progress = SilentProgress(),
) -> Split:
    """Labelled rows for classes that are known already, as a finished run's are.

    Args:
        classes: in label order; integer labels are indices into them unless they are numbers themselves.
        name: of the split and of its row ids.
        progress: is told what was dropped.

    Raises:
        InputError: as for `load_data`; also for a row without a label.
    """
    if source.label is None:
        raise InputError(f"{source.source}: rows to measure on need labels; name the label column")
    split, unit, facts = _labelled(source, name, Classes(classes, ordered=True), progress)
    facts += notes.contradictions(split, unit)[1]
    for fact in facts:
        progress.say(fact)
    return split


def read_texts(source: TextSource, name: str = "data", progress: Progress = SilentProgress()) -> Split:
    """Rows without labels: the source need not have a label column, and one that it has is not read.

    Raises:
        InputError: as for `load_data`.
    """
    columns = _text_columns(source)
    table = read_source(source, columns, progress)
    rows = _rows(name, table, columns, [None] * len(table.records))
    return Split(name, tuple(sample(rows, source.limit)), source.source)


@dataclass(frozen=True, slots=True)
class _Source:
    """A labelled source as read, before its labels are matched with the classes."""

    spec: str
    texts: tuple[str, ...]
    label: str | ScoreLabel | None
    table: Table
    column: LabelColumn
    dropped: int

    def rows(self, name: str, classes: Classes) -> list[Row]:
        return _rows(name, self.table, self.texts, index_labels(self.table, self.column, classes))

    def notes(self, name: str) -> list[str]:
        if not isinstance(self.label, ScoreLabel):
            return []
        return notes.dropped(name, self.dropped, self.label)


def _read(source: LabelledSource, progress: Progress) -> _Source:
    label = source.label.column if isinstance(source.label, ScoreLabel) else source.label
    texts = _text_columns(source)
    table = read_source(source, texts if label is None else (*texts, label), progress)
    kept, column = read_labels(table, source.label)
    if not kept.records:
        raise InputError(
            f"{source.source}: every score in column {shown(label)} lies between the thresholds; narrow them"
        )
    return _Source(source.source, texts, source.label, kept, column, len(table.records) - len(kept.records))


def _text_columns(source: TextSource) -> tuple[str, ...]:
    return (source.text,) if isinstance(source.text, str) else source.text


def _rows(name: str, table: Table, columns: Sequence[str], labels: Sequence[int | None]) -> list[Row]:
    """A row of each record; its first cells are those of the text `columns`."""
    rows: list[Row] = []
    for (number, cells), label in zip(table.records, labels, strict=True):
        text = tuple([_text(cell, column, table, number) for cell, column in zip(cells, columns, strict=False)])
        rows.append(Row(f"{name}:{number}", text, label))
    return rows


def _text(cell: object, column: str, table: Table, number: int) -> str:
    if isinstance(cell, str):
        text = cell.strip()
        if text and is_text(text):
            return text
    reason = "must be a string; write it as one, or name another column"
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        reason = "is empty; fill it in, or delete the row"
    elif isinstance(cell, str):
        reason = "holds a NUL or half a surrogate pair; remove it"
    raise InputError(f"{table.at(number)}: the text {shown(cell)} in column {shown(column)} {reason}")


def _labelled(source: LabelledSource, name: str, classes: Classes, progress: Progress) -> tuple[Split, str, list[str]]:
    """A split to measure on, each row of which must have a label; the unit that its ids count; notes."""
    read = _read(source, progress)
    rows = read.rows(name, classes)
    for row, (number, _) in zip(rows, read.table.records, strict=True):
        if row.label is None:
            raise InputError(
                f"{read.table.at(number)}: the label of {shown(row.text[0])} is missing; rows to measure on need one"
            )
    return Split(name, tuple(sample(rows, source.limit)), source.source), read.table.unit, read.notes(name)


def _held_out(
    rows: list[Row], extra: list[Row], held_out: HeldOut, source: _Source
) -> tuple[list[Row], list[Row], Split, list[str]]:
    """Rows to learn from, extra rows that hold no text of validation, validation, and notes."""
    learn, held = hold_out(rows, held_out.fraction_of_train)
    if not learn or not held:
        where, remedy = ("left for training", "lower") if held else ("held out for validation", "raise")
        raise InputError(
            f"{source.spec}: no row is {where} at data.validation.fraction_of_train = "
            f"{held_out.fraction_of_train:g} of {len(rows):,} rows; {remedy} it, or bring more rows"
        )
    texts = {text_key(row.text) for row in held}
    kept = [row for row in extra if text_key(row.text) not in texts]
    share = 100 * len(held) / len(rows)
    facts = [f"validation: {notes.plural(len(held), 'row')} ({share:.1f} %) of the training source held out"]
    removed = len(rows) - len(learn) - len(held) + len(extra) - len(kept)
    if removed:
        facts.append(f"train: {notes.plural(removed, 'row')} without a label removed, validation holds the text")
    validation = [replace(row, id=f"validation:{row.id.rpartition(':')[2]}") for row in held]
    return learn, kept, Split("validation", tuple(sample(validation, held_out.limit)), source.spec), facts


def _refuse_one_class(rows: list[Row], source: _Source, classes: Classes) -> None:
    """Nothing can be learnt from labelled rows without a label, or of one class."""
    seen = {row.label for row in rows if row.label is not None}
    column = shown(source.table.columns[-1])
    if not seen:
        raise InputError(
            f"{source.spec}: no row has a label in column {column}; name another one, or set data.train.label to null"
        )
    if len(seen) == 1:
        only = classes.names[next(iter(seen))]
        raise InputError(
            f"{source.spec}: every label in column {column} is {shown(only)}; training needs at least two classes: "
            "add rows of another, or name another column"
        )
