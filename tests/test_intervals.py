"""Intervals against published and hand-computed figures."""

import math

import pytest
import torch

from llm_neo.intervals import PairedDifference, paired_difference, retention_sentence, wilson_interval


def paired(both: int, student_only: int, teacher_only: int, neither: int) -> PairedDifference:
    student = [True] * both + [True] * student_only + [False] * teacher_only + [False] * neither
    teacher = [True] * both + [False] * student_only + [True] * teacher_only + [False] * neither
    return paired_difference(torch.tensor(student), torch.tensor(teacher))


def test_wilson_of_the_seeds_best_step() -> None:
    # method.md: 0.9346 = 815 of 872, 95 % interval +-1.6 points.
    low, high = wilson_interval(815, 872)
    z = 1.959963984540054
    centre = (815 + z**2 / 2) / (872 + z**2)
    half = z / (872 + z**2) * math.sqrt(815 * 57 / 872 + z**2 / 4)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert 100 * (high - low) / 2 == pytest.approx(1.6, abs=0.05)


def test_wilson_keeps_a_width_at_the_ends() -> None:
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_no_rows_have_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        wilson_interval(0, 0)


@pytest.mark.parametrize(
    ("table", "difference", "interval"),
    [
        # Airway hyper-responsiveness before and after stem cell transplantation (Bentur et al. 2009), the
        # worked example of Fagerland, Lydersen & Laake, Statistics in Medicine 33 (2014): -0.507 to -0.026.
        ((1, 1, 7, 12), -0.2857, (-0.5069, -0.0256)),
        # By hand: no correlation (nothing is wrong twice), so the two Wilson intervals add in squares.
        ((36, 12, 2, 0), 0.2, (0.0569, 0.3404)),
    ],
)
def test_published_paired_intervals(
    table: tuple[int, int, int, int], difference: float, interval: tuple[float, float]
) -> None:
    got = paired(*table)
    assert got.rows == sum(table)
    assert got.difference == pytest.approx(difference, abs=5e-5)
    assert got.interval == pytest.approx(interval, abs=5e-5)


def test_a_positive_correlation_narrows_the_interval_after_the_continuity_correction() -> None:
    # 40 right twice, 40 wrong twice, 10 + 10 apart: covariance 40 * 40 - 10 * 10 - 100 / 2 = 1450, phi = 0.58.
    got = paired(40, 10, 10, 40)
    low, high = wilson_interval(50, 100)
    reach = high - 0.5
    assert 0.5 - low == pytest.approx(reach)
    expected = reach * math.sqrt(2 - 2 * 0.58)
    assert got.interval == pytest.approx((-expected, expected), abs=1e-12)


def test_swapping_the_models_mirrors_the_interval() -> None:
    one, other = paired(60, 6, 16, 18), paired(60, 16, 6, 18)
    assert one.difference == pytest.approx(-other.difference)
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]), abs=1e-12)


@pytest.mark.parametrize("table", [(10, 0, 0, 0), (0, 0, 0, 10), (5, 0, 0, 5), (1, 0, 0, 0)])
def test_two_models_that_never_differ_still_have_an_interval_with_a_width(
    table: tuple[int, int, int, int],
) -> None:
    got = paired(*table)
    assert got.difference == 0
    assert -1 <= got.interval[0] < 0 < got.interval[1] <= 1


@pytest.mark.parametrize(("student", "teacher"), [(3, 2), (0, 0)])
def test_a_paired_difference_needs_the_same_rows(student: int, teacher: int) -> None:
    with pytest.raises(ValueError, match="the same rows twice"):
        paired_difference(torch.ones(student, dtype=torch.bool), torch.ones(teacher, dtype=torch.bool))


def test_a_loss_is_named_where_the_interval_lies_below_zero() -> None:
    sentence = retention_sentence(0.9725, PairedDifference(872, -0.025, (-0.041, -0.009)))
    assert sentence == (
        "The student keeps 97.2 % of the teacher's accuracy: -2.5 points on the same 872 rows "
        "(paired 95 % interval -4.1 to -0.9)."
    )


@pytest.mark.parametrize(
    ("ratio", "paired_figures"),
    [
        (0.991, PairedDifference(872, -0.008, (-0.02, 0.004))),
        (1.01, PairedDifference(872, 0.009, (-0.003, 0.021))),
        (1.05, PairedDifference(872, 0.045, (0.02, 0.07))),
    ],
)
def test_an_interval_that_reaches_zero_is_no_measurable_loss(ratio: float, paired_figures: PairedDifference) -> None:
    sentence = retention_sentence(ratio, paired_figures)
    assert sentence.startswith("No measurable loss against the teacher: ")
    assert f"{100 * paired_figures.difference:+.1f} points on the same 872 rows" in sentence
    assert f"{100 * ratio:.1f} %" not in sentence


def test_a_teacher_that_is_never_right_has_no_retention() -> None:
    sentence = retention_sentence(None, PairedDifference(4, 0.5, (0.0, 0.8)))
    assert sentence.startswith("Retention is not defined, since the teacher is never right: +50.0 points")
