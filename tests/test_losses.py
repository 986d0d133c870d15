"""The loss in numbers that a reader can check by hand."""

import math

import pytest
import torch
from torch import Tensor

from llm_neo.losses import RowLosses, distillation_loss, soft_term

Logits = list[list[float]]


def loss(
    student: Logits, teacher: Logits | None, labels: list[int], labelled: list[bool], w: float, t: float
) -> RowLosses:
    return distillation_loss(
        torch.tensor(student),
        None if teacher is None else torch.tensor(teacher),
        torch.tensor(labels, dtype=torch.long),
        torch.tensor(labelled, dtype=torch.bool),
        hard_label_weight=w,
        temperature=t,
    )


def random_rows(rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    student = torch.randn(rows, 3, generator=g, dtype=torch.float64).to(dtype)
    teacher = (3 * torch.randn(rows, 3, generator=g, dtype=torch.float64)).to(dtype)
    labels = torch.randint(3, (rows,), generator=g)
    return student, teacher, labels, torch.arange(rows) % 3 != 0


def test_hand_computed_row() -> None:
    # T = 2: teacher softmax([ln 9, 0] / 2) = [3/4, 1/4], student softmax([0, 0] / 2) = [1/2, 1/2].
    got = loss([[0.0, 0.0]], [[math.log(9), 0.0]], [0], [True], w=0.5, t=2.0)
    hard = math.log(2)
    soft = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert got.hard_B.tolist() == pytest.approx([hard], rel=1e-6)
    assert got.soft_B.tolist() == pytest.approx([soft], rel=1e-6)
    assert got.total_B.tolist() == pytest.approx([0.5 * hard + 0.5 * soft], rel=1e-6)


def test_the_weight_is_the_hard_terms() -> None:
    got = loss([[0.0, 0.0]], [[math.log(9), 0.0]], [0], [True], w=0.9, t=2.0)
    assert got.total_B.item() == pytest.approx(0.9 * got.hard_B.item() + 0.1 * got.soft_B.item(), rel=1e-6)
    assert got.hard_B.item() != pytest.approx(got.soft_B.item(), rel=0.1)


def test_the_divergence_runs_from_the_teacher_to_the_student() -> None:
    forward = soft_term(torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(9), 0.0]]), 1.0)
    backward = soft_term(torch.tensor([[math.log(9), 0.0]]), torch.tensor([[0.0, 0.0]]), 1.0)
    assert forward.item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), rel=1e-6)
    assert backward.item() == pytest.approx(0.5 * math.log(5 / 9) + 0.5 * math.log(5), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 2.0, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_logits_have_exactly_no_soft_term(temperature: float, dtype: torch.dtype) -> None:
    z = random_rows(32, dtype)[0]
    assert soft_term(z, z.clone(), temperature).tolist() == [0.0] * 32


def test_adding_a_constant_to_a_row_changes_nothing() -> None:
    student, teacher, labels, labelled = random_rows(8, torch.float64)
    kwargs = {"hard_label_weight": 0.5, "temperature": 2.0}
    plain = distillation_loss(student, teacher, labels, labelled, **kwargs)
    moved = distillation_loss(student + 7, teacher - 3, labels, labelled, **kwargs)
    torch.testing.assert_close(moved, plain, rtol=1e-12, atol=1e-12)


def test_a_row_without_a_label_has_the_soft_term_only() -> None:
    teacher = [[math.log(9), 0.0]] * 2
    got = loss([[0.0, 0.0], [0.0, 0.0]], teacher, [0, 1], [True, False], w=0.25, t=2.0)
    assert got.hard_B[1] == 0
    assert got.total_B[1] == pytest.approx(0.75 * got.soft_B[1].item())
    assert got.total_B[0] == pytest.approx(0.25 * math.log(2) + 0.75 * got.soft_B[0].item())


def test_the_placeholder_label_of_an_unlabelled_row_is_never_read() -> None:
    student, teacher, labels, labelled = random_rows(9)
    other = torch.where(labelled, labels, (labels + 1) % 3)
    gradients = []
    for chosen in (labels, other):
        z = student.clone().requires_grad_()
        distillation_loss(z, teacher, chosen, labelled, hard_label_weight=0.5, temperature=2.0).total_B.sum().backward()
        gradients.append(z.grad)
    assert torch.equal(*gradients)


def test_without_a_teacher_only_the_labels_count() -> None:
    got = loss([[0.0, 0.0], [1.0, 1.0]], None, [0, 1], [True, False], w=1.0, t=2.0)
    assert got.total_B.tolist() == pytest.approx([math.log(2), 0.0])
    assert got.hard_B.tolist() == got.total_B.tolist()
    assert got.soft_B.tolist() == [0.0, 0.0]


def test_a_soft_term_without_a_teacher_is_a_fault() -> None:
    with pytest.raises(ValueError, match=r"hard_label_weight 0\.5 leaves a soft term"):
        loss([[0.0, 0.0]], None, [0], [True], w=0.5, t=2.0)


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\) and teacher logits \(1, 2\)"):
        loss([[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0]], [0, 0], [True, True], w=0.5, t=2.0)


@pytest.mark.parametrize(("w", "silent"), [(0.0, "hard"), (1.0, "soft")])
def test_a_term_of_weight_zero_is_reported_but_moves_nothing(w: float, silent: str) -> None:
    student, teacher, labels, labelled = random_rows(6)
    z = student.requires_grad_()
    got = distillation_loss(z, teacher, labels, labelled, hard_label_weight=w, temperature=2.0)
    reported = got.hard_B if silent == "hard" else got.soft_B
    assert reported.sum() > 0
    assert torch.equal(got.total_B, got.soft_B if silent == "hard" else got.hard_B)
    assert got.total_B.requires_grad
    assert not got.hard_B.requires_grad
    assert not got.soft_B.requires_grad


def test_an_infinite_term_of_weight_zero_cannot_poison_the_total() -> None:
    z = torch.tensor([[0.0, -math.inf]], requires_grad=True)
    got = distillation_loss(
        z,
        torch.tensor([[0.0, -math.inf]]),
        torch.tensor([1]),
        torch.tensor([True]),
        hard_label_weight=0.0,
        temperature=2.0,
    )
    got.total_B.sum().backward()
    assert got.hard_B.item() == math.inf
    assert got.total_B.item() == 0
    assert z.grad is not None
    assert z.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("has_teacher", [True, False])
def test_any_number_of_rows(rows: int, has_teacher: bool) -> None:
    z = torch.zeros(rows, 2, requires_grad=True)
    teacher = torch.zeros(rows, 2) if has_teacher else None
    empty = torch.zeros(rows, dtype=torch.long)
    got = distillation_loss(z, teacher, empty, empty == 0, hard_label_weight=1.0, temperature=2.0)
    assert [tuple(term.shape) for term in got] == [(rows,)] * 3
    assert got.total_B.sum().item() == pytest.approx(rows * math.log(2))
    got.total_B.sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_gradients_against_finite_differences() -> None:
    student, teacher, labels, labelled = random_rows(4, torch.float64)
    for w, t in [(0.5, 2.0), (0.0, 0.7), (1.0, 1.0), (0.3, 10.0)]:
        assert torch.autograd.gradcheck(
            lambda z, w=w, t=t: (
                distillation_loss(z, teacher, labels, labelled, hard_label_weight=w, temperature=t).total_B
            ),
            (student.clone().requires_grad_(),),
        )


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher, labels, labelled = random_rows(4)
    student.requires_grad_()
    teacher.requires_grad_()
    distillation_loss(
        student, teacher, labels, labelled, hard_label_weight=0.5, temperature=2.0
    ).total_B.sum().backward()
    assert teacher.grad is None


def test_the_soft_gradient_keeps_its_size_as_the_temperature_rises() -> None:
    # dT^2 KL/dz = T (softmax(z_S/T) - softmax(z_T/T)) -> (z_S - mean - z_T + mean) / C for large T.
    student, teacher = random_rows(5, torch.float64)[:2]
    limit = (student - student.mean(1, keepdim=True) - teacher + teacher.mean(1, keepdim=True)) / 3
    for temperature, tolerance in [(100.0, 0.05), (10_000.0, 5e-4)]:
        z = student.clone().requires_grad_()
        soft_term(z, teacher, temperature).sum().backward()
        torch.testing.assert_close(z.grad, limit, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("temperature", [0.05, 50.0])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e30])
def test_finite_bfloat16_logits_give_finite_losses_and_gradients(temperature: float, scale: float) -> None:
    student, teacher, labels, labelled = random_rows(64)
    z = (scale * student).bfloat16().requires_grad_()
    got = distillation_loss(
        z,
        (-scale * teacher).bfloat16(),
        labels,
        labelled,
        hard_label_weight=0.5,
        temperature=temperature,
    )
    got.total_B.sum().backward()
    assert got.total_B.dtype == torch.float32
    assert all(term.isfinite().all() for term in got)
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_a_class_that_the_teacher_rules_out_adds_nothing() -> None:
    # Over the two other classes: teacher [1/2, 1/2], student [1/3, 1/3, 1/3].
    z = torch.zeros(1, 3, requires_grad=True)
    got = soft_term(z, torch.tensor([[0.0, 0.0, -math.inf]]), 1.0)
    got.sum().backward()
    assert got.item() == pytest.approx(math.log(1.5), rel=1e-6)
    assert z.grad is not None
    assert z.grad.tolist()[0] == pytest.approx([1 / 3 - 1 / 2, 1 / 3 - 1 / 2, 1 / 3], rel=1e-6)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_nan_is_never_hidden(side: str) -> None:
    clean, broken = torch.zeros(1, 2), torch.tensor([[0.0, math.nan]])
    got = soft_term(*((broken, clean) if side == "student" else (clean, broken)), 2.0)
    assert got.isnan().all()


def test_the_order_of_rows_and_of_classes_does_not_matter() -> None:
    student, teacher, labels, labelled = random_rows(12)
    kwargs = {"hard_label_weight": 0.5, "temperature": 2.0}
    plain = distillation_loss(student, teacher, labels, labelled, **kwargs)
    rows = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    moved = distillation_loss(student[rows], teacher[rows], labels[rows], labelled[rows], **kwargs)
    assert torch.equal(moved.total_B, plain.total_B[rows])
    classes = torch.tensor([2, 0, 1])
    renamed = distillation_loss(student[:, classes], teacher[:, classes], classes.argsort()[labels], labelled, **kwargs)
    torch.testing.assert_close(renamed.total_B, plain.total_B)


@pytest.mark.parametrize("micro", [1, 3, 5, 16])
def test_the_step_does_not_depend_on_the_accumulation_split(micro: int) -> None:
    student, teacher, labels, labelled = random_rows(16, torch.float64)
    kwargs = {"hard_label_weight": 0.5, "temperature": 2.0}
    whole = student.clone().requires_grad_()
    (distillation_loss(whole, teacher, labels, labelled, **kwargs).total_B.sum() / 16).backward()
    split = student.clone().requires_grad_()
    for start in range(0, 16, micro):
        part = slice(start, start + micro)
        rows = distillation_loss(split[part], teacher[part], labels[part], labelled[part], **kwargs)
        (rows.total_B.sum() / 16).backward()
    torch.testing.assert_close(split.grad, whole.grad, rtol=1e-12, atol=1e-15)
