"""How many texts lose their end for whom, and whether both read the same tokens: counted before anything is loaded."""

import json
from pathlib import Path

import pytest
from tiny import tiny_llama, tiny_tokenizer, toy_file
from tiny_runs import PROMPT, edit_json, material, run_of, unseal
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llm_neo.cli import main
from llm_neo.reading import read_both
from llm_neo.run.record import read_run

TEXTS = [("good",), ("good film is",), ("good film is very bad",)]
"""1, 3 and 5 words; a token <s> stands before each."""


@pytest.fixture
def ours(tmp_path: Path) -> PreTrainedTokenizerBase:
    tiny_tokenizer(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def other(folder: Path) -> Path:
    """The tokenizer whose words have other numbers."""
    tiny_tokenizer(folder)
    document = json.loads((folder / "tokenizer.json").read_text())
    words = document["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder


def test_texts_above_the_limit_are_counted_and_said(ours: PreTrainedTokenizerBase) -> None:
    found = read_both(ours, ours, TEXTS, 4)
    assert (found.teacher_truncated, found.student_truncated, found.same_tokens) == (1, 1, True)
    (note,) = found.notes
    assert note.endswith("longer than data.max_length_tokens = 4 and lose their end: 1 for teacher and student")
    assert read_both(ours, ours, TEXTS, 6).notes == ()


def test_a_prompted_teacher_is_counted_by_the_text_alone(ours: PreTrainedTokenizerBase) -> None:
    found = read_both(ours, ours, TEXTS, 3, prompted=True)
    assert (found.teacher_truncated, found.student_truncated) == (1, 2)
    assert found.notes[0].endswith("1 for the teacher and 2 for the student")
    pairs = [("good", "good film is bad"), ("good", "bad")]
    assert read_both(ours, ours, pairs, 3, prompted=True).teacher_truncated == 1


def test_tokenizers_that_differ_are_said(ours: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    found = read_both(AutoTokenizer.from_pretrained(other(tmp_path / "other")), ours, TEXTS, 9)
    assert not found.same_tokens
    assert found.notes[0].startswith("teacher and student read different tokens (tokenizers of")


def test_the_same_words_split_otherwise_are_different_tokens(ours: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path / "bare")
    document = json.loads((tmp_path / "bare" / "tokenizer.json").read_text())
    document["post_processor"] = None
    (tmp_path / "bare" / "tokenizer.json").write_text(json.dumps(document))
    assert not read_both(AutoTokenizer.from_pretrained(tmp_path / "bare"), ours, TEXTS, 9).same_tokens


def test_a_run_says_so_before_the_teacher_and_keeps_it_in_run_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(material(tmp_path))
    tiny_llama(tmp_path / "teacher", layers=1, seed=5)
    other(tmp_path / "teacher")
    rows = (tmp_path / "train.tsv").read_text()
    first = rows.splitlines()[1].split("\t")
    torn = [first[0], {"negative": "positive", "positive": "negative"}[first[1]]]
    (tmp_path / "train.tsv").write_text(rows + "\t".join(torn) + "\n")
    toy_file(tmp_path / "validation.csv", 60, seed=1)
    run_of(tmp_path, "quiet", "student.layers=1")
    (tmp_path / "recipe.yaml").write_text((tmp_path / "recipe.yaml").read_text().replace("unnamed", "run"))
    assert main(["distill", "recipe.yaml", PROMPT, "teacher.model=teacher", "student.layers=1"]) == 0
    said = capfd.readouterr().err.partition("== teacher")[0]
    record = read_run(tmp_path / "run")
    doubts = record.doubts
    assert doubts is not None and doubts.contradicting_train_texts >= 1 and doubts.shared_texts >= 50
    assert 0 < doubts.teacher_truncated_texts < doubts.student_truncated_texts
    assert not doubts.same_tokens
    for words in ("with different labels", "in train too", "lose their end", "read different tokens"):
        assert words in said and any(words in note for note in record.notes)
    same = read_run(tmp_path / "quiet").doubts
    assert same is not None and same.same_tokens

    # A base that was changed after the run is refused, since nothing else would tell.
    monkeypatch.setenv("LLM_NEO_CACHE", str(tmp_path / "cache"))
    run = run_of(tmp_path, "whole")
    assert main(["predict", str(run), "good film"]) == 0
    capfd.readouterr()
    tiny_llama(tmp_path / "llama", layers=3, seed=9)
    assert main(["predict", str(run), "good film"]) == 2
    assert "is no longer the one that this student was trained on" in capfd.readouterr().err
    unseal(run)
    edit_json(run / "run.json", fingerprints={})
    assert main(["predict", str(run), "good film"]) == 0


def test_an_adapter_that_names_another_base_is_doubted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(material(tmp_path))
    student = run_of(tmp_path, "first") / "student"
    words = ["distill", "recipe.yaml", f"teacher.adapter={student}", "teacher.gate=warn"]
    assert main([*words, "output=second"]) == 0
    assert "was trained on" not in capfd.readouterr().err
    edit_json(student / "adapter_config.json", base_model_name_or_path="other/base")
    assert main([*words, "output=third"]) == 0
    assert "the adapter student was trained on 'other/base', but is put on 'llama'" in capfd.readouterr().err
    assert any("trained on 'other/base'" in note for note in read_run(tmp_path / "third").notes)


@pytest.mark.parametrize("limit", [1, 3, 17, 20, 23, 40])
def test_what_is_not_tokenised_is_never_too_long(ours: PreTrainedTokenizerBase, limit: int) -> None:
    letters = ["a" * length for length in range(1, 60)] + ["é" * 9, "a é " * 7]
    texts = [(" ".join(word),) for word in letters]
    exact = sum(len(ours(text)["input_ids"]) > limit for (text,) in texts)
    assert 0 < exact <= len(texts) and read_both(ours, ours, texts, limit).student_truncated == exact
