"""A pickle or Python file planted wherever a file is read: it does not run, and the command says something sensible."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from assets_builders import tar_of, tiny_gguf, zip_of
from planted import PICKLES, code, pickled, ran, sow, write
from tiny_runs import PROMPT, cached_on_the_hub, edit_json, hub_cache, material, run_of, unseal

from llm_neo.cli import main

RECIPE = "recipe.yaml"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, rows and one finished run; read only."""
    folder = material(tmp_path_factory.mktemp("made"))
    run_of(folder, "run", "student.layers=2")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, as the working folder and the first place that Python imports from."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("LLM_NEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    unseal(tmp_path / "here" / "run")
    edit_json(tmp_path / "here" / "run" / "run.json", fingerprints={})
    return tmp_path / "here"


def distil(*overrides: str) -> list[str]:
    return ["distill", RECIPE, PROMPT, "output=new", *overrides]


def said(words: list[str], code: int, capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    assert main(words) == code, capfd.readouterr().err
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return out + err


@pytest.mark.parametrize("name", ["x.pkl", "x.pt", "x.npy", "x.npz", "x.py"])
def test_the_payloads_are_live(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, tmp_path)
    if name == "x.pkl":
        pickle.loads(file.read_bytes())
    elif name == "x.pt":
        torch.load(file, weights_only=False)
    elif name == "x.py":
        subprocess.run([sys.executable, str(file)], check=True)
    else:
        loaded = np.load(file, allow_pickle=True)
        assert len(loaded if name == "x.npy" else loaded["rows"]) == 1
    assert ran(tmp_path) and not ran(tmp_path)


def test_everywhere_at_once_changes_no_answer(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def answers() -> list[str]:
        said(["distill", RECIPE, PROMPT, "output=new", "--overwrite", "student.layers=2"], 0, capfd)
        (here / "new" / "student").rename(here / "adapter")
        (here / "adapter" / "base").rename(here / "cut")
        out = []
        for command in (["predict", "run", "good film"], ["evaluate", "run", "--data", "validation.csv", "--json"]):
            capfd.readouterr()
            assert main(command) == 0
            out.append(capfd.readouterr().out)
        words = ["teacher.model=cut", "teacher.adapter=adapter", "student.model=cut", "output=third", "--overwrite"]
        said(["distill", RECIPE, *words], 0, capfd)
        shutil.rmtree(here / "run" / "export", ignore_errors=True)
        said(["export", "run", "--to", "merged"], 0, capfd)
        said(["export", "run", "--to", "adapter"], 0, capfd)
        for folder in ("cut", "adapter"):
            shutil.rmtree(here / folder)
        return [
            *out,
            (here / "new" / "predictions.jsonl").read_text(),
            (here / "third" / "predictions.jsonl").read_text(),
        ]

    clean = answers()
    planted = [sow(here / name, here) for name in ("llama", "run")] + [sow(here.parent / "cache", here)]
    assert min(planted) > 20
    for name in (*PICKLES, "rows.py"):
        write(here / name, here)
    for name in ("new", "third"):
        shutil.rmtree(here / name)
    assert answers() == clean
    assert not ran(here)


def test_an_interrupted_run_full_of_pickles_goes_on(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*distil("train.epochs=2", "train.checkpoint_every_steps=2", "train.log_every_steps=1")]
    with pytest.MonkeyPatch.context() as patch:
        calls = iter(range(10**6))

        def stop(*_: object) -> None:
            if next(calls) == 5:
                raise KeyboardInterrupt

        patch.setattr("llm_neo.student_stage.Setting.log", stop)
        assert main(words) == 130
    checkpoints = list((here / "new" / "checkpoints").rglob("*.safetensors"))
    assert checkpoints
    assert sow(here / "new", here) + sow(here.parent / "cache", here) > 40
    shutil.copytree(here / "new", here / "damaged")
    said(["distill", "--resume", "new"], 0, capfd)
    # The state of the training itself as a pickle.
    for file in (here / "damaged" / "checkpoints").rglob("*.safetensors"):
        file.write_bytes(pickled(here))
    capfd.readouterr()
    assert main(["distill", "--resume", "damaged"]) in (0, 2)
    assert "damaged" in capfd.readouterr().err
    assert not ran(here)


def only_pickled(model: Path, where: Path) -> None:
    (model / "model.safetensors").unlink()
    write(model / "pytorch_model.bin", where)


def a_pickle_by_another_name(model: Path, where: Path) -> None:
    (model / "model.safetensors").write_bytes(pickled(where))


def a_shard_that_is_a_pickle(model: Path, where: Path) -> None:
    write(model / "pytorch_model.bin", where)
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "pytorch_model.bin"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def a_shard_elsewhere(model: Path, where: Path) -> None:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (model.parent / "elsewhere.safetensors").write_bytes(pickled(where))
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def a_pickled_vocabulary(model: Path, where: Path) -> None:
    (model / "tokenizer.json").unlink()
    write(model / "vocab.pkl", where)
    edit_json(model / "tokenizer_config.json", tokenizer_class="TransfoXLTokenizer")


MODELS: list[tuple[Callable[[Path, Path], None], str]] = [
    (only_pickled, "holds only pickled weights"),
    (a_pickle_by_another_name, "model.safetensors is damaged"),
    (a_shard_that_is_a_pickle, "names 'pytorch_model.bin' as one of its weight files"),
    (a_shard_elsewhere, "names '../elsewhere.safetensors' as one of its weight files"),
    (a_pickled_vocabulary, "the tokenizer of changed cannot be loaded"),
]


@pytest.mark.parametrize("who", ["teacher", "student"])
@pytest.mark.parametrize(("plant", "message"), MODELS, ids=[plant.__name__ for plant, _ in MODELS])
def test_a_model_that_is_a_pickle_is_refused(
    here: Path, capfd: pytest.CaptureFixture[str], plant: Callable[[Path, Path], None], message: str, who: str
) -> None:
    shutil.copytree(here / "llama", here / "changed")
    plant(here / "changed", here)
    assert message in said(distil(f"{who}.model=changed"), 2, capfd)
    assert not ran(here)


def test_a_model_of_the_hub_that_is_a_pickle_is_refused(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    snapshot = cached_on_the_hub(here.parent / "hub", "own/model", "a" * 40)
    shutil.copytree(here / "llama", snapshot, dirs_exist_ok=True)
    only_pickled(snapshot, here)
    with hub_cache(here.parent / "hub"):
        assert "pickled weights" in said(distil("student.model=own/model"), 2, capfd)
    assert not ran(here)


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("command", ["distil", "predict", "evaluate", "export"])
def test_an_adapter_that_is_a_pickle_is_refused(
    here: Path, capfd: pytest.CaptureFixture[str], form: str, command: str
) -> None:
    student = here / "run" / "student"
    (student / "adapter_model.safetensors").unlink()
    if form == "bin":
        write(student / "adapter_model.bin", here)
    else:
        (student / "adapter_model.safetensors").write_bytes(pickled(here))
    words = {
        "distil": ["distill", RECIPE, "output=new", "teacher.model=run/student/base", "teacher.adapter=run/student"],
        "predict": ["predict", "run", "good"],
        "evaluate": ["evaluate", "run", "--data", "validation.csv"],
        "export": ["export", "run", "--to", "merged"],
    }[command]
    # Either by the reader of the adapter, or earlier because a checksum of the run does not fit.
    message = said(words, 2, capfd)
    assert "adapter_model.safetensors" in message
    assert not ran(here)


def test_an_adapter_cannot_make_peft_import_a_module(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(here / "evil_megatron.py", here)
    edit_json(here / "run" / "student" / "adapter_config.json", megatron_config={"a": 1}, megatron_core="evil_megatron")
    words = ["teacher.model=run/student/base", "teacher.adapter=run/student", "output=new"]
    assert "has megatron_config, by which peft imports" in said(["distill", RECIPE, *words], 2, capfd)
    assert main(["predict", "run", "good"]) == 2
    assert not ran(here)


@pytest.mark.parametrize("name", ["rows.pkl", "rows.pickle", "rows.npy", "rows.npz", "rows.pt", "rows.bin", "rows.py"])
@pytest.mark.parametrize("where", ["train", "validation", "unlabelled", "evaluate", "predict"])
def test_rows_in_a_pickle_are_refused(here: Path, capfd: pytest.CaptureFixture[str], name: str, where: str) -> None:
    write(here / name, here)
    words = {
        "evaluate": ["evaluate", "run", "--data", name],
        "predict": ["predict", "run", "--file", name],
        "unlabelled": distil(f"data.unlabelled={{source: {name}, text: sentence}}"),
    }.get(where, distil(f"data.{where}={{source: {name}, text: sentence, label: label}}"))
    assert f"files ending in '{Path(name).suffix}' are not read" in said(words, 2, capfd)
    assert not ran(here)


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".json", ".parquet", ".txt"])
def test_a_pickle_by_another_name_is_no_table(here: Path, capfd: pytest.CaptureFixture[str], suffix: str) -> None:
    name = f"rows{suffix}"
    (here / name).write_bytes(pickled(here))
    for words in (distil(f"data.train.source={name}"), ["predict", "run", "--file", name]):
        assert name in said(words, 2, capfd)
    assert not ran(here)


def test_parquet_with_a_pickled_type_runs_nothing(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Once a way to run code (CVE-2023-47248): Arrow's schema names a Python type and holds its pickle.
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickled(here)}
    fields = [pa.field("sentence", pa.string(), metadata=metadata), pa.field("label", pa.string(), metadata=metadata)]
    rows = [["good film", "bad film"] * 8, ["positive", "negative"] * 8]
    pq.write_table(pa.table(rows, schema=pa.schema(fields)), here / "rows.parquet")
    assert main(distil("data.train.source=rows.parquet")) in (0, 2)
    assert not ran(here)


def test_a_local_folder_that_looks_like_a_hub_data_set_runs_nothing(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = here / "own" / "rows"
    folder.mkdir(parents=True)
    for name in ("rows.py", "train.pkl", "train.py", "data.pickle"):
        write(folder / name, here)
    assert "own/rows" in said(distil("data.train.source=own/rows/train"), 2, capfd)
    (folder / "train.tar").write_bytes(tar_of({"0.pyd": pickled(here), "0.txt": b"good"}, mode="w"))
    assert main(distil("data.train.source=own/rows/train")) == 2
    assert not ran(here)


def test_targets_that_are_a_pickle_are_an_error_or_made_anew(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said(distil(), 0, capfd)
    files = list((here.parent / "cache" / "targets").rglob("*.safetensors"))
    assert files
    for file in files:
        file.write_bytes(pickled(here))
    assert "damaged" in said(distil("output=again"), 2, capfd)
    assert not ran(here)


def test_a_gguf_file_in_a_folder_of_code_runs_nothing(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = here / "gguf"
    folder.mkdir()
    tiny_gguf(folder / "tiny.gguf")
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.Tok", "own.Tok"]}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "auto_map": own}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Tok", "auto_map": own}))
    sow(folder, here)
    assert main(distil("student.model=gguf/tiny.gguf", "student.layers=1")) in (0, 2)
    assert "Traceback" not in capfd.readouterr().err
    (folder / "pickle.gguf").write_bytes(pickled(here))
    assert "is not a GGUF file" in said(distil("student.model=gguf/pickle.gguf"), 2, capfd)
    assert not ran(here)


@pytest.mark.parametrize("kind", ["wheel", "source archive"])
def test_a_package_is_never_installed_or_run(here: Path, capfd: pytest.CaptureFixture[str], kind: str) -> None:
    import hashlib

    rows = (here / "train.tsv").read_bytes()
    files = {
        f"{top}{name}": code(here).encode() for top in ("", "toy-1.0/") for name in ("setup.py", "toy/__init__.py")
    }
    files |= {"toy-1.0/toy/rows.tsv": rows, "toy/rows.tsv": rows, "toy/rows.pkl": pickled(here)}
    files |= {"toy-1.0/PKG-INFO": b"Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n"}
    body = zip_of(files) if kind == "wheel" else tar_of(files)
    (here / "links").mkdir()
    (here / "links" / ("toy-1.0-py3-none-any.whl" if kind == "wheel" else "toy-1.0.tar.gz")).write_bytes(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_FIND_LINKS", str(here / "links"))
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        spec = f"pypi:toy==1.0/toy/rows.tsv#sha256={hashlib.sha256(body).hexdigest()}"
        said(distil(f"data.train.source='{spec}'"), 0, capfd)
        spec = spec.replace("rows.tsv", "rows.pkl")
        assert "are not read" in said(distil(f"data.train.source='{spec}'", "output=other"), 2, capfd)
    assert not ran(here)


MAP = {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Own", "AutoModelForCausalLM": "own.Own"}


@pytest.mark.parametrize("who", ["teacher", "student"])
@pytest.mark.parametrize("what", ["model", "tokenizer", "a known model"])
def test_code_of_a_model_runs_only_where_the_recipe_says_so(
    here: Path, capfd: pytest.CaptureFixture[str], who: str, what: str
) -> None:
    shutil.copytree(here / "llama", here / "changed")
    write(here / "changed" / "own.py", here)
    if what == "tokenizer":
        edit_json(
            here / "changed" / "tokenizer_config.json",
            auto_map={"AutoTokenizer": ["own.Own", "own.Own"]},
            tokenizer_class="OwnTokenizer",
        )
    else:
        edit_json(here / "changed" / "config.json", auto_map=MAP, **({"model_type": "own"} if what == "model" else {}))
    words = distil(f"{who}.model=changed")
    capfd.readouterr()
    refused = what != "a known model"
    assert main(words) == (2 if refused else 0)
    message = capfd.readouterr().err
    assert not ran(here)
    assert not refused or "set runtime.trust_remote_code=true if you trust it" in message
    # The control: the same words with the recipe's leave do run it.
    main([*words, "runtime.trust_remote_code=true", "--overwrite"])
    assert ran(here)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir ['{trace}']",
        "!!python/object/new:os.mkdir ['{trace}']",
        "!!python/name:os.mkdir",
        "!!python/module:own",
        "!<tag:yaml.org,2002:python/object/apply:os.mkdir> ['{trace}']",
        "!include /etc/passwd",
        "!!binary aGk=",
        "!!set {{a}}",
    ],
)
def test_a_tag_in_a_recipe_or_an_override_runs_nothing(here: Path, capfd: pytest.CaptureFixture[str], tag: str) -> None:
    write(here / "own.py", here)
    value = tag.format(trace=here / "the payload ran")
    (here / "mine.yaml").write_text(f"extends: recipe.yaml\noutput: {value}\n")
    for words in (["validate", "mine.yaml"], ["validate", RECIPE, f"output={value}"], ["distill", "mine.yaml"]):
        assert "has no meaning in a recipe; remove it" in said(words, 2, capfd)
    (here / "run" / "recipe.yaml").write_text(f"output: {value}\n")
    assert "has no meaning in a recipe" in said(["predict", "run", "good"], 2, capfd)
    assert not ran(here)
