"""How good a model is, whether it may teach, and what its student kept.

Shapes: N rows of a split, C classes. Losses are in nats; accuracies, shares and intervals are fractions of 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_neo.errors import NonFiniteError
from llm_neo.intervals import Interval, wilson_interval
from llm_neo.losses import soft_term

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Scores:
    """A model's figures on the labelled rows of a split.

    Attributes:
        rows: N.
        accuracy: share of rows whose largest logit is the label's.
        accuracy_interval: 95 % Wilson interval of the accuracy.
        f1: of the positive class (index 1) for two classes, macro for more.
        precision: likewise; 0 where nothing was predicted positive.
        recall: likewise; 0 where nothing is positive.
        loss: mean cross-entropy with the labels, in nats.
        calibration_error: expected calibration error of the top class, 15 equal bins (Guo et al. 2017).
    """

    rows: int
    accuracy: float
    accuracy_interval: Interval
    f1: float
    precision: float
    recall: float
    loss: float
    calibration_error: float


@dataclass(frozen=True)
class GateVerdict:
    """Whether the teacher has anything to teach.

    Attributes:
        passed: its accuracy interval lies above the majority share and its head was trained.
        rule: the rule with this teacher's numbers, one sentence.
        majority_share: accuracy of always answering the commonest class.
        fresh_head: the classification head holds random numbers.
    """

    passed: bool
    rule: str
    majority_share: float
    fresh_head: bool


def score_predictions(logits_NC: Tensor, labels_N: Tensor, classes: int) -> Scores:
    """Score a model's logits against the labels.

    Macro figures leave out a class that is neither predicted nor present, as scikit-learn does.

    Args:
        logits_NC: the model's logits.
        labels_N: class indices, every row labelled.
        classes: C, at least 2.

    Returns:
        All figures, computed in float64.

    Raises:
        NonFiniteError: a logit is NaN or infinite.
        ValueError: no rows, or shapes that do not belong together.
    """
    rows = labels_N.numel()
    if rows == 0 or logits_NC.shape != (rows, classes):
        raise ValueError(f"cannot score logits {tuple(logits_NC.shape)} of {classes} classes on {rows} labels")
    logits_NC, labels_N = logits_NC.detach().double().cpu(), labels_N.cpu()
    _refuse_non_finite(logits_NC)
    right = int(correct(logits_NC, labels_N).sum())
    f1, precision, recall = _f1_precision_recall(logits_NC.argmax(1), labels_N, classes)
    return Scores(
        rows=rows,
        accuracy=right / rows,
        accuracy_interval=wilson_interval(right, rows),
        f1=f1,
        precision=precision,
        recall=recall,
        loss=F.cross_entropy(logits_NC, labels_N).item(),
        calibration_error=_calibration_error(logits_NC, labels_N, classes),
    )


def _refuse_non_finite(logits_NC: Tensor) -> None:
    bad = (~logits_NC.isfinite()).any(1).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(
            f"{len(bad)} of {len(logits_NC)} evaluated rows have a logit that is NaN or infinite, first row "
            f"{bad[0] + 1}; the model cannot be measured: lower the learning rate or set runtime.precision=float32"
        )


def _f1_precision_recall(predicted_N: Tensor, labels_N: Tensor, classes: int) -> tuple[float, float, float]:
    import torchmetrics.functional.classification as figures

    if classes == 2:
        return (
            figures.binary_f1_score(predicted_N, labels_N, zero_division=0).item(),
            figures.binary_precision(predicted_N, labels_N, zero_division=0).item(),
            figures.binary_recall(predicted_N, labels_N, zero_division=0).item(),
        )
    return (
        figures.multiclass_f1_score(predicted_N, labels_N, classes, average="macro", zero_division=0).item(),
        figures.multiclass_precision(predicted_N, labels_N, classes, average="macro", zero_division=0).item(),
        figures.multiclass_recall(predicted_N, labels_N, classes, average="macro", zero_division=0).item(),
    )


def _calibration_error(logits_NC: Tensor, labels_N: Tensor, classes: int) -> float:
    from torchmetrics.functional.classification import multiclass_calibration_error

    # torchmetrics takes numbers within [0, 1] for probabilities, so logits would not always be normalised; and
    # it puts a confidence of exactly 1 into a sixteenth bin: the largest float32 below 1 stays in the last.
    probabilities_NC = logits_NC.softmax(1).clamp(max=1 - 2**-24)
    error = multiclass_calibration_error(
        probabilities_NC, labels_N, num_classes=classes, n_bins=CALIBRATION_BINS, norm="l1"
    )
    return float(error.item())


def correct(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Which rows are answered right, (N,) booleans; of equal logits the first counts."""
    return logits_NC.argmax(1) == labels_N


def agreement(a_NC: Tensor, b_NC: Tensor) -> float:
    """Share of rows for which two models predict the same class.

    Raises:
        ValueError: no rows, or different rows.
    """
    if a_NC.shape != b_NC.shape or len(a_NC) == 0:
        raise ValueError(f"agreement needs the same rows twice, got {tuple(a_NC.shape)} and {tuple(b_NC.shape)}")
    return (a_NC.argmax(1) == b_NC.argmax(1)).double().mean().item()


def soft_loss(student_NC: Tensor, teacher_NC: Tensor, temperature: float) -> float:
    """Mean over the rows of `T^2 * KL(teacher || student)`, in nats.

    Raises:
        ValueError: no rows, or different rows.
    """
    if len(student_NC) == 0:
        raise ValueError("the soft loss needs at least one row")
    return soft_term(student_NC.double(), teacher_NC, temperature).mean().item()


def majority_share(labels: Tensor | Sequence[int], n_classes: int) -> float:
    """Accuracy of always answering the commonest class, 1 / n_classes to 1.

    Raises:
        ValueError: no labels.
    """
    labels_N = torch.as_tensor(labels, dtype=torch.long)
    if labels_N.numel() == 0:
        raise ValueError("the majority share needs at least one label")
    counts_C = torch.bincount(labels_N, minlength=n_classes)
    return counts_C.max().item() / labels_N.numel()


def gate_verdict(teacher: Scores, majority: float, *, fresh_head: bool) -> GateVerdict:
    """Whether a teacher may teach: the lower end of its 95 % interval is above the majority share.

    Args:
        teacher: its scores on the validation rows.
        majority: the majority share of the same rows.
        fresh_head: its classification head was initialised at random and not trained since.

    Returns:
        The verdict, with the rule in numbers.
    """
    low, high = teacher.accuracy_interval
    above = low > majority
    rule = (
        f"teacher accuracy {teacher.accuracy:.4f} (n = {teacher.rows}, 95 % interval {low:.4f} to {high:.4f}): "
        f"its lower end is {'above' if above else 'not above'} {majority:.4f}, "
        "the share of the commonest class"
    )
    if fresh_head:
        rule += "; its classification head is freshly initialised, so its answers are random"
    return GateVerdict(above and not fresh_head, rule + ".", majority, fresh_head)


def retention(student: Scores, teacher: Scores) -> float | None:
    """Student accuracy / teacher accuracy on the same rows; None where the teacher is never right.

    Raises:
        ValueError: the two were scored on different numbers of rows.
    """
    if student.rows != teacher.rows:
        raise ValueError(f"retention needs the same rows, got {student.rows} and {teacher.rows}")
    return student.accuracy / teacher.accuracy if teacher.accuracy > 0 else None
