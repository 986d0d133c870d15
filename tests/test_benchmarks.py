"""The benchmark suite, on tiny models: every variant runs, and its figures agree with one another."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.ratios import add_ratios, failure  # noqa: E402
from benchmarks.slope import log_log_slope, upper_half  # noqa: E402

POSITIVE = (
    "seconds_per_epoch",
    "seconds_per_step",
    "tokens_per_second",
    "matmul_share",
    "peak_host_bytes",
    "ratio_to_b",
    "evaluation_seconds",
    "step_matmul_share",
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    words = [sys.executable, "-m", "benchmarks", "--toy", "--out", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "times b" in done.stdout
    return folder


@pytest.fixture(scope="module")
def records(out: Path) -> dict[str, dict[str, Any]]:
    return {line["variant"]: line for line in json.loads((out / "bench.json").read_text(encoding="utf-8"))}


def test_every_variant_has_its_figures(records: dict[str, dict[str, Any]]) -> None:
    assert "".join(records) == "abcdef"
    for line in records.values():
        assert "error" not in line
        assert line["device"] == "cpu"
        assert line["peak_device_bytes"] == 0
        assert all(math.isfinite(line[key]) and line[key] > 0 for key in POSITIVE)
        assert line["slowest_block"] >= 1


def test_the_ratio_is_that_of_the_seconds(records: dict[str, dict[str, Any]]) -> None:
    assert records["b"]["ratio_to_b"] == 1.0
    for line in records.values():
        expected = records["b"]["seconds_per_epoch"] / line["seconds_per_epoch"]
        assert line["ratio_to_b"] == pytest.approx(expected)


def test_an_epoch_is_the_sum_of_its_parts(records: dict[str, dict[str, Any]]) -> None:
    for line in records.values():
        steps = line["steps_per_epoch"] * line["seconds_per_step"]
        parts = line["scoring_seconds"] + line["start_seconds"] + line["evaluation_seconds"]
        assert line["seconds_per_epoch"] == pytest.approx(steps + parts)


def test_only_llm_neo_scores_rows_apart(records: dict[str, dict[str, Any]]) -> None:
    for variant, line in records.items():
        scores = variant in "ef"
        assert (line["scoring_seconds"] > 0) == scores
        assert (line["scoring_tokens_per_second"] is not None) == scores
        assert set(line["peak_device_bytes_by_stage"]) == ({"scoring", "training"} if scores else {"training"})
    assert [records[variant]["engine"] for variant in "bef"] == [None, "plain", "fused"]


def test_every_growth_curve_has_a_finite_slope(out: Path) -> None:
    growth = json.loads((out / "growth.json").read_text(encoding="utf-8"))
    assert [curve["axis"] for curve in growth["curves"]] == [
        "rows of an epoch",
        "rows of a step",
        "tokens of each row of a step",
        "weights of the student's layers",
    ]
    for curve in growth["curves"]:
        points = [(point["x"], point["seconds"]) for point in curve["points"]]
        assert curve["slope"] == pytest.approx(log_log_slope(points))
        assert math.isfinite(curve["slope"])
        assert all(seconds > 0 for _, seconds in points)
    assert math.isfinite(growth["curves"][2]["slope_without_attention"])


def test_tables_and_pictures_lie_beside(out: Path) -> None:
    assert (out / "bench.md").read_text(encoding="utf-8").startswith("|")
    for name in ("bench.png", "growth.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_the_slope_is_that_of_the_upper_half() -> None:
    cubes = [(x, x**3.0) for x in (1.0, 2.0, 4.0, 8.0)]
    assert log_log_slope(cubes) == pytest.approx(3.0)
    flat_then_linear = [(1.0, 8.0), (2.0, 8.0), (4.0, 8.0), (8.0, 8.0), (16.0, 16.0), (32.0, 32.0)]
    assert upper_half(flat_then_linear) == flat_then_linear[3:]
    assert log_log_slope(flat_then_linear) == pytest.approx(1.0)


def test_a_variant_that_failed_stays_in_the_table() -> None:
    records = [failure("a", "cuda", "out of memory"), {"variant": "b", "seconds_per_epoch": 6.0, "ratio_to_b": None}]
    records.append({"variant": "f", "seconds_per_epoch": 2.0, "ratio_to_b": None})
    add_ratios(records)
    assert [line["ratio_to_b"] for line in records] == [None, 1.0, 3.0]


def test_no_ratio_without_variant_b() -> None:
    records = [{"variant": "f", "seconds_per_epoch": 2.0, "ratio_to_b": None}]
    add_ratios(records)
    assert records[0]["ratio_to_b"] is None
