"""One recipe over another: what merges, what replaces, what makes way."""

from typing import Any

import pytest

from llm_neo.recipe.layers import merge, read_overrides


def test_mappings_merge_and_everything_else_replaces() -> None:
    base = {"a": {"b": 1, "c": (1, 2)}, "d": 1, "e": None}
    layer = {"a": {"c": (3,)}, "d": {"x": 1}, "e": {"y": 2}}
    assert merge(base, layer) == {"a": {"b": 1, "c": (3,)}, "d": {"x": 1}, "e": {"y": 2}}
    assert base == {"a": {"b": 1, "c": (1, 2)}, "d": 1, "e": None}


@pytest.mark.parametrize(
    ("layer", "teacher"),
    [
        ({"prompt": {"template": "t"}}, {"model": "m", "prompt": {"template": "t"}}),
        ({"adapter": "folder"}, {"model": "m", "adapter": "folder"}),
        ({"fine_tune": {"epochs": 2}}, {"model": "m", "fine_tune": {"epochs": 2, "batch_size": 4}}),
        ({"fine_tune": None}, {"model": "m", "fine_tune": None}),
        ({"prompt": None, "adapter": "f"}, {"model": "m", "prompt": None, "adapter": "f"}),
        ({"model": "n"}, {"model": "n", "fine_tune": {"epochs": 1, "batch_size": 4}}),
        (
            {"prompt": {"template": "t"}, "fine_tune": {"epochs": 2}},
            {"model": "m", "prompt": {"template": "t"}, "fine_tune": {"epochs": 2, "batch_size": 4}},
        ),
    ],
)
def test_a_way_to_a_teacher_replaces_the_inherited_one(layer: dict[str, Any], teacher: dict[str, Any]) -> None:
    base = {"teacher": {"model": "m", "fine_tune": {"epochs": 1, "batch_size": 4}}}
    assert merge(base, {"teacher": layer}) == {"teacher": teacher}


@pytest.mark.parametrize(
    ("base", "layer", "merged"),
    [
        ({"fraction_of_train": 0.1, "limit": 9}, {"source": "v.tsv"}, {"source": "v.tsv"}),
        ({"source": "v.tsv", "text": "t"}, {"fraction_of_train": 0.2}, {"fraction_of_train": 0.2}),
        ({"source": "v.tsv", "text": "t"}, {"limit": 5}, {"source": "v.tsv", "text": "t", "limit": 5}),
        ({"fraction_of_train": 0.1}, {"limit": 5}, {"fraction_of_train": 0.1, "limit": 5}),
        ({"source": "v.tsv", "text": "t"}, {"text": "u"}, {"source": "v.tsv", "text": "u"}),
    ],
)
def test_validation_of_the_other_kind_replaces_the_whole(
    base: dict[str, Any], layer: dict[str, Any], merged: dict[str, Any]
) -> None:
    assert merge({"data": {"validation": base}}, {"data": {"validation": layer}}) == {"data": {"validation": merged}}


def test_column_names_go_with_their_file() -> None:
    base = {"data": {"train": {"source": "a.tsv", "columns": ("x", "y"), "text": "x"}}}
    other = merge(base, {"data": {"train": {"source": "b.tsv"}}})
    assert other == {"data": {"train": {"source": "b.tsv", "text": "x"}}}
    renamed = merge(base, {"data": {"train": {"source": "b.tsv", "columns": ("x", "z")}}})
    assert renamed == {"data": {"train": {"source": "b.tsv", "columns": ("x", "z"), "text": "x"}}}
    same = merge(base, {"data": {"train": {"source": "a.tsv", "limit": 1}}})
    assert same["data"]["train"]["columns"] == ("x", "y")


def test_overrides_make_one_layer_in_which_the_later_wins() -> None:
    words = ["a.b=1", "a.b=2", "a.c=[x, 3]", "d=null", "d.e=5e-5", "f='yes'", "g=a=b"]
    assert read_overrides(words) == (
        {"a": {"b": 2, "c": ("x", 3)}, "d": {"e": 5e-5}, "f": "yes", "g": "a=b"},
        [],
    )


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("epochs", 'epochs: the override "epochs" cannot be read: it must be a dotted key, an equals sign'),
        ("=3", '(no key): the override "=3" cannot be read: it must be a dotted key, an equals sign'),
        ("a..b=3", 'a..b: the override "a..b=3" cannot be read: it must be a dotted key'),
        ("a. b=3", 'a. b: the override "a. b=3" cannot be read: it must be a dotted key'),
        ("a=", 'a: the override "a=" cannot be read: it has no value; write a=null to switch it off'),
        ("a=[1", 'a: the override "a=[1" cannot be read: line 1, column 3: not valid YAML'),
        ("a=\udcff", "a: the override"),
    ],
)
def test_a_word_that_is_no_override_is_named_and_the_others_still_count(word: str, problem: str) -> None:
    layer, problems = read_overrides(["x=1", word, "y=2"])
    assert layer == {"x": 1, "y": 2}
    assert len(problems) == 1
    assert problems[0].startswith(problem)
