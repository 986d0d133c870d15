"""make torture: what kills, signals, flipped bytes and full disks do to real runs of tiny models, as `torture.json`.

KILLS, RUNS, FLIPS, SIGTERMS and DISK shorten it; TORTURE_OUTPUT names another file.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from faults import disk, flips, kills, signals
from faults.children import run, warm_up
from faults.material import make, result_of, variants


def main() -> int:
    """Returns 0 where nothing was lost, silent or damaged."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        folder = Path(name)
        recipe = make(folder / "material")
        kinds = variants(folder / "material")
        first = ["distill", str(recipe), *kinds[0].changes, f"output={folder / 'warm' / 'run'}"]
        warm_up(first, folder / "warm" / "told", folder / "warm" / "cache")
        references = {}
        for kind in kinds:
            home = folder / "undisturbed" / kind.name
            ended = run(kills.words(recipe, kind, home), home / "told", home / "cache")
            assert ended.code == 0, ended.stderr
            references[kind.name] = (result_of(home / "run"), ended.seconds)
            _tell(f"{kind.name}: {ended.seconds:.1f} s undisturbed", began)
        counts = kills.torture(recipe, kinds, references, folder, kills=_asked("KILLS", 200), runs=_asked("RUNS", 20))
        _tell(str(counts), began)
        counts |= signals.torture(recipe, kinds, references, folder, _asked("SIGTERMS", 50))
        _tell(str(counts), began)
        counts |= disk.torture(recipe, kinds, references, folder, _asked("DISK", 20))
        _tell(str(counts), began)
        counts |= flips.torture(recipe, kinds, folder, _asked("FLIPS", 504))
        _tell(str(counts), began)
    Path(os.environ.get("TORTURE_OUTPUT", "torture.json")).write_text(json.dumps(counts, indent=2) + "\n")
    whole = (
        counts["runs_equal"] == counts["runs"]
        and counts["sigterms_whole"] == counts["sigterms"]
        and not (counts["duplicate_metric_lines"] or counts["flips_silent"] or counts["disk_full_damaged"])
        and counts["flips_harmless"] <= 0.05 * counts["flips"]
    )
    return 0 if whole else 1


def _asked(name: str, otherwise: int) -> int:
    return int(os.environ.get(name) or otherwise)


def _tell(text: str, began: float) -> None:
    print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
