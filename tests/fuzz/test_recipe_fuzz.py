"""Any recipe is valid, and then loads back equal, or is refused with a sentence a problem; never a traceback."""

import contextlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from budget import THOROUGH, examples
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import material

from llm_neo.cli import main
from llm_neo.recipe import dump_recipe, load_recipe
from llm_neo.recipe.problems import _paths
from llm_neo.recipe.tree import Recipe
from llm_neo.run.record import read_run

SOURCE = {"source": "train.tsv", "text": "sentence", "label": "label"}
VALID: dict[str, Any] = {
    "data": {
        "train": SOURCE,
        "validation": {"source": "validation.csv", "text": "sentence", "label": "label"},
        "unlabelled": None,
        "classes": None,
        "max_length_tokens": 8,
    },
    "teacher": {
        "model": "llama",
        "quantization": "none",
        "gate": "warn",
        "prompt": {"template": "{text} :", "label_words": ["bad", "good"], "calibrate": True},
    },
    "student": {"model": "llama", "layers": 2, "lora": {"rank": 4, "alpha": 8, "dropout": 0.1, "targets": ["q_proj"]}},
    "loss": {"hard_label_weight": 0.5, "temperature": 2.0},
    "train": {"epochs": 1, "batch_size": 16, "learning_rate": 1.0e-3, "evaluate_every_steps": None},
    "runtime": {"device": "cpu", "precision": "float32"},
    "output": "run",
}
KEYS = sorted(_paths(Recipe))
"""Every dotted key."""
SOUND: dict[str, st.SearchStrategy[Any]] = {
    "data.train.limit": st.none() | st.integers(40, 200),
    "data.validation": st.just({"fraction_of_train": 0.3})
    | st.just({"fraction_of_train": 0.5, "limit": 20})
    | st.just(VALID["data"]["validation"]),
    "data.unlabelled": st.none() | st.just({"source": "validation.csv", "text": "sentence", "limit": 9}),
    "data.classes": st.none() | st.just(["negative", "positive"]) | st.just(["positive", "negative"]),
    "data.max_length_tokens": st.sampled_from([1, 2, 8, 300]),
    "teacher.prompt.calibrate": st.booleans(),
    "student.layers": st.none() | st.sampled_from([1, 2, 3, [0], [0, 2], [1, 2]]),
    "student.lora.rank": st.integers(1, 40),
    "student.lora.alpha": st.sampled_from([1, 0.5, 8, 100.0]),
    "student.lora.dropout": st.sampled_from([0.0, 0.1, 0.9]),
    "student.lora.targets": st.sampled_from(["all-linear", ["q_proj"], ["q_proj", "down_proj"]]),
    "loss.hard_label_weight": st.sampled_from([0.0, 0.3, 0.99]),
    "loss.temperature": st.sampled_from([0.05, 1.0, 2.0, 50.0]),
    "train.batch_size": st.sampled_from([1, 7, 16, 1000]),
    "train.learning_rate": st.sampled_from([1e-8, 1e-3, 0.1, 10.0, 1e30]),
    "train.weight_decay": st.sampled_from([0.0, 0.01, 5.0]),
    "train.schedule": st.sampled_from(["linear", "cosine", "constant"]),
    "train.warmup_fraction": st.sampled_from([0.0, 0.1, 0.99]),
    "train.max_gradient_norm": st.none() | st.sampled_from([1e-9, 1.0, 1e9]),
    "train.seed": st.sampled_from([0, 1, 2**32 - 1]),
    "train.evaluate_every_steps": st.none() | st.integers(1, 20),
    "train.evaluate_rows": st.none() | st.sampled_from([1, 5, 10**9]),
    "train.checkpoint_every_steps": st.none() | st.integers(1, 20),
    "train.log_every_steps": st.integers(1, 50),
    "runtime.engine": st.sampled_from(["auto", "plain"]),
    "runtime.precision": st.sampled_from(["auto", "float32", "bfloat16"]),
}
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**30), 2**63, 0, -1])
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["\ud800", "é\u202e", "\x1b[31m", "{text}", "a=b", "~", ".nan", "../..", "x" * 5000, "\0"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
YAML_PIECES = [
    "!!python/object/apply:os.system [echo]",
    "&a [*a]",
    "*nowhere",
    "<<: {a: 1}",
    "? [a, b] : c",
    "!!binary aGk=",
    "2024-01-01",
    "0o17",
    "1e400",
    "-.inf",
    ".NaN",
    "1_000",
    "yes",
    "'",
    '"\\ud800"',
    '"\\0"',
    "|\n  a\n b",
    "---",
    "%YAML 1.1",
    "\t- x",
    "@x",
    "`x`",
    "[" * 3000,
    "{a: " * 300,
    "\u0085",
    "\ufeff",
    "\x07",
]
outcomes: Counter[str] = Counter()


def changed(document: Any, dotted: str, value: Any) -> Any:
    """A copy with another value under a key; what stands in the way of the key is replaced."""
    keys = dotted.split(".")
    copy = dict(document) if isinstance(document, dict) else {}
    copy[keys[0]] = value if len(keys) == 1 else changed(copy.get(keys[0]), ".".join(keys[1:]), value)
    return copy


@st.composite
def sound(draw: st.DrawFn, most: int = 6) -> dict[str, Any]:
    """A recipe that is right."""
    document = VALID
    for key in draw(st.lists(st.sampled_from(sorted(SOUND)), max_size=most, unique=True)):
        document = changed(document, key, draw(SOUND[key]))
    return document


@st.composite
def broken(draw: st.DrawFn) -> Any:
    """A recipe with a few wrong values, unknown or missing keys, or no mapping at all."""
    document: Any = draw(sound(3))
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.integers(0, 9))
        if kind < 6:
            document = changed(document, draw(st.sampled_from(KEYS)), draw(VALUES))
        elif kind < 8:
            document = changed(document, draw(st.text(min_size=1, max_size=8)), draw(VALUES))
        elif kind == 8 and isinstance(document, dict) and document:
            document = {key: value for key, value in document.items() if key != draw(st.sampled_from(sorted(document)))}
        else:
            document = draw(VALUES)
    return document


@st.composite
def texts(draw: st.DrawFn) -> tuple[bytes, bool | None]:
    """The bytes of a recipe, and whether it is right (None: nobody knows)."""
    if draw(st.integers(0, 3)) == 0:
        return json.dumps(draw(sound())).encode(), True
    text = json.dumps(draw(broken()), ensure_ascii=draw(st.booleans()))
    if draw(st.integers(0, 2)) == 0:
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(st.sampled_from(YAML_PIECES)) + text[place + draw(st.integers(0, 3)) :]
    if draw(st.integers(0, 5)) == 0:
        text = "\n".join(f"{draw(st.sampled_from(KEYS))}: {draw(st.sampled_from(YAML_PIECES))}" for _ in range(3))
    data = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 7)) == 0:
        place = draw(st.integers(0, len(data)))
        data = data[:place] + draw(st.binary(max_size=4)) + data[place:]
    return data, None


WORDS = st.builds("{}={}".format, st.sampled_from(KEYS), st.sampled_from(YAML_PIECES) | st.text(max_size=10)) | st.text(
    max_size=12
).filter(lambda word: not word.startswith("-"))


def run_command(words: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return code, out.getvalue(), err.getvalue()


def assert_refused_with_sentences(err: str) -> None:
    assert "Traceback" not in err and "fault of ours" not in err, err
    message = err.partition("llm-neo: error: ")[2]
    first, *more = message.rstrip("\n").split("\n  ")
    assert first.strip() and all(line.strip() for line in more), err
    assert "\x1b" not in err and "\0" not in err
    err.encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files of the recipe are."""
    return material(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@examples(250, 5000)
@given(texts(), st.lists(WORDS, max_size=2))
def test_any_recipe_is_valid_or_refused_with_sentences(recipe: tuple[bytes, bool | None], words: list[str]) -> None:
    data, right = recipe
    Path("any.yaml").write_bytes(data)
    words = [] if right else words
    code, out, err = run_command(["validate", "any.yaml", *words])
    outcomes["valid" if code == 0 else "refused"] += 1
    if code == 0:
        assert err == "" and out == "recipe any.yaml is valid\n"
        loaded = load_recipe("any.yaml", words)
        Path("again.yaml").write_text(dump_recipe(loaded), encoding="utf-8")
        assert load_recipe("again.yaml") == loaded
    else:
        assert code == 2 and out == "" and not right, err
        assert_refused_with_sentences(err)


def test_both_outcomes_were_met() -> None:
    if sum(outcomes.values()):
        assert outcomes["valid"] > 0.1 * outcomes.total() and outcomes["refused"] > 0.3 * outcomes.total()


@examples(4, 100, shrink=False)
@given(sound())
def test_a_valid_recipe_runs_rightly_or_ends_with_a_sentence(document: dict[str, Any]) -> None:
    Path("sound.yaml").write_text(json.dumps(document))
    code, _, err = run_command(["distill", "sound.yaml", "--overwrite"])
    if code:
        # A learning rate of 1e30 is valid, and its loss is not finite.
        assert code in (2, 4), err
        assert_refused_with_sentences(err)
        return
    record = read_run("run")
    expected = record.evaluations[-1]
    assert record.student.rows == record.validation_rows == expected.rows
    lines = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    right = sum(line["student_logits"].index(max(line["student_logits"])) == line["label"] for line in lines)
    assert record.student.accuracy == pytest.approx(right / len(lines)) and len(lines) == record.validation_rows


def test_the_thorough_run_is_as_large_as_promised() -> None:
    promised = test_any_recipe_is_valid_or_refused_with_sentences._hypothesis_internal_use_settings  # type: ignore[attr-defined]
    assert promised.max_examples == (5000 if THOROUGH else 250)
