"""`run.json`: the contract of its keys, exact round trips, and what cannot be read."""

import contextlib
import json
import random
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from records import run_record

from llm_neo.errors import InputError
from llm_neo.files import write_json_atomically
from llm_neo.meter import StageMeter
from llm_neo.run.directory import RunDirectory
from llm_neo.run.record import RunRecord, StageRecord, read_run, require_files, write_run

MODEL_KEYS = {
    "model",
    "accuracy",
    "accuracy_interval",
    "f1",
    "precision",
    "recall",
    "loss",
    "calibration_error",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_json_atomically(tmp_path / "run.json", run_record())
    return tmp_path


def document(run: Path) -> Any:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def test_the_contract_of_keys(run: Path) -> None:
    found = document(run)
    assert found["schema_version"] == 1
    assert {"task", "classes", "validation_rows", "majority_share", "gate", "teacher", "student"} <= set(found)
    assert {"retention", "evaluations", "stages", "environment", "best"} <= set(found)
    assert set(found["teacher"]) >= MODEL_KEYS | {"quantization"}
    assert set(found["student"]) >= MODEL_KEYS | {
        "trainable_parameters",
        "total_parameters",
        "trainable_share",
        "agreement",
        "soft_loss",
    }
    assert set(found["best"]) == {"step", "accuracy"}
    assert set(found["evaluations"][0]) >= {
        "step",
        "training_loss",
        "epoch",
        "validation_loss",
        "accuracy",
        "f1",
        "precision",
        "recall",
    }
    assert set(found["stages"]) == {"data", "teacher", "targets", "train", "evaluate"}
    assert set(found["stages"]["train"]) == {"seconds", "tokens", "peak_device_bytes", "peak_host_bytes"}


def test_a_record_comes_back_as_it_was(run: Path) -> None:
    assert read_run(run) == run_record()
    assert read_run(str(run)).retention == 752 / 760


def test_an_undefined_retention_is_null(tmp_path: Path) -> None:
    write_json_atomically(tmp_path / "run.json", run_record(retention=None))
    assert document(tmp_path)["retention"] is None
    assert read_run(tmp_path).retention is None


def test_a_record_cannot_be_changed() -> None:
    record = run_record()
    with pytest.raises(ValidationError):
        record.retention = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_no_figure_may_be_nan(broken: float) -> None:
    with pytest.raises(ValidationError):
        run_record(retention=broken)
    with pytest.raises(ValidationError):
        run_record(majority_share=broken)


def test_a_run_without_evaluations_is_no_run() -> None:
    with pytest.raises(ValidationError):
        run_record(evaluations=[])


def test_the_meter_becomes_a_stage() -> None:
    with StageMeter() as meter:
        meter.tokens += 12
    record = StageRecord.of(meter)
    assert (record.seconds, record.tokens) == (meter.seconds, 12)
    assert record.peak_host_bytes == meter.peak_host_bytes


def test_a_key_of_a_later_release_is_passed_over(run: Path) -> None:
    (run / "run.json").write_text(json.dumps(document(run) | {"colour": "blue"}), encoding="utf-8")
    assert read_run(run) == run_record()


def test_a_folder_without_the_record_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a finished run: it has no run\.json$"):
        read_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text("x")
    with pytest.raises(InputError, match=r"it has no run\.json; go on with it by `llm-neo distill --resume "):
        read_run(tmp_path)


def test_what_is_no_folder_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(InputError, match="is not a folder; name the output of a run"):
            read_run(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"schema_version": 1, "task"', "is damaged: "),
        (b"", "is damaged: "),
        (b"[1, 2]", "is damaged: the document: "),
        (b"{}", "is damaged: task: Field required"),
        (
            b'{"schema_version": 2}',
            r"written by a newer LLM-Neo \(schema_version 2, this one reads up to 1\); update",
        ),
        (b'{"schema_version": 0}', "is damaged: schema_version: "),
        (b"\xff\xfe", "cannot be read: "),
    ],
)
def test_a_damaged_record_is_one_sentence(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "run.json").write_bytes(text)
    with pytest.raises(InputError, match=message):
        read_run(tmp_path)


def test_a_wrong_figure_is_named(run: Path) -> None:
    found = document(run)
    found["teacher"]["accuracy"] = 1.5
    (run / "run.json").write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(InputError, match=r"is damaged: teacher\.accuracy: .*1 fault"):
        read_run(run)


def test_a_record_that_is_a_folder_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        read_run(tmp_path)


def test_the_schema_number_is_the_models_own() -> None:
    from llm_neo.run.record import SCHEMA_VERSION

    assert run_record().schema_version == SCHEMA_VERSION
    assert RunRecord.model_fields["schema_version"].default == SCHEMA_VERSION


def test_any_changed_byte_of_a_sealed_record_is_refused_or_says_the_same(tmp_path: Path) -> None:
    run, draw = RunDirectory(tmp_path), random.Random(0)
    write_run(run, run_record(files={"recipe.yaml": "0" * 64}))
    whole, record = run.run_json.read_bytes(), read_run(tmp_path)
    harmless = 0
    for _ in range(500):
        place = draw.randrange(len(whole))
        run.run_json.write_bytes(whole[:place] + bytes([whole[place] ^ draw.randrange(1, 256)]) + whole[place + 1 :])
        with contextlib.suppress(InputError):
            assert read_run(tmp_path) == record
            harmless += 1
    assert harmless <= 25


def test_a_record_may_be_written_in_another_layout(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_run(run, run_record())
    record = read_run(tmp_path)
    run.run_json.write_text(json.dumps(json.loads(run.run_json.read_text())))
    assert read_run(tmp_path) == record


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_file_that_is_not_as_the_run_wrote_it_is_named(tmp_path: Path, damage: str) -> None:
    run = RunDirectory(tmp_path)
    run.student.mkdir()
    (run.student / "a").write_text("x")
    record = run_record(files={"student/a": sha256(b"x").hexdigest(), "recipe.yaml": "0" * 64})
    require_files(run, record, "student/")
    (run.student / "a").unlink() if damage == "gone" else (run.student / "a").write_text("y")
    with pytest.raises(InputError, match="student/a is missing or not as the run wrote it; restore it or distil again"):
        require_files(run, record, "student/")
