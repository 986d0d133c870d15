"""A finished run at work: its student loads as anyone would load it, measures and classifies as it did in the run."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from assets_builders import tiny_gguf, tiny_vocabulary
from tiny import GOOD, tiny_llama, toy_sentences
from tiny_runs import (
    PAIRS,
    cached_on_the_hub,
    edit_json,
    hub_cache,
    material,
    recorded,
    run_of,
    unseal,
)
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from llm_neo import inference
from llm_neo.assets import resolve_model
from llm_neo.batching import encode
from llm_neo.cli import main
from llm_neo.errors import InputError
from llm_neo.inference import evaluate_run, load_run, predict_run
from llm_neo.models.load import load_config, load_tokenizer
from llm_neo.recipe import dump_recipe, load_recipe
from llm_neo.run.record import read_run

TRAINED_ON, LATER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
"""Commits of a model on the hub."""

RUNS = {
    "cut": ("student.layers=[0, 2]",),
    "gguf": ("student.model=tiny.gguf", "data.max_length_tokens=24"),
    "folder": (),
    "hub": ("student.model=owner/tiny",),
    "full": ("student.lora=null", "train.learning_rate=1e-3"),
    "pairs": PAIRS,
    "closing": ("student.model=closing", "student.layers=2"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of this file, their material and the hub's cache."""
    folder = material(tmp_path_factory.mktemp("runs"))
    tiny_gguf(folder / "tiny.gguf")
    tiny_llama(cached_on_the_hub(folder / "hub", "owner/tiny", TRAINED_ON), seed=1)
    closing_tokenizer(tiny_llama(folder / "closing", layers=3))
    with hub_cache(folder / "hub"):
        for name, overrides in RUNS.items():
            run_of(folder, f"run-{name}", *overrides)
    # The branch has moved on since.
    tiny_llama(cached_on_the_hub(folder / "hub", "owner/tiny", LATER), seed=2)
    return folder


@pytest.fixture(autouse=True)
def _hub(folder: Path) -> Iterator[None]:
    with hub_cache(folder / "hub"):
        yield


def closing_tokenizer(folder: Path) -> None:
    """Make the folder's tokenizer end each text with </s>, which is also what it pads with."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A <s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


PLAIN = """
import json, os, re, sys
sys.modules["llm_neo"] = None
answers = {}
for name, texts in json.load(open("texts.json", encoding="utf-8")).items():
    os.chdir(name)
    space = {}
    card = open("student/README.md", encoding="utf-8").read()
    exec(re.search(r"```python\\n(.*?)```", card, re.DOTALL)[1], space)
    model, tokenizer, torch = (space[part] for part in ("model", "tokenizer", "torch"))
    columns = [list(column) for column in zip(*texts)]
    with torch.no_grad():
        batch = model(**tokenizer(*columns, padding=True, truncation=True, return_tensors="pt")).logits
        single = [model(**tokenizer(*text, truncation=True, return_tensors="pt")).logits[0] for text in texts]
    answers[name] = {
        "batch": batch.tolist(),
        "single": torch.stack(single).tolist(),
        "ids": tokenizer(*columns)["input_ids"],
        "names": model.config.id2label,
    }
    os.chdir("..")
sys.exit("llm_neo was loaded") if sys.modules["llm_neo"] else None
json.dump(answers, open("answers.json", "w", encoding="utf-8"))
"""


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the code of the model card makes of each `student/`, alone in another process.

    Only that folder is copied; there is another home, no cache but the hub's, no network and no llm_neo.
    """
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    texts = {}
    for name in RUNS:
        shutil.copytree(folder / f"run-{name}" / "student", elsewhere / name / "student")
        texts[name] = recorded(folder / f"run-{name}")[0]
    (elsewhere / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    (elsewhere / "home").mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(elsewhere / "home"),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-I", "-c", PLAIN]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=elsewhere)
    assert ended.returncode == 0, ended.stderr
    answers: dict[str, Any] = json.loads((elsewhere / "answers.json").read_text(encoding="utf-8"))
    return answers


@pytest.mark.parametrize("name", RUNS)
def test_the_student_loads_by_the_code_of_its_card_alone(folder: Path, plain: dict[str, Any], name: str) -> None:
    _, logits_NC = recorded(folder / f"run-{name}")
    assert logits_NC.std() > 0.1
    for way in ("batch", "single"):
        torch.testing.assert_close(torch.tensor(plain[name][way]), logits_NC, atol=1e-5, rtol=0)
    assert list(plain[name]["names"].values()) == list(read_run(folder / f"run-{name}").classes)


@pytest.mark.parametrize("name", RUNS)
def test_the_saved_tokenizer_gives_the_ids_of_the_run(folder: Path, plain: dict[str, Any], name: str) -> None:
    """Whole texts; what is longer than the limit is cut in the same place by both."""
    run = folder / f"run-{name}"
    texts, _ = recorded(run)
    saved = AutoTokenizer.from_pretrained(run / "student")
    recipe = load_recipe(str(run / "recipe.yaml"))
    limit = recipe.data.max_length_tokens
    assert saved.model_max_length == limit
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LLM_NEO_CACHE", str(folder / "cache"))
        source = folder / resolve_model(recipe.student.model).folder
    used = load_tokenizer(source, "used", load_config(source, "used", False), limit, False)
    columns = [list(column) for column in zip(*texts, strict=True)]
    assert used(*columns)["input_ids"] == plain[name]["ids"]
    rows = encode(used, [""] * len(texts), [tuple(text) for text in texts], limit)
    assert 0 < rows.truncated < len(texts)
    cut = saved(*columns, truncation=True)["input_ids"]
    assert [list(rows[row]) for row in range(len(rows))] == [ids[:-1] if name == "closing" else ids for ids in cut]


def test_ids_are_those_that_can_be_counted_by_hand(folder: Path) -> None:
    single = AutoTokenizer.from_pretrained(folder / "run-cut" / "student")
    assert single("the film is good")["input_ids"] == [1, 15, 16, 18, 3]
    assert single("good", "film")["input_ids"] == [1, 3, 1, 16]
    bytewise = AutoTokenizer.from_pretrained(folder / "run-gguf" / "student")
    assert [tiny_vocabulary()[i] for i in bytewise("the 20")["input_ids"]] == [
        "<|im_start|>", "t", "he", "Ġ", "2", "0"
    ]  # fmt: skip


def test_the_adapter_says_where_its_base_is(folder: Path) -> None:
    def base(name: str) -> tuple[str, str | None]:
        config = json.loads((folder / f"run-{name}" / "student" / "adapter_config.json").read_text())
        return config["base_model_name_or_path"], config["revision"]

    assert base("cut") == base("gguf") == ("base", None)
    # The recipe names the folder relative to where the run was started.
    assert base("folder") == (str(folder / "llama"), None)
    assert base("hub") == ("owner/tiny", TRAINED_ON)
    assert not (folder / "run-hub" / "student" / "base").exists()
    assert not (folder / "run-full" / "student" / "adapter_config.json").exists()
    config = json.loads((folder / "run-cut" / "student" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"] and config["modules_to_save"] == ["classifier", "score"]


def test_whoever_may_read_a_run_may_read_its_weights(folder: Path) -> None:
    for name in RUNS:
        student = folder / f"run-{name}" / "student"
        assert {file.stat().st_mode for file in student.rglob("*.*")} == {(student / "README.md").stat().st_mode}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_loads_as_it_was_from_anywhere(folder: Path, name: str) -> None:
    loaded = load_run(folder / f"run-{name}")
    texts, logits_NC = recorded(loaded.run.path)
    assert (loaded.dtype, loaded.device.type) == (torch.float32, "cpu") and not loaded.model.training
    answers_NC = loaded.logits([""] * len(texts), [tuple(text) for text in texts])
    torch.testing.assert_close(answers_NC, logits_NC, atol=1e-5, rtol=0)


def test_bfloat16_reloads_to_its_own_logits(folder: Path) -> None:
    run = run_of(folder, "run-bfloat16", "student.layers=2", "runtime.precision=bfloat16")
    texts, logits_NC = recorded(run)
    loaded = load_run(run)
    assert loaded.dtype == torch.bfloat16
    weights = dict(loaded.model.named_parameters())
    trained = {name for name, weight in weights.items() if weight.dtype == torch.float32 and "original" not in name}
    assert trained == {name for name in weights if "lora_" in name or "modules_to_save" in name}
    answers_NC = loaded.logits([""] * len(texts), [tuple(text) for text in texts])
    assert (answers_NC - logits_NC).abs().max() <= 0.05
    # In float32, as the card has it, the same weights answer alike.
    precise = load_run(run, dtype=torch.float32)
    answers_NC = precise.logits([""] * len(texts), [tuple(text) for text in texts])
    assert 0 < (answers_NC - logits_NC).abs().max() <= 0.05


def test_all_weights_are_float32_whatever_the_precision(folder: Path) -> None:
    run = run_of(folder, "run-full-bfloat16", *RUNS["full"], "runtime.precision=bfloat16")
    texts, logits_NC = recorded(run)
    loaded = load_run(run)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
    answers_NC = loaded.logits([""] * len(texts), [tuple(text) for text in texts])
    torch.testing.assert_close(answers_NC, logits_NC, atol=1e-5, rtol=0)


FIGURES = ("rows", "accuracy", "f1", "precision", "recall", "loss", "calibration_error")


def same_as_recorded(scores: dict[str, Any], run: Path) -> None:
    record = read_run(run)
    assert {name: scores[name] for name in FIGURES} == pytest.approx(
        {name: getattr(record.student, name) for name in FIGURES}, abs=1e-6
    )
    assert scores["accuracy_interval"] == pytest.approx(record.student.accuracy_interval, abs=1e-6)
    assert scores["majority_share"] == record.majority_share


@pytest.mark.parametrize("name", ["cut", "gguf", "full", "hub"])
def test_the_validation_file_gives_the_figures_of_the_run_again(folder: Path, name: str) -> None:
    scores = evaluate_run(folder / f"run-{name}", str(folder / "validation.csv"))
    same_as_recorded(scores, folder / f"run-{name}")
    assert scores["data"] == str(folder / "validation.csv")


def test_majority_share_is_that_of_the_given_rows(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("sentence\tlabel\n" + "a\tpositive\n" * 3 + "b\tnegative\n", encoding="utf-8")
    scores = evaluate_run(folder / "run-cut", str(tmp_path / "rows.tsv"))
    assert (scores["rows"], scores["majority_share"]) == (4, 0.75)


@pytest.mark.parametrize("form", ["rows.tsv", "header.tsv", "header.csv", "rows.jsonl"])
def test_a_recipe_that_names_columns_reads_files_with_and_without_a_header(
    folder: Path, tmp_path: Path, form: str
) -> None:
    """Its list of columns belongs to the file that it was written for."""
    run = tmp_path / "run"
    shutil.copytree(folder / "run-cut", run)
    unseal(run)
    recipe = load_recipe(str(run / "recipe.yaml"), ["data.validation.columns=[id, label, sentence]"])
    (run / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    rows = [(f"{n}", label, text) for n, (text, label) in enumerate(toy_sentences(60, seed=2))]
    file = tmp_path / form
    if form == "rows.jsonl":
        lines = [json.dumps({"sentence": text, "label": label}) for _, label, text in rows]
    else:
        mark = "," if file.suffix == ".csv" else "\t"
        header = [("sentence", "label")] if form.startswith("header") else []
        shown = [(text, label) for _, label, text in rows] if header else rows
        lines = [mark.join(row) for row in [*header, *shown]]
    file.write_text("\n".join(lines), encoding="utf-8")
    same_as_recorded(evaluate_run(run, str(file)), folder / "run-cut")


def test_rows_held_out_from_train_are_read_like_train(folder: Path) -> None:
    scores = evaluate_run(folder / "run-pairs", str(folder / "pairs.tsv"))
    assert scores["rows"] == 160 and 0 < scores["majority_share"] < 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\tlabel\ngood\tpositive\n", "there is no column 'sentence'; The columns are 'text', 'label'"),
        ("sentences\tlabel\ngood\tpositive\n", "did you mean 'sentences'?"),
        ("sentence\tlabel\ngood\tsplendid\n", "line 2: .*'splendid'"),
        ("sentence\tlabel\ngood\t\n", "line 2: .*label"),
    ],
)
def test_rows_that_do_not_fit_are_one_clear_error(folder: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "rows.tsv").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        evaluate_run(folder / "run-cut", str(tmp_path / "rows.tsv"))


def test_predictions_are_those_of_the_run(folder: Path) -> None:
    for name in ("cut", "pairs"):
        run = folder / f"run-{name}"
        texts, logits_NC = recorded(run)
        found = list(predict_run(run, [tuple(f" {part}\n" for part in text) for text in texts]))
        classes = read_run(run).classes
        assert [one.label for one in found] == [classes[index] for index in logits_NC.argmax(1)]
        assert len({one.label for one in found}) > 1
        for one, row in zip(found, logits_NC.softmax(1).tolist(), strict=True):
            assert one.scores == pytest.approx(dict(zip(classes, row, strict=True)), abs=1e-5)
            assert sum(one.scores.values()) == pytest.approx(1, abs=1e-6)
            assert one.label == max(one.scores, key=one.scores.__getitem__)


def test_texts_are_taken_a_few_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "PREDICTED_AT_ONCE", 3)
    taken = []

    def texts() -> Iterator[str]:
        for number in range(8):
            taken.append(number)
            yield f"the film is {GOOD[number % 6]}"

    predictions = predict_run(folder / "run-cut", texts())
    assert taken == []
    for number in range(8):
        next(predictions)
        assert len(taken) == min(8, number // 3 * 3 + 3)
    assert next(predictions, None) is None
    assert list(predict_run(folder / "run-cut", [])) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("cut", " ", "text 2: this run classifies one text that is not empty, got ' '"),
        ("cut", ("a", "b"), "text 2: .* got \\('a', 'b'\\)"),
        ("cut", "a\0b", "text 2"),
        ("cut", "\udcff", "text 2"),
        ("pairs", "good", "two texts that are not empty, with a TAB between them, got 'good'"),
        ("pairs", ("good", ""), "two texts"),
    ],
)
def test_what_is_no_text_of_the_run_is_refused(folder: Path, name: str, text: Any, message: str) -> None:
    right = ("good",) if name == "cut" else ("good", "bad")
    with pytest.raises(InputError, match=message):
        list(predict_run(folder / f"run-{name}", [right, text]))


def test_the_command_line_predicts_words_files_and_stdin_alike(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(folder / "run-cut")
    texts = ["the film is good", "a dull plot"]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"sentence": text}) for text in texts))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(texts).encode())))
    printed = []
    for words in (texts, ["--file", str(tmp_path / "texts.txt")], ["--file", str(tmp_path / "texts.jsonl")], []):
        assert main(["predict", run, *words, "--json"]) == 0
        printed.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert [line["text"] for line in printed[0]] == texts and printed.count(printed[0]) == 4
    expected = [{"label": one.label, "scores": one.scores} for one in predict_run(folder / "run-cut", texts)]
    assert [{"label": line["label"], "scores": line["scores"]} for line in printed[0]] == expected


def test_the_command_line_evaluates(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(folder / "run-pairs"), "--data", str(folder / "pairs.tsv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 160


class TestDamaged:
    """A run that is no longer whole is one sentence, never a wrong answer."""

    @pytest.fixture
    def run(self, folder: Path, tmp_path: Path) -> Path:
        shutil.copytree(folder / "run-cut", tmp_path / "run")
        unseal(tmp_path / "run")
        return tmp_path / "run"

    def test_without_its_record(self, run: Path) -> None:
        (run / "run.json").unlink()
        with pytest.raises(InputError, match="is not a finished run"):
            load_run(run)

    def test_without_its_student(self, run: Path) -> None:
        shutil.rmtree(run / "student")
        with pytest.raises(InputError, match="student is not there, so there is no student to load; distil again"):
            load_run(run)

    @pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
    def test_without_its_adapter(self, run: Path, name: str) -> None:
        (run / "student" / name).unlink()
        with pytest.raises(InputError, match=f"holds no {name}"):
            load_run(run)

    @pytest.mark.parametrize("content", ["[]", "{"])
    def test_with_another_description(self, run: Path, content: str) -> None:
        (run / "student" / "adapter_config.json").write_text(content)
        with pytest.raises(InputError, match="is no"):
            load_run(run)

    def test_without_its_base(self, run: Path) -> None:
        shutil.rmtree(run / "student" / "base")
        with pytest.raises(InputError, match="base cannot be loaded"):
            load_run(run)

    def test_on_a_base_of_other_depth(self, run: Path, folder: Path) -> None:
        edit_json(run / "student" / "adapter_config.json", base_model_name_or_path=str(folder / "llama"))
        with pytest.raises(InputError, match="was made for another base"):
            load_run(run)

    def test_on_a_base_that_is_gone(self, run: Path) -> None:
        edit_json(run / "student" / "adapter_config.json", base_model_name_or_path="/no/such/folder")
        with pytest.raises(InputError, match="/no/such/folder is not there"):
            load_run(run)

    def test_all_weights_without_a_head(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder / "run-full", tmp_path / "full")
        unseal(tmp_path / "full")
        tiny_llama(tmp_path / "full" / "student", layers=3)
        with pytest.raises(InputError, match="holds no head for the classes"):
            load_run(tmp_path / "full")


def test_a_recipe_for_the_cpu_stays_there(folder: Path) -> None:
    recipe = load_recipe(str(folder / "run-cut" / "recipe.yaml"))
    assert inference.select_student_device(recipe) == torch.device("cpu")
    anywhere = recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"device": "cuda"})})
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert inference.select_student_device(anywhere) == torch.device(expected)
