"""What a recipe asks of this machine."""

import sys
from pathlib import Path

import pytest

from llm_neo.errors import RecipeError
from llm_neo.recipe import check_environment, load_recipe


def problems(*overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as refused:
        check_environment(load_recipe("quickstart", overrides))
    return refused.value.problems


def test_the_shipped_recipes_can_run_here() -> None:
    check_environment(load_recipe("sst2-llama3", ["trackers=[tensorboard]", "runtime.engine=plain"]))


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantization_needs_bitsandbytes(monkeypatch: pytest.MonkeyPatch, quantization: str) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert problems(f"teacher.quantization={quantization}") == (
        f"teacher.quantization: {quantization} needs bitsandbytes, which is not installed here; "
        "pip install bitsandbytes, or choose teacher.quantization=none",
    )
    check_environment(load_recipe("quickstart", ["teacher.quantization=none"]))


def test_a_tracker_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    (problem,) = problems("trackers=[tensorboard]")
    assert problem.startswith("trackers: tensorboard is not installed here; pip install 'llm-neo[tensorboard]'")


def test_paths_that_do_not_exist_are_named_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = problems(
        "teacher.model=./teacher",
        "teacher.adapter=~/nowhere/adapter",
        "student.model=student.gguf",
        "data.train.source=train.tsv",
        "data.validation={source: dev.JSONL, text: text, label: label}",
        "data.unlabelled={source: ./more, text: text}",
    )
    assert [problem.partition(" does not exist here; correct the path")[0] for problem in found] == [
        "teacher.model: ./teacher",
        "teacher.adapter: ~/nowhere/adapter",
        "student.model: student.gguf",
        "data.train.source: train.tsv",
        "data.validation.source: dev.JSONL",
        "data.unlabelled.source: ./more",
    ]


def test_paths_that_exist_and_hub_ids_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.tsv").touch()
    (tmp_path / "model").mkdir()
    overrides = ["data.train.source=train.tsv", "teacher.model=./model", "student.model=owner/name@main"]
    check_environment(load_recipe("quickstart", overrides))


def test_the_origin_is_named(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", ["data.train.source=./gone.tsv"])
    with pytest.raises(RecipeError, match=r"^recipe mine.yaml has 1 problem:"):
        check_environment(recipe, "mine.yaml")
    with pytest.raises(RecipeError, match=r"^recipe for runs/quickstart has 1 problem:"):
        check_environment(recipe)
