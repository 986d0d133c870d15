"""All that was asked for, one process after the other, and the files that tell what came out.

The parent imports no torch: a child's peak memory would otherwise begin with the parent's on some systems, and the
GPU is the child's alone.
"""

import json
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.options import Options, parse
from benchmarks.variants import VARIANTS
from benchmarks.worker import work


def main(words: Sequence[str]) -> int:
    """Run the benchmark; 0 when all that was asked for was measured, 1 when some of it failed."""
    options = parse(words)
    options.out.mkdir(parents=True, exist_ok=True)
    kind, machine = _job("machine", options, None)
    if kind == "error":
        print(f"benchmarks: {machine}")
        return 1
    records = _variants(options, machine)
    growth = _growth(options, machine)
    _write(options.out, records, growth, machine["facts"])
    failed = any("error" in line for line in records) or (options.growth and growth is None)
    return int(failed)


def _variants(options: Options, machine: dict[str, Any]) -> list[dict[str, Any]]:
    """A record of each variant asked for, those that failed included, with the ratios to variant b."""
    from benchmarks.ratios import add_ratios, failure

    setting = machine["setting"]
    records = []
    for variant in options.variants:
        print(f"[{variant}] {VARIANTS[variant]}", flush=True)
        began = time.monotonic()
        kind, found = _job(variant, options, machine)
        records.append(found if kind == "found" else failure(variant, setting.device, found))
        add_ratios(records)
        # At once, so that a command that runs out of time leaves what it measured.
        _save(records, options.out / "bench.json")
        outcome = found if kind == "error" else f"{found['seconds_per_epoch']:,.1f} s an epoch"
        print(f"    {outcome}; measured in {time.monotonic() - began:.0f} s", flush=True)
    return records


def _growth(options: Options, machine: dict[str, Any]) -> dict[str, Any] | None:
    if not options.growth:
        return None
    print("[growth]", flush=True)
    began = time.monotonic()
    kind, found = _job("growth", options, machine)
    print(f"    {'done' if kind == 'found' else found}; measured in {time.monotonic() - began:.0f} s", flush=True)
    return found if kind == "found" else None


def _job(job: str, options: Options, machine: dict[str, Any] | None) -> tuple[str, Any]:
    """What a fresh process answers; ("error", the reason) also where it died."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(there, job, options, machine), name=f"bench-{job}")
    process.start()
    there.close()
    try:
        answer: tuple[str, Any] = here.recv()
    except EOFError:
        answer = ("error", "the process died")
    process.join()
    if answer[1] == "the process died":
        answer = ("error", f"the process died with status {process.exitcode}")
    return answer


def _write(out: Path, records: list[dict[str, Any]], growth: dict[str, Any] | None, facts: Sequence[str]) -> None:
    """`bench.json`, `bench.md`, `bench.png` and the same of the growth; the table is printed too."""
    from benchmarks.chart import draw_bars, draw_growth
    from benchmarks.table import as_text

    text = as_text(records, growth, facts)
    _save(records, out / "bench.json")
    (out / "bench.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")
    if any(line["seconds_per_epoch"] is not None for line in records):
        draw_bars(records, out / "bench.png")
    if growth is not None:
        _save(growth, out / "growth.json")
        draw_growth(growth, out / "growth.png")


def _save(results: Any, file: Path) -> None:
    file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
