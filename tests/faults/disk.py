"""A disk that fills up while a run writes to it: it ends with exit code 5, and goes on when there is room again."""

import os
import random
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.children import Child, run
from faults.kills import words
from faults.material import Result, Variant, is_whole, result_of


def torture(
    recipe: Path, kinds: list[Variant], references: dict[str, tuple[Result, float]], folder: Path, count: int
) -> dict[str, int]:
    """So many runs that met a full disk; returns the counts of `torture.json`."""
    draw, done = random.Random(6), {"disk_full": 0, "disk_full_damaged": 0}
    attempt = 0
    while done["disk_full"] < count:
        kind = kinds[attempt % len(kinds)]
        expected, seconds = references[kind.name]
        used = _bytes_below(folder / "undisturbed" / kind.name)
        disk, told = folder / f"disk-{attempt}", folder / f"disk-told-{attempt}"
        attempt += 1
        with _disk(disk, int(used * draw.uniform(0.03, 1.0)), draw.uniform(0, seconds)) as (fill, make_room):
            child = Child(words(recipe, kind, disk), told, disk / "cache", fill)
            ended = child.wait()
            if ended.code == 0:
                continue
            done["disk_full"] += 1
            clean = ended.code == 5 and " disk " in ended.stderr and is_whole(disk / "run", was_saved=False)
            make_room()
            again = run(words(recipe, kind, disk), told, disk / "cache")
            if not clean or again.code != 0 or result_of(disk / "run") != expected:
                done["disk_full_damaged"] += 1
                print(f"{kind.name}: a full disk gave {ended.code}", ended.stderr, again.code, again.stderr)
    return done


@contextmanager
def _disk(folder: Path, size: int, seconds: float) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """A folder that fills up; what makes it do so in the child, and what gives it room again.

    A small file system of its own where this user may mount one; else after some seconds no file may grow.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={max(size, 1 << 14)}", "torture", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield lambda: None, lambda: _remount(folder)
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    else:
        yield lambda: _no_file_may_grow_after(seconds), lambda: None


def _remount(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=256m", str(folder)], check=True)


def _no_file_may_grow_after(seconds: float) -> None:
    signal.signal(signal.SIGALRM, lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1)))
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
