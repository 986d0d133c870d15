"""The slope of a growth curve: 1 where twice the problem takes twice the time."""

import math
from collections.abc import Sequence

BAR = 1.1
"""The steepest slope that counts as growing with the problem."""


def upper_half(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The larger half of the points by x, rounded up, but two at least: below it, fixed costs flatten the curve."""
    ordered = sorted(points)
    return ordered[-max(2, math.ceil(len(ordered) / 2)) :]


def log_log_slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares of log y on log x over the upper half of the points.

    Args:
        points: (x, y), both positive, two different x at least.
    """
    used = [(math.log(x), math.log(y)) for x, y in upper_half(points)]
    mean_x, mean_y = (sum(values) / len(used) for values in zip(*used, strict=True))
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in used)
    variance = sum((x - mean_x) ** 2 for x, _ in used)
    return float(covariance / variance)
