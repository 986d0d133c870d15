"""What every later stage learns from and measures on: rows, splits, the data set."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Row:
    """One text, or a pair of texts, with its label.

    Args:
        id: "SPLIT:LINE", where LINE counts the lines (Parquet and hub: rows) of the source from 1; a limit
            or a changed order of the run leaves it as it is.
        text: one or two strings, stripped and not empty.
        label: the index of the class in `Dataset.classes`; None = the row has no label.
    """

    id: str
    text: tuple[str, ...]
    label: int | None


@dataclass(frozen=True)
class Split:
    """Rows in the order of their source.

    Args:
        name: what the ids begin with, such as "train" or "validation".
        rows: the rows, after any limit.
        source: the recipe's spec of where they came from.
    """

    name: str
    rows: tuple[Row, ...]
    source: str

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hexadecimal) over the ids and texts in order: equal exactly when both are."""
        return _sha256(part for row in self.rows for part in (row.id, str(len(row.text)), *row.text))

    @cached_property
    def label_fingerprint(self) -> str:
        """sha256 (hexadecimal) over the ids and labels in order."""
        return _sha256(part for row in self.rows for part in (row.id, str(row.label)))


@dataclass(frozen=True, slots=True)
class Doubts:
    """What may make the figures of a run flatter, or its training worse, than the rows seem to promise, counted.

    Args:
        contradicting_train_texts: distinct training texts that occur with different labels.
        contradicting_validation_texts: the same of the validation texts.
        shared_texts: distinct validation texts that are training texts too.
    """

    contradicting_train_texts: int = 0
    contradicting_validation_texts: int = 0
    shared_texts: int = 0


@dataclass(frozen=True)
class Dataset:
    """The rows to learn from and the rows to measure on.

    Args:
        train: rows to learn from; those of `data.unlabelled` follow at the end, without a label.
        validation: rows to measure on; each has a label.
        classes: the names of the classes in label order.
        notes: facts about the data to print, one sentence each.
        doubts: those of the facts that speak against the figures, counted.
    """

    train: Split
    validation: Split
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    doubts: Doubts = Doubts()


def _sha256(parts: Iterable[str]) -> str:
    # Each part is preceded by its length, so that no two lists of parts give the same bytes.
    framed = "".join([f"{len(part)}:{part}" for part in parts])
    return hashlib.sha256(framed.encode("utf-8", "surrogatepass")).hexdigest()
