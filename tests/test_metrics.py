"""Figures of small tables that a reader can count."""

import math

import pytest
import torch

from llm_neo.errors import NonFiniteError
from llm_neo.intervals import wilson_interval
from llm_neo.metrics import (
    Scores,
    agreement,
    correct,
    gate_verdict,
    majority_share,
    retention,
    score_predictions,
    soft_loss,
)


def logits_for(predicted: list[int], classes: int, margin: float = 2.0) -> torch.Tensor:
    return margin * torch.nn.functional.one_hot(torch.tensor(predicted), classes).float()


def scores(accuracy: float, rows: int) -> Scores:
    return Scores(rows, accuracy, wilson_interval(round(accuracy * rows), rows), 0.0, 0.0, 0.0, 0.0, 0.0)


def test_two_classes_score_the_second_as_positive() -> None:
    # predicted 1: four times, of them three right; class 1 occurs five times; 6 of 9 rows right.
    predicted = [1, 1, 1, 1, 0, 0, 0, 0, 0]
    labels = torch.tensor([1, 1, 1, 0, 1, 1, 0, 0, 0])
    got = score_predictions(logits_for(predicted, 2), labels, 2)
    assert got.rows == 9
    assert got.accuracy == pytest.approx(6 / 9)
    assert got.accuracy_interval == wilson_interval(6, 9)
    assert got.precision == pytest.approx(3 / 4)
    assert got.recall == pytest.approx(3 / 5)
    assert got.f1 == pytest.approx(2 * 3 / (4 + 5))


def test_three_classes_are_averaged_one_by_one() -> None:
    predicted, labels = [0, 0, 1, 1, 2, 2], torch.tensor([0, 1, 1, 1, 2, 0])
    got = score_predictions(logits_for(predicted, 3), labels, 3)
    precision, recall = [1 / 2, 1.0, 1 / 2], [1 / 2, 2 / 3, 1.0]
    assert got.precision == pytest.approx(sum(precision) / 3)
    assert got.recall == pytest.approx(sum(recall) / 3)
    assert got.f1 == pytest.approx(sum(2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True)) / 3)


def test_a_class_that_never_occurs_is_left_out_of_the_average() -> None:
    got = score_predictions(logits_for([0, 1], 3), torch.tensor([0, 1]), 3)
    assert (got.f1, got.precision, got.recall) == (1.0, 1.0, 1.0)


def test_no_positive_prediction_gives_zero_and_not_nan() -> None:
    got = score_predictions(logits_for([0, 0], 2), torch.tensor([0, 1]), 2)
    assert (got.f1, got.precision, got.recall) == (0.0, 0.0, 0.0)
    got = score_predictions(logits_for([0, 0], 2), torch.tensor([0, 0]), 2)
    assert (got.accuracy, got.f1, got.precision, got.recall) == (1.0, 0.0, 0.0, 0.0)


def test_the_loss_is_cross_entropy_in_nats() -> None:
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    got = score_predictions(logits, torch.tensor([0, 1]), 2)
    assert got.loss == pytest.approx((-math.log(3 / 4) - math.log(1 / 2)) / 2)


def test_calibration_error_of_two_bins() -> None:
    # Four rows at confidence 0.75 with half of them right, two at 0.9 with both right:
    # 4/6 * |0.5 - 0.75| + 2/6 * |1 - 0.9|.
    logits = torch.tensor([[math.log(3), 0.0]] * 4 + [[0.0, math.log(9)]] * 2)
    got = score_predictions(logits, torch.tensor([0, 0, 1, 1, 1, 1]), 2)
    assert got.calibration_error == pytest.approx(4 / 6 * 0.25 + 2 / 6 * 0.1)


def test_calibration_takes_logits_between_0_and_1_for_logits() -> None:
    # softmax([0.9, 0.1]) = 0.69, never the 0.9 that an unnormalised reading would give.
    got = score_predictions(torch.tensor([[0.9, 0.1]]), torch.tensor([0]), 2)
    assert got.calibration_error == pytest.approx(1 - 1 / (1 + math.exp(-0.8)))


def test_a_confidence_of_one_shares_the_last_bin() -> None:
    # Right at 0.95 and wrong at 1: one bin, |0.5 - 0.975|; two bins would give (0.05 + 1) / 2.
    logits = torch.tensor([[math.log(19), 0.0], [100.0, 0.0]])
    got = score_predictions(logits, torch.tensor([0, 1]), 2)
    assert got.calibration_error == pytest.approx(0.475, abs=1e-6)


def test_bfloat16_logits_are_scored_in_full_precision() -> None:
    logits = logits_for([0, 1, 1], 2).bfloat16()
    labels = torch.tensor([0, 1, 0])
    assert score_predictions(logits, labels, 2) == score_predictions(logits.double(), labels, 2)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_logit_stops_the_measurement(broken: float) -> None:
    logits = torch.zeros(5, 2)
    logits[2, 1] = broken
    logits[4, 0] = broken
    with pytest.raises(NonFiniteError, match=r"2 of 5 evaluated rows have a logit .* first row 3;"):
        score_predictions(logits, torch.zeros(5, dtype=torch.long), 2)


@pytest.mark.parametrize("shape", [(0, 2), (3, 2), (4, 3)])
def test_shapes_that_do_not_belong_together_are_a_fault(shape: tuple[int, int]) -> None:
    labels = torch.zeros(4 if shape[0] else 0, dtype=torch.long)
    with pytest.raises(ValueError, match="cannot score logits"):
        score_predictions(torch.zeros(shape), labels, 2)


def test_correct_marks_each_row() -> None:
    assert correct(logits_for([0, 1, 1], 2), torch.tensor([0, 0, 1])).tolist() == [True, False, True]


def test_agreement_counts_equal_answers() -> None:
    assert agreement(logits_for([0, 1, 1, 0], 2), logits_for([0, 1, 0, 1], 2, margin=9)) == 0.5
    with pytest.raises(ValueError, match="the same rows twice"):
        agreement(torch.zeros(2, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="the same rows twice"):
        agreement(torch.zeros(0, 2), torch.zeros(0, 2))


def test_soft_loss_is_the_mean_over_the_rows() -> None:
    student = torch.zeros(2, 2)
    teacher = torch.tensor([[math.log(9), 0.0], [0.0, 0.0]])
    one_row = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert soft_loss(student, teacher, 2.0) == pytest.approx(one_row / 2)
    assert soft_loss(teacher, teacher, 2.0) == 0
    with pytest.raises(ValueError, match="at least one row"):
        soft_loss(torch.zeros(0, 2), torch.zeros(0, 2), 2.0)


def test_majority_share() -> None:
    assert majority_share([0, 1, 1, 1], 2) == 0.75
    assert majority_share(torch.tensor([2, 2, 0]), 5) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="at least one label"):
        majority_share([], 2)


def test_the_gate_opens_above_the_majority_share() -> None:
    # 444 of 872 are positive: 0.5092.
    verdict = gate_verdict(scores(0.55, 1000), 444 / 872, fresh_head=False)
    assert verdict.passed
    assert verdict.majority_share == 444 / 872
    assert verdict.rule == (
        "teacher accuracy 0.5500 (n = 1000, 95 % interval 0.5190 to 0.5806): its lower end is above 0.5092, "
        "the share of the commonest class."
    )


@pytest.mark.parametrize("accuracy", [0.509, 0.53])
def test_the_gate_stays_shut_while_the_interval_covers_the_majority_share(accuracy: float) -> None:
    verdict = gate_verdict(scores(accuracy, 1000), 444 / 872, fresh_head=False)
    assert not verdict.passed
    assert "is not above 0.5092" in verdict.rule


def test_a_lower_end_equal_to_the_majority_share_does_not_pass() -> None:
    teacher = scores(0.9, 100)
    assert not gate_verdict(teacher, teacher.accuracy_interval[0], fresh_head=False).passed


def test_a_fresh_head_never_passes() -> None:
    verdict = gate_verdict(scores(0.99, 1000), 0.5, fresh_head=True)
    assert not verdict.passed
    assert verdict.fresh_head
    assert "freshly initialised" in verdict.rule


def test_retention_is_a_ratio_on_the_same_rows() -> None:
    assert retention(scores(0.72, 100), scores(0.9, 100)) == pytest.approx(0.8)
    assert retention(scores(0.5, 100), scores(0.0, 100)) is None
    with pytest.raises(ValueError, match="the same rows, got 100 and 200"):
        retention(scores(0.72, 100), scores(0.9, 200))
