"""`curves.png`: how the losses fell and how the accuracy rose, with intervals and beside the teacher."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm_neo.files import explained
from llm_neo.run.metrics_log import MetricsLine, read_metrics
from llm_neo.run.record import EvaluationRecord, RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

# Okabe and Ito's colours, told apart by colour-blind readers; line styles tell them apart in grey.
_TOTAL, _HARD, _SOFT, _VALIDATION, _TEACHER, _MUTED = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#000000",
    "#7F7F7F",
)
_INCHES = (11.0, 5.0)
_DOTS_PER_INCH = 150
_SMOOTHING_SHARE = 1 / 12


def draw_curves(metrics_path: Path, record: RunRecord, png_path: Path) -> None:
    """Draw the student's training.

    Args:
        metrics_path: the run's `metrics.jsonl`; its "train" lines are drawn.
        record: evaluations, teacher and loss weights.
        png_path: the picture, replaced where it exists.

    Raises:
        InputError: the picture cannot be written.
        ResourceError: the disk is full.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    losses, accuracies = figure.subplots(1, 2)
    _draw_losses(losses, [line for line in read_metrics(metrics_path) if line.stage == "train"], record)
    _draw_accuracies(accuracies, record)
    last_step = max(row.step for row in record.evaluations)
    for axes in (losses, accuracies):
        _tidy(axes, last_step)
    figure.subplots_adjust(left=0.06, right=0.985, top=0.925, bottom=0.235, wspace=0.17)
    with explained(png_path):
        figure.savefig(png_path, metadata={"Software": "LLM-Neo"})


def _draw_losses(axes: "Axes", lines: Sequence[MetricsLine], record: RunRecord) -> None:
    weight, temperature = record.loss.hard_label_weight, record.loss.temperature
    steps = np.array([line.step for line in lines], dtype=float)
    total = _column([line.loss for line in lines])
    hard = _column([line.hard_loss for line in lines])
    soft = _column([line.soft_loss for line in lines])
    axes.plot(steps, total, color=_TOTAL, alpha=0.25, linewidth=0.8, label="_raw")
    axes.plot(
        steps,
        smooth(total),
        color=_TOTAL,
        linewidth=2.2,
        label=f"training loss, {weight:g} hard + {1 - weight:g} soft",
    )
    axes.plot(steps, smooth(hard), color=_HARD, linewidth=1.6, linestyle="--", label="hard term, labels")
    axes.plot(
        steps,
        smooth(soft),
        color=_SOFT,
        linewidth=1.6,
        linestyle="-.",
        label=f"soft term, teacher (T = {temperature:g})",
    )
    axes.plot(
        [row.step for row in record.evaluations],
        [row.validation_loss for row in record.evaluations],
        color=_VALIDATION,
        marker="o",
        markersize=5,
        linewidth=1.6,
        label="validation loss, labels",
    )
    axes.set_title("Loss", loc="left", fontweight="bold")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per row)")
    axes.set_ylim(0, _loss_ceiling(total, hard, soft, record.evaluations))


def _column(values: Sequence[float | None]) -> "NDArray[np.float64]":
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def smooth(values: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """The centred mean over a twelfth of all points, cut off at the ends; NaN counts for nothing.

    Args:
        values: the series, (N,).

    Returns:
        The smoothed series, (N,), NaN where a window has no number.
    """
    reach = int(len(values) * _SMOOTHING_SHARE / 2)
    known = ~np.isnan(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    place = np.arange(len(values))
    first, last = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(values))
    count = counts[last] - counts[first]
    return np.where(count > 0, (sums[last] - sums[first]) / np.maximum(count, 1), np.nan)


def _loss_ceiling(
    total: "NDArray[np.float64]",
    hard: "NDArray[np.float64]",
    soft: "NDArray[np.float64]",
    evaluations: Sequence[EvaluationRecord],
) -> float:
    """The highest of the smooth lines with some air: one wild step must not flatten all the rest."""
    drawn = [smooth(total), smooth(hard), smooth(soft), [row.validation_loss for row in evaluations]]
    values = np.concatenate([np.asarray(series, dtype=float) for series in drawn])
    values = values[np.isfinite(values)]
    return 1.12 * float(values.max()) if values.size and values.max() > 0 else 1.0


def _draw_accuracies(axes: "Axes", record: RunRecord) -> None:
    teacher, rows = record.teacher, record.evaluations
    steps = [row.step for row in rows]
    lows = [row.accuracy_interval[0] if row.accuracy_interval else row.accuracy for row in rows]
    highs = [row.accuracy_interval[1] if row.accuracy_interval else row.accuracy for row in rows]
    below = [row.accuracy - low for row, low in zip(rows, lows, strict=True)]
    above = [high - row.accuracy for row, high in zip(rows, highs, strict=True)]
    axes.fill_between(steps, lows, highs, color=_TOTAL, alpha=0.18, linewidth=0)
    axes.errorbar(
        steps,
        [row.accuracy for row in rows],
        yerr=[below, above],
        color=_TOTAL,
        marker="o",
        markersize=5,
        linewidth=2.2,
        elinewidth=1.0,
        label=f"student {record.student.accuracy:.4f}",
    )
    axes.axhspan(*teacher.accuracy_interval, color=_TEACHER, alpha=0.08, linewidth=0)
    axes.axhline(
        teacher.accuracy,
        color=_TEACHER,
        linewidth=1.4,
        linestyle="--",
        label=f"teacher {teacher.accuracy:.4f}",
    )
    floor = min([*lows, teacher.accuracy_interval[0]])
    if record.majority_share > floor - 0.08:
        axes.axhline(record.majority_share, color=_MUTED, linewidth=1.2, linestyle=":", label="commonest class")
        floor = min(floor, record.majority_share)
    ceiling = max([*highs, teacher.accuracy_interval[1]])
    air = 0.06 * (ceiling - floor)
    axes.set_ylim(max(0.0, floor - air), min(1.0, ceiling + air))
    axes.set_title("Validation accuracy, 95 % intervals shaded", loc="left", fontweight="bold")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"accuracy on {_looked_at(record)}")


def _looked_at(record: RunRecord) -> str:
    sampled = {row.rows for row in record.evaluations[:-1]} - {None, record.validation_rows}
    before = f" (before the last: {', '.join(map(str, sampled))})" if sampled else ""
    return f"{record.validation_rows} rows{before}"


def _tidy(axes: "Axes", last_step: int) -> None:
    """What both halves have: the same steps, light lines, and a legend below that covers no data."""
    from matplotlib.ticker import MaxNLocator

    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.set_xlim(0, 1.02 * last_step)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.15), ncols=2, frameon=False, fontsize=9, borderaxespad=0)
