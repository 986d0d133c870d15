"""Every fault of a recipe in one sentence: dotted key, value, rule, remedy."""

from typing import Any

import pytest

from llm_neo.errors import InputError, RecipeError
from llm_neo.recipe import load_recipe
from llm_neo.recipe.problems import faults

SOURCE = {"source": "t.tsv", "text": "text", "label": "label"}


def document(**changes: Any) -> dict[str, Any]:
    """A valid recipe with top-level keys replaced."""
    whole = {
        "data": {"train": SOURCE, "validation": {"fraction_of_train": 0.1}},
        "teacher": {"model": "m"},
        "student": {"model": "s"},
        "output": "runs/x",
    }
    return whole | changes


def test_a_valid_recipe_has_no_faults() -> None:
    assert faults(document()) == []


PAIR = {"source": "t.tsv", "text": ("a", "b"), "label": "label"}
PROMPT = {"template": "{text}", "label_words": ("x", "y")}
HELD_OUT = {"fraction_of_train": 0.1}
NO_LABEL = {"source": "t.tsv", "text": "text"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"train": {"epochs": 0}},
            "train.epochs: 0 is not allowed; it must be greater than 0; the default is 1",
        ),
        ({"train": {"epochs": 1.0}}, "train.epochs: 1.0 is not allowed; it must be a whole number"),
        ({"train": {"epochs": True}}, "train.epochs: true is not allowed; it must be a whole number"),
        ({"train": {"epochs": None}}, "train.epochs: null is not allowed; it must be a whole number"),
        (
            {"train": {"learning_rate": "5e-5"}},
            'train.learning_rate: "5e-5" is not allowed; it must be a number; take the quotes off',
        ),
        (
            {"train": {"learning_rate": "fast"}},
            'train.learning_rate: "fast" is not allowed; it must be a number; the default is 5e-05',
        ),
        (
            {"train": {"warmup_fraction": float("nan")}},
            "train.warmup_fraction: NaN is not allowed; it must be a finite number (share of all steps)",
        ),
        (
            {"train": {"warmup_fraction": 1}},
            "train.warmup_fraction: 1 is not allowed; it must be smaller than 1",
        ),
        (
            {"train": {"max_gradient_norm": float("inf")}},
            "train.max_gradient_norm: Infinity is not allowed; it must be a finite number (null =",
        ),
        ({"train": {"weight_decay": -1}}, "train.weight_decay: -1 is not allowed; it must be at least 0"),
        (
            {"loss": {"hard_label_weight": 2}},
            "loss.hard_label_weight: 2 is not allowed; it must be at most 1",
        ),
        (
            {"train": {"schedule": "step"}},
            "train.schedule: \"step\" is not allowed; it must be one of 'linear', 'cosine' or 'constant'",
        ),
        (
            {"runtime": {"trust_remote_code": 1}},
            "runtime.trust_remote_code: 1 is not allowed; it must be true or false",
        ),
        (
            {"output": 5},
            "output: 5 is not allowed; it must be text (the run directory); if it is meant as text, put",
        ),
        ({"output": ""}, 'output: "" is not allowed; it must be text that is not empty (the run directory)'),
        ({"trackers": "tensorboard"}, 'trackers: "tensorboard" is not allowed; it must be a list'),
        ({"trackers": ("wandb",)}, "trackers[0]: \"wandb\" is not allowed; it must be one of 'tensorboard'"),
        ({"loss": 5}, "loss: 5 is not a section; write its keys below it: hard_label_weight, temperature"),
        ({"teacher": {}}, "teacher.model: missing (hub id[@revision] | local folder"),
        (
            {"student": {"model": "s", "layers": -1}},
            "student.layers: -1 does not fit; give N for the first N layers",
        ),
        ({"student": {"model": "s", "layers": (2, 1)}}, "student.layers: [2, 1] must be a list of ascending"),
        ({"student": {"model": "s", "layers": ()}}, "student.layers: [] must be a list of ascending"),
        (
            {"student": {"model": "s", "lora": {"rank": 4, "alpha": 8, "targets": 7}}},
            'student.lora.targets: 7 does not fit; give a list of module names, or "all-linear"',
        ),
        (
            {"student": {"model": "s", "lora": {"rank": 4, "alpha": 8, "targets": ()}}},
            'student.lora.targets: names no module; list some, write "all-linear", or set lora to null',
        ),
        (
            {"train": {"batch_size": 8, "micro_batch_size": 9}},
            "train.micro_batch_size: 9 must not exceed batch_size",
        ),
        (
            {"teacher": {"model": "m", "fine_tune": {"batch_size": 8, "micro_batch_size": 9}}},
            "teacher.fine_tune.micro_batch_size: 9 must not exceed batch_size (8)",
        ),
        (
            {"teacher": {"model": "m", "fine_tune": {"lora": None}}},
            "teacher.quantization: nf4 weights cannot be trained and fine_tune.lora is null; set",
        ),
        (
            {"teacher": {"model": "m", "prompt": PROMPT, "adapter": "a"}},
            "teacher.prompt: cannot stand beside teacher.adapter; keep one and set the other to null",
        ),
        (
            {"teacher": {"model": "m", "prompt": PROMPT | {"template": "no place"}}},
            "teacher.prompt.template: must hold {text} once, or {first} and {second} once each for a pair",
        ),
        (
            {"teacher": {"model": "m", "prompt": PROMPT | {"template": "{first} {second}"}}},
            "teacher.prompt.template: must hold {text}, since data.train.text is one column",
        ),
        (
            {"teacher": {"model": "m", "prompt": PROMPT}, "data": {"train": PAIR, "validation": HELD_OUT}},
            "teacher.prompt.template: must hold {first} and {second}, since data.train.text is a pair",
        ),
        (
            {"teacher": {"model": "m", "prompt": PROMPT | {"label_words": ("x", "x")}}},
            "teacher.prompt.label_words: ['x', 'x'] must differ from one another",
        ),
        (
            {
                "teacher": {"model": "m", "prompt": PROMPT},
                "data": {"train": SOURCE, "validation": HELD_OUT, "classes": ("a", "b", "c")},
            },
            "teacher.prompt.label_words: has 2 words for 3 data.classes; give one per class",
        ),
        (
            {
                "teacher": {"model": "m", "fine_tune": {}},
                "data": {"train": NO_LABEL, "validation": SOURCE, "classes": ("a", "b")},
            },
            "teacher.fine_tune: needs labelled rows; name data.train.label, or use teacher.prompt",
        ),
        (
            {
                "loss": {"hard_label_weight": 1.0},
                "data": {"train": SOURCE, "validation": HELD_OUT, "unlabelled": NO_LABEL},
            },
            "loss.hard_label_weight: 1 learns nothing from data.unlabelled, which has no labels",
        ),
    ],
)
def test_a_fault_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    found = faults(document(**changes))
    assert len(found) == 1, found
    assert found[0].startswith(sentence)


SCORE = {"column": "v", "negative_below": -1, "positive_above": 1}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"train": None}, "data.train: null is not a section; write its keys below it: source, text"),
        (
            {"train": SOURCE | {"text": 5}},
            "data.train.text: 5 does not fit; give a column name, or a pair of them",
        ),
        (
            {"train": SOURCE | {"text": ("a",)}},
            'data.train.text: ["a"] does not fit; give a column name, or a pair',
        ),
        (
            {"train": SOURCE | {"text": ("a", "a")}},
            "data.train.text: the columns of text and label must differ",
        ),
        ({"train": SOURCE | {"label": "text"}}, "data.train.text: the columns of text and label must differ"),
        (
            {"train": SOURCE | {"label": 5}},
            "data.train.label: 5 does not fit; give a column of integers or words, {column, negative_below,",
        ),
        (
            {"train": SOURCE | {"label": SCORE | {"negative_below": 2}}},
            "data.train.label.negative_below: 2 must be smaller than positive_above (1); lower the first",
        ),
        (
            {"train": SOURCE | {"label": SCORE | {"negative_below": "x"}}},
            'data.train.label.negative_below: "x" is not allowed; it must be a number',
        ),
        (
            {"train": SOURCE | {"label": SCORE | {"above": 1}}},
            "data.train.label.above: unknown key; the keys of data.train.label are column, negative_below,",
        ),
        (
            {"train": SOURCE | {"label": SCORE}, "classes": ("a", "b", "c")},
            "data.classes: ['a', 'b', 'c'] must be two names, since data.train.label is a score",
        ),
        (
            {"train": SOURCE | {"columns": ()}},
            "data.train.columns: [] is not allowed; it must be a list of at least 1",
        ),
        (
            {"train": SOURCE | {"columns": ("text", "y")}},
            "data.train.label: label is not among the columns ['text', 'y']; name one of them",
        ),
        (
            {"train": SOURCE | {"columns": ("text", "label", "text")}},
            "data.train.columns: ['text', 'label', 'text'] must differ from one another",
        ),
        ({"classes": ("a", 5)}, "data.classes[1]: 5 is not allowed; it must be text (names in label order"),
        ({"classes": ("a", "a")}, "data.classes: ['a', 'a'] must differ from one another"),
        (
            {"train": NO_LABEL, "validation": SOURCE},
            "data.classes: missing; give them, since data.train has no",
        ),
        ({"train": NO_LABEL, "classes": ("a", "b")}, "data.validation: rows held out from train need labels"),
        (
            {"validation": NO_LABEL},
            "data.validation.label: missing; name the label column of the validation rows",
        ),
        ({"validation": PAIR}, "data.validation.text: must be one column like data.train.text"),
        (
            {"unlabelled": {"source": "u.tsv", "text": ("a", "b")}},
            "data.unlabelled.text: must be one column like",
        ),
        ({"train": PAIR, "validation": SOURCE}, "data.validation.text: must be a pair like data.train.text"),
        (
            {"validation": 5},
            "data.validation: 5 does not fit; give {source, text, label} of their own, or {frac",
        ),
        ({"validation": None}, "data.validation: null does not fit; give {source, text, label} of their own"),
        ({"validation": {}}, "data.validation.fraction_of_train: missing (share of the training source's"),
        ({"validation": {"text": "t", "label": "l"}}, "data.validation.source: missing (hub "),
        (
            {"validation": {"fraction_of_trian": 0.1}},
            "data.validation.fraction_of_trian: unknown key; did you mean",
        ),
        (
            {"validation": HELD_OUT | {"source": "v.tsv"}},
            "data.validation.source: unknown key; it cannot stand beside fraction_of_train: keep one",
        ),
    ],
)
def test_a_fault_of_the_data_is_one_sentence(data: dict[str, Any], sentence: str) -> None:
    found = faults(document(data={"train": SOURCE, "validation": HELD_OUT} | data))
    assert len(found) == 1, found
    assert found[0].startswith(sentence)


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("train.learing_rate=1", "train.learing_rate: unknown key; did you mean train.learning_rate?"),
        ("train.Batch-Size=1", "train.Batch-Size: unknown key; did you mean train.batch_size?"),
        ("temperature=4", "temperature: unknown key; did you mean loss.temperature?"),
        ("train.temperature=4", "train.temperature: unknown key; did you mean loss.temperature?"),
        ("temprature=4", "temprature: unknown key; did you mean loss.temperature?"),
        ("seed=1", "seed: unknown key; did you mean teacher.fine_tune.seed or train.seed?"),
        (
            "teacher.epochs=1",
            "teacher.epochs: unknown key; did you mean teacher.fine_tune.epochs or train.epochs?",
        ),
        (
            "student.rank=1",
            "student.rank: unknown key; did you mean student.lora.rank or teacher.fine_tune.lora.rank?",
        ),
        ("data.max_length=1", "data.max_length: unknown key; did you mean data.max_length_tokens?"),
        ("loss.xyz=1", "loss.xyz: unknown key; the keys of loss are hard_label_weight, temperature"),
        (
            "xyz=1",
            "xyz: unknown key; the keys of a recipe are task, data, teacher, student, loss, train, runtime, ",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_one(override: str, remedy: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe("quickstart", [override])
    assert len(refused.value.problems) == 1
    assert refused.value.problems[0].startswith(remedy)


def test_a_misspelt_key_is_not_reported_as_missing_too() -> None:
    assert faults(document(teacher={"modle": "m"})) == ["teacher.modle: unknown key; did you mean teacher.model?"]


def test_missing_sections_are_named_with_their_keys() -> None:
    assert faults({"output": "x"}) == [
        f"{name}: missing; it is a section with the keys {keys}; add it"
        for name, keys in {
            "data": "train, validation, unlabelled, classes, max_length_tokens",
            "teacher": "model, quantization, gate, fine_tune, adapter, prompt",
            "student": "model, layers, lora",
        }.items()
    ]


def test_all_faults_come_together_also_those_that_others_would_hide() -> None:
    """The rule across sections is checked although an unknown key and a wrong number stand before it."""
    overrides = [
        "epochs",
        "train.epochs=0",
        "train.learing_rate=1",
        "trackers=[a, b]",
        "student.lora.rank=0",
        "data.train.label=null",
        "data.classes=[a, b]",
        "data.validation={source: v.tsv, text: text, label: y}",
    ]
    with pytest.raises(RecipeError) as refused:
        load_recipe("quickstart", overrides)
    assert [problem.partition(":")[0] for problem in refused.value.problems] == [
        "epochs",
        "student.lora.rank",
        "train.epochs",
        "train.learing_rate",
        "trackers[0]",
        "trackers[1]",
        "teacher.fine_tune",
    ]
    assert str(refused.value).startswith("recipe quickstart has 7 problems:\n  epochs: ")
    assert isinstance(refused.value, InputError)
    assert refused.value.exit_code == 2
