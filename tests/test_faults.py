"""A few rounds of what `make torture` does for an hour: real runs that are killed, signalled, damaged and cramped."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
FEW = {"KILLS": "4", "RUNS": "1", "FLIPS": "14", "SIGTERMS": "3", "DISK": "1"}


def test_nothing_is_lost_silent_or_damaged(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(TESTS), *sys.path])
    environment = os.environ | FEW | {"TORTURE_OUTPUT": str(tmp_path / "t.json"), "PYTHONPATH": paths}
    ended = subprocess.run([sys.executable, "-m", "faults"], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    counts = json.loads((tmp_path / "t.json").read_text())
    assert set(counts) == {
        *("kills", "runs", "runs_equal", "duplicate_metric_lines"),
        *("flips", "flips_detected", "flips_harmless", "flips_silent"),
        *("sigterms", "sigterms_whole", "disk_full", "disk_full_damaged"),
    }
    assert counts["kills"] >= 4 and counts["runs"] == counts["runs_equal"] >= 1 and counts["flips"] == 14
