"""Runs that are killed at random moments and resumed until they are done, against one that was not."""

import random
import signal
import time
from pathlib import Path

from faults.children import Child, run
from faults.material import Result, Variant, duplicates, result_of


def torture(
    recipe: Path,
    kinds: list[Variant],
    references: dict[str, tuple[Result, float]],
    folder: Path,
    *,
    kills: int,
    runs: int,
) -> dict[str, int]:
    """At least so many kills over at least so many runs; returns the counts of `torture.json`."""
    draw, done = random.Random(4), {"kills": 0, "runs": 0, "runs_equal": 0, "duplicate_metric_lines": 0}
    while done["kills"] < kills or done["runs"] < runs:
        kind = kinds[done["runs"] % len(kinds)]
        expected, seconds = references[kind.name]
        home = folder / f"kills-{done['runs']}"
        quota = max(1, -(-kills // runs))
        done["kills"] += _until_done(recipe, kind, home, seconds, quota, draw)
        done["runs"] += 1
        done["runs_equal"] += result_of(home / "run") == expected
        done["duplicate_metric_lines"] += duplicates(home / "run")
    return done


def _until_done(recipe: Path, kind: Variant, home: Path, seconds: float, quota: int, draw: random.Random) -> int:
    """One run, killed at most `quota` times; returns how often it was."""
    killed = 0
    while killed < quota:
        child = Child(words(recipe, kind, home), home / "told", home / "cache")
        # Most kills come early in the attempt, so that the run does not end before it was killed often.
        time.sleep(draw.uniform(0.0, draw.choice((0.3, 0.6, 0.9)) * seconds))
        child.send(signal.SIGKILL)
        ended = child.wait()
        if ended.code == 0:
            return killed
        assert ended.code == -signal.SIGKILL, ended.stderr
        killed += 1
    ended = run(words(recipe, kind, home), home / "told", home / "cache")
    assert ended.code == 0, ended.stderr
    return killed


def words(recipe: Path, kind: Variant, home: Path) -> list[str]:
    """What a user would type next: begin, or go on where there is something to go on with."""
    output = home / "run"
    if (output / "recipe.yaml").is_file():
        return ["distill", "--resume", str(output)]
    return ["distill", str(recipe), *kind.changes, f"output={output}"]
