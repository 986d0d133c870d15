"""The results as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

_BASELINE, _NEO = "#8c8c8c", "#1f77b4"
_DPI = 150


def draw_bars(records: Sequence[dict[str, Any]], file: Path) -> None:
    """Seconds of an epoch on a log axis, a bar for each variant that was measured."""
    measured = [record for record in records if record["seconds_per_epoch"] is not None]
    seconds = [record["seconds_per_epoch"] for record in measured]
    figure = Figure(figsize=(10, 1.2 + 0.6 * len(measured)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = [_NEO if record["variant"] in "ef" else _BASELINE for record in measured]
    axes.barh(range(len(measured)), seconds, color=colours)
    axes.set_yticks(range(len(measured)), [_wrapped(record) for record in measured], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(seconds) / 3, max(seconds) * 5)
    axes.set_xlabel(f"seconds of an epoch of SST-2, {measured[0]['device']}, log scale (~ extrapolated)")
    for place, record in enumerate(measured):
        ratio = record["ratio_to_b"]
        mark = "~" if record["extrapolated"] else ""
        faster = "" if ratio is None else f"  ({ratio:.3g} x b)"
        label = f" {mark}{record['seconds_per_epoch']:,.4g} s{faster}"
        axes.text(record["seconds_per_epoch"], place, label, va="center", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=_DPI)


def _wrapped(record: dict[str, Any]) -> str:
    head, _, tail = record["what"].partition(": ")
    return f"{record['variant']}  {head}" + (f"\n{tail}" if tail else "")


def draw_growth(growth: dict[str, Any], file: Path) -> None:
    """Each curve on log axes, with its slope and a dashed line of slope 1 through its last point."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, curve in zip(figure.subplots(2, 2).flat, growth["curves"], strict=True):
        x = [point["x"] for point in curve["points"]]
        seconds = [point["seconds"] for point in curve["points"]]
        axes.loglog(x, seconds, "o-", color=_NEO)
        axes.loglog(x, [seconds[-1] * value / x[-1] for value in x], "--", color=_BASELINE, label="slope 1")
        slope = f"slope {curve['slope']:.2f}"
        if "slope_without_attention" in curve:
            slope += f" ({curve['slope_without_attention']:.2f} less attention)"
        axes.set_title(f"{slope}, upper half of the points", fontsize=10)
        axes.set_xlabel(curve["axis"])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel("seconds")
        axes.legend(frameon=False)
        axes.grid(alpha=0.3, which="both")
    figure.suptitle(f"{growth['device']}, {growth['engine']} engine")
    figure.savefig(file, dpi=_DPI)
