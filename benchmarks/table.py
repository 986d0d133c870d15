"""The results as a text that reads well in a terminal and as Markdown."""

from collections.abc import Sequence
from typing import Any

from benchmarks.slope import BAR, upper_half

GIB = 2**30
DISTURBED = 1.5
"""A slowest block of more than so many times the median is told."""


def as_text(records: Sequence[dict[str, Any]], growth: dict[str, Any] | None, facts: Sequence[str]) -> str:
    """A table of the variants, one of the growth, and the conditions.

    Args:
        records: as in `bench.json`.
        growth: as in `growth.json`; None = not measured.
        facts: one sentence each, for the foot.
    """
    blocks = []
    if records:
        blocks.append(_aligned(_HEADER, [_line(record) for record in records]))
    if growth is not None:
        blocks.append(_growth(growth))
    if any(record.get("extrapolated") for record in records):
        facts = ["~ extrapolated: some steps (or rows) were run, the epoch is reckoned from them", *facts]
    disturbed = [record for record in records if record.get("slowest_block", 1.0) > DISTURBED]
    facts = [*facts, *[_disturbance(record["variant"], record["slowest_block"]) for record in disturbed]]
    for curve in growth["curves"] if growth else []:
        worst = max(curve["points"], key=lambda point: point["slowest_block"])
        if worst["slowest_block"] > DISTURBED:
            facts.append(_disturbance(f"{curve['axis']}, at {worst['x']:,.0f}", worst["slowest_block"]))
    blocks.append("\n".join(f"- {fact}" for fact in facts))
    return "\n\n".join(blocks) + "\n"


def _disturbance(where: str, slowest: float) -> str:
    return (
        f"{where}: a block of steps took {slowest:.1f} times the median: first-time work, or the "
        "machine was busy with something else; the median is what counts"
    )


_HEADER = ("", "what", "s/epoch", "s/step", "scoring s", "tokens/s", "products", "device GiB", "host GiB", "times b")


def _line(record: dict[str, Any]) -> tuple[str, ...]:
    if "error" in record:
        return (record["variant"], f"{record['what']}: {record['error']}", *["-"] * (len(_HEADER) - 2))
    mark = "~" if record["extrapolated"] else ""
    scoring = record["scoring_seconds"]
    return (
        record["variant"],
        record["what"],
        f"{mark}{record['seconds_per_epoch']:,.1f}",
        f"{record['seconds_per_step']:.4f}",
        f"{scoring:,.1f}" if scoring else "inline",
        f"{record['tokens_per_second']:,.0f}",
        f"{100 * record['matmul_share']:.1f} %",
        f"{record['peak_device_bytes'] / GIB:.2f}" if record["peak_device_bytes"] else "-",
        f"{record['peak_host_bytes'] / GIB:.2f}",
        "-" if record["ratio_to_b"] is None else f"{record['ratio_to_b']:.2f}",
    )


def _growth(growth: dict[str, Any]) -> str:
    header = ("growth", "points", "from", "to", "slope", f"<= {BAR}")
    lines = []
    for curve in growth["curves"]:
        points = [(point["x"], point["seconds"]) for point in curve["points"]]
        slope = curve.get("slope_without_attention", curve["slope"])
        shown = f"{curve['slope']:.2f}"
        if "slope_without_attention" in curve:
            shown = f"{shown} ({slope:.2f} less attention)"
        (x, first), (last_x, last) = upper_half(points)[0], max(points)
        span = (f"{first:.4g} s at {x:,.0f}", f"{last:.4g} s at {last_x:,.0f}")
        lines.append((curve["axis"], str(len(points)), *span, shown, "yes" if slope <= BAR else "NO"))
    return f"{growth['engine']} engine; slopes over the upper half of the points:\n\n{_aligned(header, lines)}"


def _aligned(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up: words to the left, figures to the right."""
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header))]

    def row(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(w) if column < 2 else cell.rjust(w)
            for column, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(("-" * (w + 2) if column < 2 else "-" * (w + 1) + ":") for column, w in enumerate(widths))
    return "\n".join([row(header), f"|{rule}|", *map(row, lines)])
