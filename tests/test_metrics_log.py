"""The log of losses: each line at once, valid JSON always, no step twice."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from llm_neo.errors import InputError, ResourceError
from llm_neo.run.metrics_log import MetricsLine, MetricsLog, read_metrics

KEYS = [
    "stage",
    "step",
    "loss",
    "hard_loss",
    "soft_loss",
    "learning_rate",
    "gradient_norm",
    "tokens",
    "seconds",
]


def line(stage: str, step: int, **figures: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "stage": stage,
        "step": step,
        "loss": 0.5,
        "hard_loss": 0.4,
        "soft_loss": 0.6,
        "learning_rate": 1e-3,
        "gradient_norm": 2.0,
        "tokens": 100,
        "seconds": 1.5,
    }
    return values | figures


def steps(path: Path) -> list[tuple[str, int]]:
    return [(entry.stage, entry.step) for entry in read_metrics(path)]


def test_the_contract_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write(MetricsLine(**line("train", 10)))
    (text,) = path.read_text(encoding="utf-8").splitlines()
    assert list(json.loads(text)) == KEYS
    assert json.loads(text) == line("train", 10)


def test_a_line_is_readable_while_the_log_is_open(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write(MetricsLine(**line("train", 1)))
        assert read_metrics(path) == [MetricsLine(**line("train", 1))]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(tmp_path: Path, broken: float) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write(MetricsLine(**line("train", 1, loss=broken, gradient_norm=broken, soft_loss=None)))
    (entry,) = read_metrics(path)
    assert (entry.loss, entry.gradient_norm, entry.soft_loss, entry.hard_loss) == (None, None, None, 0.4)
    assert "NaN" not in path.read_text(encoding="utf-8")
    assert "Infinity" not in path.read_text(encoding="utf-8")


def test_a_second_session_appends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for stage in ("teacher", "train"):
        with MetricsLog(path) as log:
            log.write(MetricsLine(**line(stage, 10)))
            log.write(MetricsLine(**line(stage, 20)))
    assert steps(path) == [("teacher", 10), ("teacher", 20), ("train", 10), ("train", 20)]


def test_going_on_from_a_checkpoint_makes_the_log_what_it_was_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for stage, step in (("teacher", 10), ("teacher", 20), ("train", 10), ("train", 20), ("train", 30)):
            log.write(MetricsLine(**line(stage, step, loss=1.0)))
    # The line of step 20 is lost, those of 10 and 20 were before the checkpoint.
    path.write_text("".join(text for text in path.open() if '"train", "step": 20' not in text), encoding="utf-8")
    with MetricsLog(path) as log:
        log.replace("train", [MetricsLine(**line("train", step, loss=1.0)) for step in (10, 20)])
        log.write(MetricsLine(**line("train", 30, loss=3.0)))
    assert steps(path) == [("teacher", 10), ("teacher", 20), ("train", 10), ("train", 20), ("train", 30)]
    assert [entry.loss for entry in read_metrics(path)[2:]] == [1.0, 1.0, 3.0]


def test_a_torn_line_is_gone_when_the_log_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps(line("train", 1)) + "\n"
    path.write_text(whole + whole[:40], encoding="utf-8")
    assert steps(path) == [("train", 1)]
    with MetricsLog(path) as log:
        log.write(MetricsLine(**line("train", 2)))
    assert steps(path) == [("train", 1), ("train", 2)]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize("junk", ["5\n", "{}\n", "\n", '{"stage": "train"}\n', "null\n"])
def test_what_is_no_line_is_left_out(tmp_path: Path, junk: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(junk + json.dumps(line("train", 7)) + "\n", encoding="utf-8")
    assert steps(path) == [("train", 7)]


def test_no_file_holds_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_a_log_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"cannot write .*metrics\.jsonl"),
        MetricsLog(tmp_path / "no" / "metrics.jsonl"),
    ):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said_to_be(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ResourceError, match="the disk is full"), log:  # noqa: PT012
        log._file = io.TextIOWrapper(io.BufferedWriter(io.FileIO("/dev/full", "w")), encoding="utf-8")
        log.write(MetricsLine(**line("train", 1)))


def test_the_log_is_written_inside_its_context(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(AssertionError):
        log.write(MetricsLine(**line("train", 1)))
    log.__exit__(None, None, None)
