"""95 % intervals: of one accuracy, and of the difference between two models on the same rows.

Shapes: N rows of a split. Accuracies, differences and intervals are fractions of 1.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Interval = tuple[float, float]


@dataclass(frozen=True)
class PairedDifference:
    """Student minus teacher accuracy on the same rows.

    Attributes:
        rows: N.
        difference: mean over the rows of (student right) - (teacher right), -1 to 1.
        interval: its paired 95 % interval.
    """

    rows: int
    difference: float
    interval: Interval


def wilson_interval(successes: int, rows: int) -> Interval:
    """The 95 % interval of a proportion (Wilson 1927), sound for few rows and near 0 and 1.

    Args:
        successes: how many rows succeeded.
        rows: how many there are, at least 1.

    Returns:
        The lower and upper end, in [0, 1].

    Raises:
        ValueError: no rows, or more successes than rows.
    """
    from scipy.stats import binomtest

    if rows < 1:
        raise ValueError("an interval needs at least one row")
    ends = binomtest(successes, rows).proportion_ci(confidence_level=0.95, method="wilson")
    return float(ends.low), float(ends.high)


def paired_difference(student_right_N: "Tensor", teacher_right_N: "Tensor") -> PairedDifference:
    """Student minus teacher accuracy with a paired 95 % interval.

    The interval is Newcombe's hybrid score interval for paired proportions (Statistics in Medicine 17, 1998,
    p. 2635, method 10): it combines the two Wilson intervals, which the report prints, through the correlation
    of the two models' answers. It needs no random numbers, and unlike a bootstrap or a t interval it keeps a
    width when the models differ in few rows or none.

    Args:
        student_right_N: booleans, as `correct` gives them.
        teacher_right_N: the teacher's, for the same rows in the same order.

    Returns:
        The difference and its interval.

    Raises:
        ValueError: no rows, or different rows.
    """
    if student_right_N.shape != teacher_right_N.shape or student_right_N.numel() == 0:
        raise ValueError(
            f"a paired difference needs the same rows twice, got {tuple(student_right_N.shape)} "
            f"and {tuple(teacher_right_N.shape)}"
        )
    rows = student_right_N.numel()
    both = int((student_right_N & teacher_right_N).sum())
    student, teacher = int(student_right_N.sum()), int(teacher_right_N.sum())
    p, q, difference = student / rows, teacher / rows, (student - teacher) / rows
    (p_low, p_high), (q_low, q_high) = wilson_interval(student, rows), wilson_interval(teacher, rows)
    phi = _correlation(both, student, teacher, rows)
    below = (p - p_low) ** 2 - 2 * phi * (p - p_low) * (q_high - q) + (q_high - q) ** 2
    above = (p_high - p) ** 2 - 2 * phi * (p_high - p) * (q - q_low) + (q - q_low) ** 2
    # Both are squares of lengths; rounding alone can put them below 0.
    low, high = difference - math.sqrt(max(below, 0.0)), difference + math.sqrt(max(above, 0.0))
    return PairedDifference(rows, difference, (low, high))


def _correlation(both: int, student: int, teacher: int, rows: int) -> float:
    """Newcombe's phi: the correlation of two 0/1 answers, a positive one shrunk by a continuity correction."""
    spread = student * (rows - student) * teacher * (rows - teacher)
    if spread == 0:
        return 0.0
    neither = rows - student - teacher + both
    covariance = float(both * neither - (student - both) * (teacher - both))
    if covariance > 0:
        covariance = max(covariance - rows / 2, 0.0)
    return covariance / math.sqrt(spread)


def retention_sentence(ratio: float | None, paired: PairedDifference) -> str:
    """What the student kept, in one sentence: a loss is named only where the paired interval lies below 0.

    Args:
        ratio: student / teacher accuracy, as `retention` gives it.
        paired: the difference on the same rows.

    Returns:
        The sentence; it never claims more than 100 %.
    """
    low, high = (100 * end for end in paired.interval)
    numbers = (
        f"{100 * paired.difference:+.1f} points on the same {paired.rows} rows "
        f"(paired 95 % interval {low:+.1f} to {high:+.1f})"
    )
    if ratio is None:
        return f"Retention is not defined, since the teacher is never right: {numbers}."
    if high < 0:
        return f"The student keeps {100 * ratio:.1f} % of the teacher's accuracy: {numbers}."
    return f"No measurable loss against the teacher: {numbers}."
