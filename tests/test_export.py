"""What a run is exported as: loads by transformers alone, answers as the run did, or is not there."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import PAIRS, edit_json, material, recorded, run_of, unseal
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3NextConfig,
    SmolLM3Config,
    pipeline,
)

from llm_neo import export
from llm_neo.batching import encode
from llm_neo.cli import main
from llm_neo.errors import InputError, LlmNeoError
from llm_neo.export import export_run
from llm_neo.inference import load_run
from llm_neo.models.layers import select_layers
from llm_neo.progress import SilentProgress
from llm_neo.run.directory import RunDirectory
from llm_neo.run.predictions import Predictions, compare, read_predictions
from llm_neo.run.record import read_run

RUNS = {
    "cut": ("student.layers=[0, 2]",),
    "folder": (),
    "full": ("student.lora=null", "train.learning_rate=1e-3"),
    "pairs": PAIRS,
    "bfloat16": ("student.layers=2", "runtime.precision=bfloat16"),
}


class Told(SilentProgress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of this file."""
    folder = material(tmp_path_factory.mktemp("runs"))
    for name, overrides in RUNS.items():
        run_of(folder, f"run-{name}", *overrides)
    return folder


@pytest.fixture(scope="module")
def merged(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each run's merged model, and what was said of it."""
    target = tmp_path_factory.mktemp("merged")
    for name in RUNS:
        told = Told()
        assert export_run(folder / f"run-{name}", "merged", told, target / name) == target / name
        (target / f"{name}.txt").write_text("\n".join(told.lines), encoding="utf-8")
    return target


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A run of its own to damage."""
    shutil.copytree(folder / "run-cut", tmp_path / "run")
    unseal(tmp_path / "run")
    return tmp_path / "run"


def inputs_of(texts: list[list[str]]) -> list[Any]:
    """Texts or pairs as `pipeline` takes them."""
    return [text[0] if len(text) == 1 else {"text": text[0], "text_pair": text[1]} for text in texts]


@pytest.mark.parametrize("name", RUNS)
def test_transformers_alone_answers_as_the_run(folder: Path, merged: Path, name: str) -> None:
    texts, logits_NC = recorded(folder / f"run-{name}")
    model = AutoModelForSequenceClassification.from_pretrained(merged / name)
    tokenizer = AutoTokenizer.from_pretrained(merged / name)
    assert model.dtype == (torch.bfloat16 if name == "bfloat16" else torch.float32)
    columns = [list(column) for column in zip(*texts, strict=True)]
    with torch.no_grad():
        answers_NC = model(**tokenizer(*columns, padding=True, truncation=True, return_tensors="pt")).logits.float()
    difference_N = (answers_NC - logits_NC).abs().amax(1)
    # A processor without bfloat16 units rounds in other places: some steps of the grid at the largest logit.
    grid = 2.0 ** (logits_NC.abs().max().log2().floor().item() - 7)
    assert difference_N.max() <= (max(0.05, 6 * grid) if name == "bfloat16" else 1e-4)
    best_N2 = logits_NC.topk(2).values
    same_N = answers_NC.argmax(1) == logits_NC.argmax(1)
    assert (same_N | (best_N2[:, 0] - best_N2[:, 1] <= 2 * difference_N)).all()
    assert name == "bfloat16" or same_N.all()


@pytest.mark.parametrize("name", ["cut", "folder", "full", "pairs"])
def test_pipeline_gives_the_labels_of_the_run(folder: Path, merged: Path, name: str) -> None:
    texts, logits_NC = recorded(folder / f"run-{name}")
    classes = read_run(folder / f"run-{name}").classes
    classify = pipeline("text-classification", model=str(merged / name), device="cpu")
    answers = classify(inputs_of(texts), truncation=True)
    assert [answer["label"] for answer in answers] == [classes[index] for index in logits_NC.argmax(1)]
    assert [answer["score"] for answer in answers] == pytest.approx(logits_NC.softmax(1).amax(1).tolist(), abs=1e-4)
    assert classify.model.config.id2label == dict(enumerate(classes))
    assert classify.model.config.label2id == {name: index for index, name in enumerate(classes)}


@pytest.mark.parametrize("name", ["cut", "pairs"])
def test_pipeline_sees_the_ids_of_the_run(folder: Path, merged: Path, name: str) -> None:
    loaded = load_run(folder / f"run-{name}")
    texts, _ = recorded(loaded.run.path)
    rows = encode(loaded.tokenizer, [""] * len(texts), [tuple(text) for text in texts], 8)
    classify = pipeline("text-classification", model=str(merged / name), device="cpu")
    seen = [classify.preprocess(text, truncation=True)["input_ids"][0].tolist() for text in inputs_of(texts)]
    assert seen == [rows[row].tolist() for row in range(len(rows))]
    # The longest are cut, in the pipeline as in the run.
    assert rows.truncated > 0 and max(map(len, seen)) == classify.tokenizer.model_max_length == 8


def test_what_was_checked_is_said(merged: Path) -> None:
    said = (merged / "cut.txt").read_text(encoding="utf-8")
    assert said.startswith("checked on 60 rows: no logit is further than ")
    assert "from the run's (rounding explains " in said


def test_all_weights_merged_are_the_same_model(folder: Path, merged: Path) -> None:
    ours = load_file(folder / "run-full" / "student" / "model.safetensors")
    theirs = load_file(merged / "full" / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_merged_model_has_no_adapter_left(merged: Path) -> None:
    for name in RUNS:
        names = load_file(merged / name / "model.safetensors").keys()
        assert "score.weight" in names and not any("lora" in key or "modules_to_save" in key for key in names)
        assert {file.name for file in (merged / name).iterdir()} == {
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        }


def test_an_adapter_is_exported_as_it_is(run: Path) -> None:
    told = Told()
    target = export_run(run, "adapter", told)
    assert target == run / "export" / "adapter"
    files = {file.relative_to(run / "student") for file in (run / "student").rglob("*")}
    assert {file.relative_to(target) for file in target.rglob("*")} == files
    assert all((target / file).read_bytes() == (run / "student" / file).read_bytes() for file in files if file.suffix)
    assert told.lines[-1].startswith("checked on 60 rows")
    # A second time it is in the way.
    with pytest.raises(InputError, match="adapter exists already; remove it or name another folder with --output"):
        export_run(run, "adapter", told)


def test_all_weights_have_no_adapter(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="trained all weights and has no adapter; export it with --to merged"):
        export_run(folder / "run-full", "adapter", Told(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_taken_and_parents_are_made(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert export_run(run, "merged", Told(), tmp_path / "empty") == tmp_path / "empty"
    assert export_run(run, "adapter", Told(), tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert (tmp_path / "empty" / "config.json").is_file() and (tmp_path / "a" / "b" / "base").is_dir()


@pytest.mark.parametrize("kind", ["file", "full", "link"])
def test_what_is_there_is_never_replaced(run: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("mine")
    elif kind == "full":
        target.mkdir()
        (target / "mine").write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="exists already"):
        export_run(run, "merged", Told(), target)
    assert target.is_symlink() == (kind == "link") and not list(tmp_path.glob(".target*"))


def test_the_students_own_folder_is_no_target(run: Path) -> None:
    for inside in (run / "student" / "merged", run / "student" / ".." / "student" / "deep" / "er"):
        with pytest.raises(InputError, match="lies in the run's own student"):
            export_run(run, "adapter", Told(), inside)


def test_a_folder_that_cannot_be_made_is_one_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write .*target: File exists; choose another output"):
        export_run(run, "merged", Told(), tmp_path / "file" / "target")


@pytest.mark.parametrize("kind", ["adapter", "merged"])
class TestChanged:
    """A run whose files were changed since is not exported, and leaves nothing."""

    @pytest.fixture(autouse=True)
    def _leaves_nothing(self, run: Path, tmp_path: Path, kind: str) -> Iterator[None]:
        before = {file for file in run.rglob("*") if file.is_file()}
        yield
        assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
        assert not list(run.glob("export/*")) and not list(run.glob("export/.*"))
        assert before >= {file for file in run.rglob("*") if file.is_file()}

    def refused(self, run: Path, kind: Any, message: str, error: type[Exception] = InputError) -> None:
        for output in (None, run.parent / "target"):
            with pytest.raises(error, match=message):
                export_run(run, kind, Told(), output)

    @pytest.mark.parametrize("part", ["lora_B", "score"])
    def test_an_adapter(self, run: Path, kind: str, part: str) -> None:
        file = run / "student" / "adapter_model.safetensors"
        tensors = load_file(file)
        name = next(name for name in tensors if part in name)
        save_file({**tensors, name: tensors[name] * 1.2}, file, {"format": "pt"})
        self.refused(
            run,
            kind,
            "no longer answers as it did at the end of the run: of row validation:.* a logit is off by .*, where "
            "rounding explains .*Its adapter, its base or predictions.jsonl was changed since; nothing was exported",
        )

    def test_a_base(self, run: Path, kind: str) -> None:
        file = run / "student" / "base" / "model.safetensors"
        tensors = load_file(file)
        tensors["model.norm.weight"] *= 1.01
        save_file(tensors, file, {"format": "pt"})
        self.refused(run, kind, "no longer answers as it did")

    def test_a_tokenizer(self, run: Path, kind: str) -> None:
        file = run / "student" / "tokenizer.json"
        file.write_text(file.read_text(encoding="utf-8").replace('"good": 3,', '"good": 9,').replace('"bad": 9,', ""))
        self.refused(run, kind, "no longer answers as it did")

    def test_predictions(self, run: Path, kind: str) -> None:
        lines = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        last = json.loads(lines[-1])
        last["student_logits"][0] += 0.01
        (run / "predictions.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]), encoding="utf-8")
        self.refused(run, kind, f"of row {last['id']} a logit is off by 0.01.* 0 of 60 checked rows get another class")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "is missing or damaged"),
            ("", "must hold 60 rows of 2 finite student_logits, as run.json says, but does not"),
            ("{", "is missing or damaged"),
            ('{"id": "a", "text": "good", "student_logits": [0, 1]}', "text must be a list of strings"),
            ('{"id": "a", "text": ["good"], "student_logits": [0, 1]}', "must hold 60 rows"),
            ('{"id": "a", "text": ["good"]}', "student_logits"),
        ],
    )
    def test_predictions_that_are_none(self, run: Path, kind: str, content: str | None, message: str) -> None:
        (run / "predictions.jsonl").unlink()
        if content is not None:
            (run / "predictions.jsonl").write_text(content)
        else:
            (run / "predictions.jsonl").mkdir()
        self.refused(run, kind, message)

    def test_a_record(self, run: Path, kind: str) -> None:
        (run / "run.json").unlink()
        self.refused(run, kind, "is not a finished run")


@pytest.mark.parametrize("damage", [1.05, float("nan")])
def test_a_merge_that_changes_the_answers_is_a_fault_of_ours(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: float
) -> None:
    merge = export.merge

    def wrong(precise: Any, folder: Path, dtype: torch.dtype) -> None:
        merge(precise, folder, dtype)
        tensors = load_file(folder / "model.safetensors")
        tensors["score.weight"] *= damage
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(export, "merge", wrong)
    with pytest.raises(LlmNeoError, match="merging changed the student's answers: .*--to adapter") as refused:
        export_run(run, "merged", Told(), tmp_path / "target")
    assert refused.value.exit_code == 1 and [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_a_run_of_a_gpu_in_bfloat16_is_checked_as_such_in_float32(folder: Path, tmp_path: Path) -> None:
    """Where there are no bfloat16 units the adapter works in float32, but the recorded logits were rounded."""
    shutil.copytree(folder / "run-bfloat16", tmp_path / "run")
    unseal(tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("precision: bfloat16", "precision: float32"))
    assert export_run(tmp_path / "run", "adapter", Told()).is_dir()


class TestCompare:
    recorded = Predictions(("a", "b"), (("x",), ("y",)), torch.tensor([[1.0, -1.0], [0.0, 0.00005]]))

    @pytest.mark.parametrize(
        ("answers", "difference", "row", "changed", "same"),
        [
            ([[1.0, -1.0], [0.0, 0.00005]], 0.0, "a", 0, True),
            # Of equal classes another one may win.
            ([[1.0, -1.0], [0.00006, 0.0]], 0.00006, "b", 0, True),
            ([[1.0, -1.00011], [0.0, 0.00005]], 0.00011, "a", 0, False),
            ([[-1.0, 1.0], [0.0, 0.00005]], 2.0, "a", 1, False),
            ([[1.0, -1.0], [float("nan"), 0.0]], float("inf"), "b", 0, False),
        ],
    )
    def test_what_rounding_explains(
        self, answers: list[list[float]], difference: float, row: str, changed: int, same: bool
    ) -> None:
        found = compare(torch.tensor(answers), self.recorded, torch.float32)
        assert (found.rows, found.row, found.changed, found.same) == (2, row, changed, same)
        assert found.difference == pytest.approx(difference, rel=1e-2) and found.tolerance == pytest.approx(1e-4)

    def test_it_grows_with_the_logits_and_the_coarser_of_two_types(self) -> None:
        large = Predictions(("a",), (("x",),), torch.tensor([[7.0, -8.0]]))
        assert compare(large.student_NC, large, torch.float32).tolerance == pytest.approx(8e-4)
        assert compare(large.student_NC, large, torch.float32, torch.bfloat16).tolerance == pytest.approx(0.4)


def test_a_sample_of_the_rows_is_spread_over_all_of_them(folder: Path) -> None:
    directory = RunDirectory(folder / "run-cut")
    record = read_run(directory.path)
    texts, logits_NC = recorded(directory.path)
    few = read_predictions(directory, record, 4)
    places = [0, 20, 39, 59]
    assert few.texts == tuple(tuple(texts[place]) for place in places)
    assert torch.equal(few.student_NC, logits_NC[places])
    assert len(read_predictions(directory, record, 1000).ids) == 60


SHAPE = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
}


def classifier(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize(
    "config",
    [
        SmolLM3Config(**SHAPE, no_rope_layers=[1, 0, 1, 0]),
        Qwen2MoeConfig(**SHAPE, **EXPERTS, mlp_only_layers=[0, 3]),
        Qwen3NextConfig(**SHAPE, **EXPERTS, head_dim=64),
    ],
    ids=["smollm3", "qwen2_moe", "qwen3_next"],
)
def test_layers_that_differ_from_one_another_stay_what_they_are(config: Any, tmp_path: Path) -> None:
    model = classifier(config)
    tokens_BT = torch.randint(3, 60, (2, 12))
    with torch.no_grad():
        whole = model(tokens_BT, use_cache=False).logits
        select_layers(model, [0, 1, 3])
        expected = model(tokens_BT, use_cache=False).logits
        model.save_pretrained(tmp_path)
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
        assert not torch.allclose(whole, expected, atol=0.01)
        torch.testing.assert_close(again(tokens_BT).logits, expected, atol=1e-6, rtol=0)


def test_layers_that_the_configuration_cannot_describe_are_refused() -> None:
    """Every second layer has experts: the first and the third would be taken for the first and the second."""
    model = classifier(Qwen2MoeConfig(**SHAPE, **EXPERTS, decoder_sparse_step=2))
    with pytest.raises(InputError, match=r"student.layers: the layers \[0, 2\] of a Qwen2MoeForSeq.* set null"):
        select_layers(model, [0, 2])


def test_the_command_line_says_which_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--to", "merged"]) == 0
    assert capsys.readouterr().out == f"{run / 'export' / 'merged'}\n"
    assert main(["export", str(run), "--to", "merged"]) == 2
    edit_json(run / "run.json", schema_version=99)
    assert main(["export", str(run), "--to", "adapter"]) == 2
