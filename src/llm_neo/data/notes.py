"""Facts about the rows that a user should see before trusting a figure, one sentence each."""

from collections import Counter
from collections.abc import Sequence

from llm_neo.data.rows import Doubts, Row, Split
from llm_neo.data.split import text_key
from llm_neo.recipe.tree import ScoreLabel

SHOWN_CLASSES = 12


def class_counts(split: Split, classes: Sequence[str]) -> list[str]:
    """How many rows each class has, how many have no label, and which classes have no row."""
    counts = Counter(row.label for row in split.rows)
    parts = [f"{name} {counts[index]:,}" for index, name in enumerate(classes) if counts[index]]
    if len(parts) > SHOWN_CLASSES:
        parts[SHOWN_CLASSES:] = [f"{len(parts) - SHOWN_CLASSES} more"]
    parts += [f"without a label {counts[None]:,}"] if counts[None] else []
    notes = [f"{split.name}: {plural(len(split.rows), 'row')} ({', '.join(parts)})"]
    absent = [name for index, name in enumerate(classes) if not counts[index]]
    if absent and counts[None] < len(split.rows):
        names = ", ".join(absent[:SHOWN_CLASSES])
        notes.append(f"{split.name}: {plural(len(absent), 'class', 'classes')} without a row: {names}")
    return notes


def dropped(name: str, rows: int, label: ScoreLabel) -> list[str]:
    """How many rows of the source had a score between the thresholds."""
    if not rows:
        return []
    between = f"between {label.negative_below:g} and {label.positive_above:g}"
    return [f"{name}: {plural(rows, 'row')} dropped, {label.column} {between}"]


def doubts(train: tuple[Split, str], validation: tuple[Split, str]) -> tuple[Doubts, list[str]]:
    """What speaks against the figures, counted and said.

    Args:
        train: with what its ids count, "line" or "row".
        validation: the same.
    """
    torn_train, said_of_train = contradictions(*train)
    torn_validation, said_of_validation = contradictions(*validation)
    shared, said_of_shared = overlap(train[0], validation[0])
    return Doubts(torn_train, torn_validation, shared), [*said_of_train, *said_of_validation, *said_of_shared]


def contradictions(split: Split, unit: str) -> tuple[int, list[str]]:
    """How many texts occur with different labels, and where the first of them does."""
    first: dict[str, Row] = {}
    other: dict[str, Row] = {}
    for row in split.rows:
        if row.label is not None:
            key = text_key(row.text)
            if first.setdefault(key, row).label != row.label:
                other.setdefault(key, row)
    if not other:
        return 0, []
    key, second = next(iter(other.items()))
    where = f"{unit}s {_line(first[key])} and {_line(second)}"
    return len(other), [
        f"{split.name}: {plural(len(other), 'text')} with different labels, such as {where} of the source"
    ]


def overlap(train: Split, validation: Split) -> tuple[int, list[str]]:
    """How many distinct texts of validation are in train too."""
    keys = {text_key(row.text) for row in validation.rows}
    both = len(keys.intersection(text_key(row.text) for row in train.rows))
    if not both:
        return 0, []
    return both, [f"validation: {both:,} of {plural(len(keys), 'text')} in train too, so the figures may flatter"]


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun, as in "1 row" or "2,000 rows"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _line(row: Row) -> str:
    return row.id.rpartition(":")[2]
