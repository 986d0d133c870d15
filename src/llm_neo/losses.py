"""What the student is trained on: a hard term from the labels and a soft term from the teacher.

Shapes: B rows, C classes. Losses are in nats, one per row; the caller sums them and divides by the rows of the
whole optimizer step, so that the loss never depends on how the step is split into micro-batches.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class RowLosses(NamedTuple):
    """The terms of each row, (B,), in nats.

    Attributes:
        total_B: what is minimised; the only one that carries a gradient.
        hard_B: cross-entropy with the label, 0 where the row has none.
        soft_B: T^2 * KL(teacher || student), 0 without a teacher.
    """

    total_B: Tensor
    hard_B: Tensor
    soft_B: Tensor


def distillation_loss(
    student_logits_BC: Tensor,
    teacher_logits_BC: Tensor | None,
    labels_B: Tensor,
    labelled_B: Tensor,
    *,
    hard_label_weight: float,
    temperature: float,
) -> RowLosses:
    """`w * labelled * hard + (1 - w) * soft` for each row (Hinton et al. 2015, section 2).

    The arithmetic is float32, or float64 for float64 logits, whatever the model's own precision is. A term of
    weight 0 is reported but is no part of the total, so that it can make neither the loss nor a gradient NaN.

    Args:
        student_logits_BC: the student's logits.
        teacher_logits_BC: the teacher's logits, constants; None only where `hard_label_weight` is 1.
        labels_B: class indices; an unlabelled row holds any valid index.
        labelled_B: True where the row has a label.
        hard_label_weight: w, the weight of the HARD term, 0 to 1.
        temperature: T > 0; the soft term is scaled by T^2, which keeps its gradient's size independent of T.

    Returns:
        The terms of each row; B = 0 gives empty tensors.

    Raises:
        ValueError: no teacher for a soft term that counts, or logits of two shapes.
    """
    precise = torch.promote_types(student_logits_BC.dtype, torch.float32)
    student_BC = student_logits_BC.to(precise)
    cross_entropy_B = F.cross_entropy(student_BC, labels_B, reduction="none")
    hard_B = cross_entropy_B.masked_fill(~labelled_B, 0.0)
    if teacher_logits_BC is None:
        if hard_label_weight != 1.0:
            raise ValueError(f"hard_label_weight {hard_label_weight} leaves a soft term, which needs teacher logits")
        return RowLosses(hard_B, hard_B.detach(), torch.zeros_like(hard_B.detach()))
    soft_B = soft_term(student_BC, teacher_logits_BC, temperature)
    return RowLosses(_mixed(hard_B, soft_B, hard_label_weight), hard_B.detach(), soft_B.detach())


def loss_of_rows(
    teacher_NC: Tensor | None,
    labels_N: Tensor,
    labelled_N: Tensor,
    *,
    hard_label_weight: float,
    temperature: float,
) -> Callable[[Tensor, Tensor], RowLosses]:
    """`distillation_loss` of some rows of a split, whose targets and labels (N rows) lie on the model's device.

    Returns:
        A function of the student's logits (B, C) and the rows' places in the split (B,).
    """

    def losses(logits_BC: Tensor, rows_B: Tensor) -> RowLosses:
        return distillation_loss(
            logits_BC,
            None if teacher_NC is None else teacher_NC[rows_B],
            labels_N[rows_B],
            labelled_N[rows_B],
            hard_label_weight=hard_label_weight,
            temperature=temperature,
        )

    return losses


def _mixed(hard_B: Tensor, soft_B: Tensor, weight: float) -> Tensor:
    if weight == 1.0:
        return hard_B
    return soft_B if weight == 0.0 else weight * hard_B + (1.0 - weight) * soft_B


def soft_term(student_logits_BC: Tensor, teacher_logits_BC: Tensor, temperature: float) -> Tensor:
    """`T^2 * KL(softmax(z_T / T) || softmax(z_S / T))` of each row: exactly 0 for equal logits.

    A class that the teacher rules out (probability 0) adds 0, also where a logit is -inf: 0 * log 0 = 0.

    Args:
        student_logits_BC: the student's logits.
        teacher_logits_BC: the teacher's logits; no gradient flows into them.
        temperature: T > 0.

    Returns:
        The divergence of each row in nats, (B,), float32 or, for float64 logits, float64.

    Raises:
        ValueError: the two have different shapes, which broadcasting would hide.
    """
    if student_logits_BC.shape != teacher_logits_BC.shape:
        raise ValueError(
            f"student logits {tuple(student_logits_BC.shape)} and teacher logits "
            f"{tuple(teacher_logits_BC.shape)} must have one shape"
        )
    precise = torch.promote_types(student_logits_BC.dtype, torch.float32)
    log_student_BC = F.log_softmax(student_logits_BC.to(precise) / temperature, dim=-1)
    log_teacher_BC = F.log_softmax(teacher_logits_BC.detach().to(precise) / temperature, dim=-1)
    teacher_BC = log_teacher_BC.exp()
    # Only an exact 0 is left out: NaN compares false and so still reaches the loss, where it is caught.
    terms_BC = (teacher_BC * (log_teacher_BC - log_student_BC)).masked_fill(teacher_BC == 0, 0.0)
    return temperature**2 * terms_BC.sum(dim=-1)
