"""SIGTERM and SIGINT in every stage: the right exit code, a whole checkpoint, and the run goes on from it."""

import random
import signal
import time
from pathlib import Path

from faults.children import Child, run
from faults.kills import words
from faults.material import Result, Variant, is_whole, result_of

MOMENTS = [
    ("tuned", "stage data"),
    ("tuned", "bar teacher fine-tuning"),
    ("tuned", "bar teacher scores"),
    ("tuned", "bar student training"),
    ("tuned", "bar evaluation"),
    ("converted", "say Converting"),
    ("whole", "bar student training"),
]
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
SECONDS = 5.0
"""From the signal to the end: a step takes some milliseconds, the rest is for a machine that does other things too."""


def torture(
    recipe: Path, kinds: list[Variant], references: dict[str, tuple[Result, float]], folder: Path, count: int
) -> dict[str, int]:
    """So many signals that found the command at work; returns the counts of `torture.json`."""
    draw, done = random.Random(5), {"sigterms": 0, "sigterms_whole": 0}
    attempt = 0
    while done["sigterms"] < count:
        name, event = MOMENTS[attempt % len(MOMENTS)]
        kind = next(kind for kind in kinds if kind.name == name)
        number = signal.SIGINT if attempt % 4 == 3 else signal.SIGTERM
        home = folder / f"signal-{attempt}"
        attempt += 1
        child = Child(words(recipe, kind, home), home / "told", home / "cache")
        child.wait_for(event)
        time.sleep(draw.uniform(0.0, 0.2))
        sent = time.monotonic()
        child.send(number)
        ended = child.wait()
        took = time.monotonic() - sent
        if ended.code == 0:
            continue
        done["sigterms"] += 1
        whole = ended.code == CODES[number] and took < SECONDS and is_whole(home / "run", was_saved=True)
        again = run(words(recipe, kind, home), home / "told", home / "cache")
        if whole and again.code == 0 and result_of(home / "run") == references[name][0]:
            done["sigterms_whole"] += 1
        else:
            print(f"{event}: {signal.Signals(number).name} gave {ended.code} after {took:.1f} s", ended.stderr, again)
    return done
