"""What must not change a step, and what must stop it: on every engine, with a real model, loop and optimizer."""

from pathlib import Path

import pytest
import torch
from scene import CLASSES, DEVICE, ROWS, STILL, Student, labels, learn, objective, student, teacher_logits

from llm_neo.batching import epoch_order, packed_batch
from llm_neo.engine import StepFigures
from llm_neo.errors import NonFiniteError
from llm_neo.evaluate import classifier_forward, score_rows

WITHIN = 1e-5


def assert_same(found: list[StepFigures], wanted: list[StepFigures], within: float = WITHIN) -> None:
    assert len(found) == len(wanted) > 0
    for a, b in zip(found, wanted, strict=True):
        for name in ("loss", "hard_loss", "soft_loss", "gradient_norm"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=within, abs=within), name


def assert_same_weights(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], within: float) -> None:
    assert found.keys() == wanted.keys() and wanted
    assert max((found[name] - wanted[name]).abs().max().item() for name in wanted) <= within


@pytest.mark.parametrize("micro_batch_size", [1, 3, 5, 8])
def test_the_accumulation_split_changes_nothing(engine: str, llama: Path, micro_batch_size: int) -> None:
    whole, split = student(llama), student(llama)
    wanted = learn(whole, engine, objective())
    found = learn(split, engine, objective(), micro_batch_size=micro_batch_size)
    assert_same(found, wanted)
    # AdamW's first steps have the size of the learning rate, however small the gradient: 1e-3 is one of them.
    assert_same_weights(split.weights, whole.weights, within=1e-4)


def test_a_permuted_batch_has_the_same_loss_and_gradient(engine: str, llama: Path) -> None:
    # All rows are one batch, and the seed is nothing but their order.
    found = [learn(student(llama), engine, objective(), batch_size=ROWS, seed=seed) for seed in (0, 1, 2)]
    assert len({tuple(epoch_order(ROWS, seed, 0)) for seed in (0, 1, 2)}) == 3
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_the_last_short_batch_is_the_mean_of_its_own_rows(
    engine: str, learner: Student, micro_batch_size: int | None
) -> None:
    losses = objective()
    forward = classifier_forward(learner.model, "plain")
    logits = score_rows(forward, learner.rows, DEVICE).to(DEVICE)
    each = losses(logits, torch.arange(ROWS, device=DEVICE)).total_B.detach().cpu()
    order = torch.from_numpy(epoch_order(ROWS, 3, 0))
    expected = [each[order[start : start + 8]].mean().item() for start in (0, 8, 16)]
    found = learn(learner, engine, losses, learning_rate=STILL, micro_batch_size=micro_batch_size)
    assert [figures.loss for figures in found] == pytest.approx(expected, rel=1e-4)
    assert expected[2] != pytest.approx(each[order[16:]].sum().item() / 8, rel=0.1)


def test_each_gradient_of_an_epoch_is_that_of_its_own_rows(engine: str, llama: Path) -> None:
    # Six rows on their own and as the short end of an epoch: one gradient, so also one norm.
    order = epoch_order(ROWS, 3, 0)[16:]
    whole = learn(student(llama), engine, objective(), learning_rate=STILL)
    alone = student(llama)
    alone.model.train()
    logits = classifier_forward(alone.model, "plain")
    batch = packed_batch(alone.rows, order).to(DEVICE)
    (objective()(logits(batch), batch.rows).total_B.sum() / 6).backward()
    norm = torch.cat([p.grad.flatten() for p in alone.model.parameters() if p.grad is not None]).norm()
    assert whole[2].gradient_norm == pytest.approx(norm.item(), rel=1e-4)


def test_a_step_without_any_label_has_the_soft_term_alone(engine: str, llama: Path) -> None:
    nobody = torch.zeros(ROWS, dtype=torch.bool)
    found = learn(student(llama), engine, objective(labelled_N=nobody), learning_rate=STILL)
    soft = learn(student(llama), engine, objective(w=0.0), learning_rate=STILL)
    for a, b in zip(found, soft, strict=True):
        assert a.hard_loss == 0.0
        assert a.loss == pytest.approx(0.6 * b.soft_loss, rel=WITHIN)
        assert a.gradient_norm == pytest.approx(0.6 * b.gradient_norm, rel=1e-4)


def test_a_step_with_nothing_to_learn_moves_nothing_and_is_finite(engine: str, learner: Student) -> None:
    before = learner.weights
    nobody = torch.zeros(ROWS, dtype=torch.bool)
    found = learn(learner, engine, objective(labelled_N=nobody, w=1.0))
    assert [(f.loss, f.gradient_norm) for f in found] == [(0.0, 0.0)] * 3
    assert_same_weights(learner.weights, before, within=0.0)


def test_a_student_that_is_its_own_teacher_has_nothing_to_learn(engine: str, learner: Student) -> None:
    own = score_rows(classifier_forward(learner.model), learner.rows, DEVICE)
    found = learn(learner, engine, objective(own, w=0.0), learning_rate=STILL)
    other = learn(learner, engine, objective(own.roll(1, dims=0), w=0.0), learning_rate=STILL)
    for same, different in zip(found, other, strict=True):
        assert abs(same.soft_loss) < 1e-6 < 1e-3 < different.soft_loss
        assert same.gradient_norm < 1e-4 * different.gradient_norm


def test_the_soft_gradient_keeps_its_size_as_the_temperature_rises(engine: str, llama: Path) -> None:
    norms = [
        learn(student(llama), engine, objective(w=0.0, t=t), learning_rate=STILL)[0].gradient_norm
        for t in (50.0, 500.0)
    ]
    # T^2 times a gradient that falls as 1 / T^2; without the factor the second is a hundredth of the first.
    assert norms[1] == pytest.approx(norms[0], rel=0.05) and norms[0] > 1e-3


@pytest.mark.parametrize("temperature", [0.05, 50.0])
def test_extreme_temperatures_stay_finite_in_bfloat16(engine: str, llama: Path, temperature: float) -> None:
    learner = student(llama, torch.bfloat16)
    before = learner.weights
    found = learn(learner, engine, objective(t=temperature), epochs=2, max_gradient_norm=1.0)
    assert len(found) == 6 and all(0 < f.loss < 1e4 and 0 < f.gradient_norm < 1e6 for f in found)
    assert all(torch.isfinite(tensor).all() for tensor in learner.weights.values())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in learner.weights.items())


BAD = {"a NaN target": float("nan"), "an infinite target": float("inf")}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize("micro_batch_size", [None, 3])
@pytest.mark.parametrize("log_every_steps", [1, 50])
def test_a_bad_target_stops_the_run_before_a_weight_moves(
    engine: str, llama: Path, value: float, micro_batch_size: int | None, log_every_steps: int
) -> None:
    order = epoch_order(ROWS, 3, 0)
    teacher = teacher_logits()
    teacher[order[10], 1] = value
    learner = student(llama)
    chosen = {"micro_batch_size": micro_batch_size, "log_every_steps": log_every_steps}
    with pytest.raises(NonFiniteError, match=r"^step 2: the loss is (nan|inf)") as raised:
        learn(learner, engine, objective(teacher), **chosen)
    assert f"train:{order[10]}" in str(raised.value) and f"train:{order[0]}," not in str(raised.value)
    assert_same_weights(learner.weights, after_one_step(llama, engine, micro_batch_size), within=1e-6)


def test_a_bad_weight_stops_the_run_too(engine: str, learner: Student) -> None:
    name, parameter = next((n, p) for n, p in learner.model.named_parameters() if p.requires_grad and "lora_A" in n)
    parameter.data[0, 0] = float("nan")
    before = learner.weights
    with pytest.raises(NonFiniteError, match=r"^step 1: the loss is nan"):
        learn(learner, engine, objective())
    after = learner.weights
    assert all(torch.equal(after[key].nan_to_num(7.0), before[key].nan_to_num(7.0)) for key in before), name


def after_one_step(folder: Path, engine: str, micro_batch_size: int | None) -> dict[str, torch.Tensor]:
    """The weights of a sound run after its first step."""
    learner, kept = student(folder), {}
    learn(
        learner,
        engine,
        objective(),
        lambda: kept.update(learner.weights) if not kept else None,
        micro_batch_size=micro_batch_size,
    )
    return kept


def test_the_labels_of_this_suite_are_worth_testing() -> None:
    classes, labelled = labels()
    assert len(set(classes.tolist())) == CLASSES and labelled.sum() == 14
