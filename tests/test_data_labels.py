"""Label cells to class indices, for every kind of label and every kind of class list."""

import pytest

from llm_neo.data.labels import (
    SCORE_CLASSES,
    Classes,
    LabelColumn,
    index_labels,
    infer_classes,
    plain,
    read_labels,
)
from llm_neo.data.table import Table
from llm_neo.errors import InputError
from llm_neo.recipe.tree import ScoreLabel

NAMED = Classes(("bad", "good"), ordered=True)


def table_of(*cells: object, names: tuple[str, ...] | None = None) -> Table:
    """A table whose label column is `cells`; the first one stands in line 2."""
    records = [(number, ("text", cell)) for number, cell in enumerate(cells, start=2)]
    return Table("a.tsv", "line", ("text", "label"), records, {"label": names} if names else {})


def labels(table: Table, classes: Classes | None = None) -> tuple[tuple[str, ...], list[int | None]]:
    """The classes (inferred if None) and the index of each row."""
    table, column = read_labels(table, "label")
    classes = classes or infer_classes(table, column)
    return classes.names, index_labels(table, column, classes)


def test_integers_are_classes_by_size() -> None:
    assert labels(table_of("10", "9", "-1", "10")) == (("-1", "9", "10"), [2, 1, 0, 2])
    assert labels(table_of(1, 0, None, 1.0)) == (("0", "1"), [1, 0, None, 1])
    assert labels(table_of("1.0", "0.0", "", " 1 ")) == (("0", "1"), [1, 0, None, 1])


def test_words_are_classes_by_letter() -> None:
    assert labels(table_of("good", "bad ", "  ", "good")) == (("bad", "good"), [1, 0, None, 1])
    assert labels(table_of("1", "other", "007")) == (("007", "1", "other"), [1, 2, 0])


def test_booleans_are_false_then_true_and_may_index() -> None:
    assert labels(table_of(True, False, None)) == (("false", "true"), [1, 0, None])
    assert labels(table_of(True, False), NAMED)[1] == [1, 0]
    assert labels(table_of(True, "maybe")) == (("maybe", "true"), [1, 0])


def test_integers_index_given_names_unless_those_are_numbers() -> None:
    assert labels(table_of("1", "0", "good"), NAMED)[1] == [1, 0, 1]
    assert labels(table_of("1", "0"), Classes(("1", "0"), ordered=True))[1] == [0, 1]
    with pytest.raises(InputError, match=r"a.tsv, line 3: the label '2' is none of the classes 'bad', 'good'"):
        labels(table_of("1", "2"), NAMED)
    with pytest.raises(InputError, match="line 2: the label '2' is none of the classes '0', '1'"):
        labels(table_of("2"), Classes(("0", "1"), ordered=True))


def test_the_order_of_inferred_words_is_no_meaning_for_integers() -> None:
    assert infer_classes(*read_labels(table_of("good", "bad"), "label")) == Classes(("bad", "good"), ordered=False)
    with pytest.raises(InputError, match="the label '1' is none of the classes 'bad', 'good'"):
        labels(table_of("1"), Classes(("bad", "good"), ordered=False))
    assert infer_classes(*read_labels(table_of("0", "1"), "label")).ordered
    assert not infer_classes(*read_labels(table_of("1", "2"), "label")).ordered


def test_class_numbers_of_a_source_go_by_name() -> None:
    assert labels(table_of(1, -1, 0, None, names=("x", "y"))) == (("x", "y"), [1, None, 0, None])
    assert labels(table_of(1, 0, names=("good", "bad")), NAMED)[1] == [0, 1]
    assert labels(table_of(1, 0, names=("x", "y")), NAMED)[1] == [1, 0]
    for classes in (
        Classes(("bad", "x"), True),
        Classes(("a", "b", "c"), True),
        Classes(("bad", "good"), False),
    ):
        with pytest.raises(InputError, match=r"a.tsv: its label column 'label' has the classes 'x', 'y'"):
            labels(table_of(1, 0, names=("x", "y")), classes)
    for cell in (2, -2, "x", 1.5):
        with pytest.raises(InputError, match=r"line 2: the label .* is no class number from 0 to 1"):
            labels(table_of(cell, names=("x", "y")))


def test_scores_become_two_classes_and_those_between_are_dropped() -> None:
    rule = ScoreLabel(column="label", negative_below=-0.5, positive_above=0.5)
    table, column = read_labels(table_of("-0.5", "0.5", "0.49", "3", -1, "", None), rule)
    assert [number for number, _ in table.records] == [2, 3, 5, 6, 7, 8]
    assert column == LabelColumn([0, 1, 1, 0, None, None], SCORE_CLASSES)
    assert infer_classes(table, column) == Classes(("negative", "positive"), ordered=True)
    assert index_labels(table, column, Classes(("positive", "negative"), True)) == [1, 0, 0, 1, None, None]
    assert index_labels(table, column, NAMED) == [0, 1, 1, 0, None, None]


@pytest.mark.parametrize("cell", ["good", "nan", float("nan"), "inf", 10**400, True, [1], "1,5"])
def test_a_score_must_be_a_finite_number(cell: object) -> None:
    rule = ScoreLabel(column="label", negative_below=0, positive_above=1)
    with pytest.raises(InputError, match=r"a.tsv, line 3: the score .* is no finite number"):
        read_labels(table_of("0", cell), rule)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (0.5, "0.5 is no whole number; for a score, give thresholds"),
        (float("inf"), "inf is no whole number"),
        ([1], r"\[1\] is a list; a label must be an integer or a word"),
        ({"a": 1}, "is a dict"),
        ("a\0b", r"'a\\x00b' holds a NUL"),
        ("\ud800", r"'\\ud800' holds a NUL or half a surrogate pair"),
    ],
)
def test_what_can_be_no_label_is_named(cell: object, words: str) -> None:
    with pytest.raises(InputError, match=r"a.tsv, line 3: the label " + ".*" + words):
        read_labels(table_of("0", cell), "label")


def test_scores_and_texts_are_not_taken_for_classes() -> None:
    with pytest.raises(InputError, match=r"line 3: the label '0.25' is a score; give it thresholds"):
        labels(table_of("1", "0.25", "-.5e-3"))
    with pytest.raises(InputError, match=r"'label' has 1,001 different values, such as 'word 0'"):
        labels(table_of(*[None, *[f"word {number}" for number in range(1001)]]))
    with pytest.raises(InputError, match=r"'label' has 1,001 different values, such as 0"):
        labels(table_of(*range(1001)))


def test_a_source_without_a_label_column_has_no_labels() -> None:
    table = table_of("1", "0")
    assert read_labels(table, None) == (table, LabelColumn([None, None], None))
    assert infer_classes(table, LabelColumn([None, None], None)).names == ()


def test_not_a_number_is_no_label_and_big_integers_stay() -> None:
    assert plain(float("nan")) is None
    assert plain("9" * 18) == 10**18 - 1
    assert plain("9" * 5000) == "9" * 5000
    assert plain(False) == "false"
