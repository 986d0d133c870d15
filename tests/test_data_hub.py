"""Data sets in the hub's layout, read by the real `datasets` library from a folder, without the hub."""

from pathlib import Path

import datasets
import pytest

from llm_neo.data import load_data, read_rows, read_texts
from llm_neo.data.hub import HubId, hub_id
from llm_neo.errors import InputError
from llm_neo.recipe.tree import Data, LabelledSource, TextSource


@pytest.fixture
def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder holds the data set "owner/name": `datasets` prefers it to the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    for split, labels in {"train": [1, 0, 1], "test": [-1, -1, 0]}.items():
        rows = {"sentence": [f" {split} {number}" for number in range(3)], "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files:\n"
        "  - {split: train, path: train.parquet}\n  - {split: test, path: test.parquet}\n---\n"
    )
    return folder


def test_a_hub_id_has_an_owner_a_name_and_a_split() -> None:
    assert hub_id("nyu-mll/glue:sst2/train") == HubId("nyu-mll/glue", "sst2", "train")
    assert hub_id("a.b/c_d/validation_matched") == HubId("a.b/c_d", None, "validation_matched")
    for spec in (
        "imdb/train",
        "a/b/c/d",
        "a/b/train.xlsx",
        "/a/b/c",
        "a/b:/train",
        "pypi:a==1/b/c",
        "a b/c/d",
        "a/b/\n",
    ):
        assert hub_id(spec) is None, spec


def test_class_names_of_the_hub_become_the_classes(owner: Path) -> None:
    source = {"source": "owner/name:small/train", "text": "sentence", "label": "label"}
    found = load_data(Data.model_validate({"train": source, "validation": source}))
    assert found.classes == ("no", "yes")
    assert [(row.id, row.text, row.label) for row in found.train.rows] == [
        ("train:1", ("train 0",), 1),
        ("train:2", ("train 1",), 0),
        ("train:3", ("train 2",), 1),
    ]


def test_minus_one_is_no_label(owner: Path) -> None:
    source = LabelledSource(source="owner/name/test", text="sentence", label="label")
    with pytest.raises(InputError, match=r"owner/name/test, row 1: the label of 'test 0' is missing"):
        read_rows(source, ("no", "yes"))
    assert len(read_texts(source).rows) == 3


def test_a_local_file_goes_before_the_hub(owner: Path) -> None:
    file = "owner/name/train.parquet"
    source = LabelledSource(source=file, text="sentence", label="label")
    assert [row.label for row in read_rows(source, ("yes", "no")).rows] == [0, 1, 0]


@pytest.mark.parametrize(
    ("spec", "text", "words"),
    [
        ("owner/name/train", "sentense", "there is no column 'sentense'; did you mean 'sentence'?"),
        ("owner/name/dev", "sentence", "data set 'owner/name', config 'default', split 'dev': Unknown split"),
        ("owner/name:big/train", "sentence", "config 'big', split 'train': BuilderConfig 'big' not found"),
    ],
)
def test_what_the_data_set_does_not_have_is_named(owner: Path, spec: str, text: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        read_texts(TextSource(source=spec, text=text))
    assert words in str(error.value)
    assert spec in str(error.value)


def test_columns_are_refused_for_the_hub() -> None:
    with pytest.raises(InputError, match="owner/name/train names its columns itself; remove `columns`"):
        read_texts(TextSource(source="owner/name/train", text="a", columns=("a",)))


def test_a_data_set_out_of_reach_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as error:
        read_texts(TextSource(source="nobody/nothing/train", text="a"))
    assert "the hub cannot be reached for the data set 'nobody/nothing'" in str(error.value)
    assert "go online, or name a local file in place of 'nobody/nothing/train'" in str(error.value)
