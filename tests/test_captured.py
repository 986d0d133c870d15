"""Padding to buckets on any machine; on a GPU, captured steps against the plain ones."""

from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_engines import (
    ROWS,
    Run,
    assert_same_run,
    assert_same_weights,
    objective,
    poisoned_at,
    settings,
    student,
    teacher_logits,
    texts,
)
from test_fused import FAMILIES, classifier, token_rows, with_lora
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from llm_neo.batching import Batch, TokenRows, epoch_order, packed_batch
from llm_neo.buckets import bucket, padded, unpacked
from llm_neo.captured import CapturedEngine
from llm_neo.checkpoint import CheckpointStore
from llm_neo.errors import NonFiniteError
from llm_neo.evaluate import EngineName, classifier_forward, score_rows
from llm_neo.losses import RowLosses
from llm_neo.models.adapters import add_adapters
from llm_neo.models.attention import Segments
from llm_neo.models.fused import FusedClassifier
from llm_neo.models.load import Placement, load_classifier
from llm_neo.models.quantization import Quantization
from llm_neo.recipe.tree import Lora
from llm_neo.schedule import scheduled
from llm_neo.train_state import Logged

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    """PyTorch compiles a function for a few models and then no more; each test begins anew."""
    if torch.cuda.is_available():
        torch._dynamo.reset()


def test_buckets_by_hand() -> None:
    assert [bucket(n) for n in (1, 64, 65, 1000, 1024)] == [64, 64, 128, 1024, 1024]
    # Above 1,024 the steps grow: an eighth of 1,024 up to 2,048, of 2,048 up to 4,096.
    assert [bucket(n) for n in (1025, 1153, 2048, 2049, 4000)] == [1152, 1280, 2048, 2304, 4096]


def test_buckets_hold_their_tokens_waste_an_eighth_and_are_few() -> None:
    sizes = range(1, 16_385)
    buckets = [bucket(n) for n in sizes]
    assert all(n <= b < n + max(64, n / 8) for n, b in zip(sizes, buckets, strict=True))
    assert all(a <= b for a, b in pairwise(buckets)) and all(bucket(b) == b for b in buckets)
    assert len(set(buckets)) == 16 + 4 * 8


def round_trip(lengths: list[int], rows: int, rows_of_step: int) -> tuple[Batch, Batch, torch.Tensor, torch.Tensor]:
    """A batch, the same after padding, which of its texts are there and the rows of the step."""
    order = np.arange(len(lengths))[::-1].copy()
    batch = packed_batch(token_rows(*lengths), order)
    tokens = bucket(batch.tokens + rows - len(lengths) + 1)
    values = padded(batch, tokens, rows, rows_of_step)
    assert values.dtype == torch.int32
    return batch, *unpacked(values, tokens, rows, max(lengths))


def test_a_padded_batch_by_hand() -> None:
    # Texts of 2 and 3 tokens, the second first; one of three is missing: it is token 5, and the rest one text more.
    batch, padded, present, total = round_trip([2, 3], rows=3, rows_of_step=7)
    assert padded.input_ids.shape == (1, 64)
    assert padded.segments is not None and padded.segments.query_starts.tolist() == [0, 3, 5, 6, 64]
    assert padded.position_ids is not None
    assert padded.position_ids[0].tolist() == [0, 1, 2, 0, 1, 0, *range(58)]
    assert padded.input_ids[0, :5].tolist() == batch.input_ids[0].tolist() and not padded.input_ids[0, 5:].any()
    assert padded.last_token.tolist() == [2, 4, 5, 63] and padded.rows[:2].tolist() == [1, 0]
    assert present.tolist() == [True, True, False] and total == 7


@given(st.lists(st.integers(1, 150), min_size=1, max_size=12), st.integers(0, 9), st.integers(0, 50))
@hypothesis_settings(max_examples=60, deadline=None)
def test_padding_keeps_the_texts_and_leaves_no_segment_empty(lengths: list[int], missing: int, more: int) -> None:
    there, rows = len(lengths), len(lengths) + missing
    batch, padded, present, total = round_trip(lengths, rows, there + more)
    assert padded.segments is not None and padded.position_ids is not None and batch.position_ids is not None
    starts = padded.segments.query_starts
    counts = starts.diff()
    assert len(counts) == rows + 1 and starts[0] == 0 and starts[-1] == padded.tokens
    assert counts.min() >= 1 and counts.max() <= padded.segments.longest_query == padded.segments.longest_key
    assert counts[:there].tolist() == lengths[::-1] and (counts[there:rows] == 1).all()
    assert present.tolist() == [True] * there + [False] * missing and total == there + more
    assert padded.rows[:there].tolist() == batch.rows.tolist()
    # The places that a graph reads must be in reach of the targets, missing texts included.
    assert padded.rows.min() >= 0 and padded.rows.max() < there

    assert torch.equal(padded.input_ids[:, : batch.tokens].long(), batch.input_ids)
    assert torch.equal(padded.position_ids[:, : batch.tokens].long(), batch.position_ids)
    restarts = torch.cat([torch.arange(count) for count in counts.tolist()])
    assert torch.equal(padded.position_ids[0].long(), restarts)
    assert torch.equal(padded.last_token, starts[1:].long() - 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lengths", [[5], [3, 7, 1, 12], [40, 90, 2, 64]], ids=str)
def test_the_texts_of_a_padded_batch_have_the_logits_of_the_batch_itself(family: str, lengths: list[int]) -> None:
    model = with_lora(classifier(FAMILIES[family]))
    batch, padded, present, _ = round_trip(lengths, rows=6, rows_of_step=6)
    forward = classifier_forward(model)
    assert isinstance(forward, FusedClassifier)
    with torch.no_grad():
        found, expected = forward(padded)[:6][present], forward(batch)
    assert (found - expected).abs().max() < 1e-5 and torch.isfinite(forward(padded)).all()


def test_texts_of_one_length_are_no_batch_for_a_graph() -> None:
    square = Batch(torch.ones(2, 3, dtype=torch.long), None, None, torch.tensor([2, 5]), torch.arange(2))
    with pytest.raises(AssertionError, match="packed"):
        padded(square, 64, 2, 2)


def test_a_batch_keeps_one_tensor_for_both_starts() -> None:
    _, padded, _, _ = round_trip([2, 3], rows=3, rows_of_step=3)
    assert isinstance(padded.segments, Segments) and padded.segments.key_starts is padded.segments.query_starts


@pytest.fixture
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The captured engine on a CPU: what a graph would hold runs op by op, all else is as on a GPU."""

    def replay(self: CapturedEngine, batch: Batch, rows: int, *, updates: bool) -> None:
        tokens = bucket(batch.tokens + self._rows - len(batch.rows) + 1)
        self._body(padded(batch, tokens, self._rows, rows), tokens, updates=updates)

    monkeypatch.setattr(CapturedEngine, "_replay", replay)
    monkeypatch.setattr("llm_neo.engines._decide", lambda *_: ("captured", ""))
    monkeypatch.setattr("llm_neo.evaluate.can_compile", lambda: False)


CHANGES = [{}, {"micro_batch_size": 3}, {"max_gradient_norm": None}]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_the_body_of_a_graph_takes_the_steps_of_the_plain_engine(
    changes: dict[str, object], request: pytest.FixtureRequest
) -> None:
    plain, captured, read_late = Run(student(), "plain"), Run(student(), "captured"), Run(student(), "captured")
    plain(settings(**changes), rows=long_texts())
    request.getfixturevalue("_eager")
    assert captured(settings(**changes), rows=long_texts()).engine == "captured"
    assert_same_run(captured, plain, 1e-5)

    read_late(settings(**changes, log_every_steps=50), rows=long_texts())
    (line,) = read_late.logged
    assert line.figures.loss == pytest.approx(sum(captured.losses) / 50)
    assert line.figures.tokens == 10 * int(long_texts().lengths.sum())
    assert_same_weights(read_late.weights, captured.weights)


@pytest.mark.usefixtures("_eager")
@pytest.mark.parametrize("micro_batch_size", [None, 3])
@pytest.mark.parametrize("log_every_steps", [1, 50])
def test_the_body_of_a_graph_takes_no_step_after_a_bad_one(micro_batch_size: int | None, log_every_steps: int) -> None:
    clean = Run(student(), "captured", keep=frozenset({2}))
    clean(settings(micro_batch_size=micro_batch_size))
    bad, ids = poisoned_at(3, float("nan"))
    run = Run(student(), "captured")
    with pytest.raises(NonFiniteError, match=r"^step 3: the loss is nan") as raised:
        run(settings(micro_batch_size=micro_batch_size, log_every_steps=log_every_steps), objective=bad)
    assert f"(rows {', '.join(ids)})" in str(raised.value)
    assert_same_weights(run.weights, clean.kept[2])


@pytest.mark.usefixtures("_eager")
@pytest.mark.parametrize("micro_batch_size", [None, 3])
@pytest.mark.parametrize("log_every_steps", [1, 50])
def test_a_finite_loss_with_an_infinite_slope_is_a_bad_step_too(
    micro_batch_size: int | None, log_every_steps: int
) -> None:
    clean = Run(student(), "captured", keep=frozenset({2}))
    clean(settings(micro_batch_size=micro_batch_size))
    steep = int(epoch_order(ROWS, settings().seed, 0)[2 * 8 + 5])

    def bad(logits_BC: torch.Tensor, rows_B: torch.Tensor) -> RowLosses:
        losses = objective()(logits_BC, rows_B)
        # Adds 0 to the loss and 1e38, whose square is infinite, to the gradient.
        slope_B = torch.where(rows_B == steep, 1e38, 0.0)
        return losses._replace(total_B=losses.total_B + (logits_BC - logits_BC.detach()).sum(dim=1) * slope_B)

    run = Run(student(), "captured")
    with pytest.raises(NonFiniteError, match=rf"^step 3: the gradient is inf.*row {steep}\b"):
        run(settings(micro_batch_size=micro_batch_size, log_every_steps=log_every_steps), objective=bad)
    assert_same_weights(run.weights, clean.kept[2])


@pytest.mark.usefixtures("_eager")
def test_a_missing_text_reads_no_target_of_another_step() -> None:
    order = epoch_order(ROWS, settings().seed, 0).tolist()
    step = order.index(0) // 8 + 1
    assert step > 1
    teacher = teacher_logits()
    teacher[0] = float("nan")
    with pytest.raises(NonFiniteError, match=rf"^step {step}: .*row 0\b"):
        Run(student(), "captured")(settings(micro_batch_size=3), objective=objective(teacher))


@pytest.mark.usefixtures("_eager")
def test_a_captured_run_goes_on_from_a_checkpoint_to_the_same_weights(tmp_path: Path) -> None:
    chosen = settings(epochs=2, checkpoint_every_steps=4, micro_batch_size=3)
    whole = Run(student(0.3), "captured")
    whole(chosen)

    def stop_after_6(line: Logged) -> None:
        if line.step == 6:
            raise KeyboardInterrupt

    store = CheckpointStore(tmp_path, {"of": "me"})
    with pytest.raises(KeyboardInterrupt):
        Run(student(0.3), "captured", after_log=stop_after_6)(chosen, store=store)
    resumed = Run(student(0.3), "captured")
    resumed(chosen, store=store)
    assert resumed.losses == whole.losses[4:]
    assert_same_weights(resumed.weights, whole.weights)


@pytest.fixture
def _exact() -> Iterator[None]:
    """Float32 products without TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def long_texts() -> TokenRows:
    """Texts of 1 to 60 tokens, so that batches of 8 fall into several buckets."""
    return texts(longest=60)


def buckets_of_a_run(rows: TokenRows) -> set[int]:
    chosen = settings()
    return {bucket(batch.tokens + 9 - len(batch.rows)) for _, parts in scheduled(rows, chosen, 0) for batch in parts}


def test_the_gpu_tests_meet_several_buckets() -> None:
    assert len(buckets_of_a_run(long_texts())) >= 3


@NEEDS_GPU
@pytest.mark.usefixtures("_exact")
@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("log_every_steps", [1, 50])
def test_captured_steps_equal_plain_ones(changes: dict[str, object], log_every_steps: int) -> None:
    plain, captured = (Run(student(device=CUDA), engine) for engine in ("plain", "captured"))
    assert plain(settings(**changes), rows=long_texts()).engine == "plain"
    result = captured(settings(**changes, log_every_steps=log_every_steps), rows=long_texts())
    assert result.engine == "captured" and result.steps == 50
    assert result.tokens == 10 * int(long_texts().lengths.sum())
    if log_every_steps == 1:
        assert_same_run(captured, plain, 1e-5)
        assert captured.losses[-1] < captured.losses[0] - 0.1 and max(captured.norms) > 0.5
        return
    # One line for all steps, read at the end alone.
    (line,) = captured.logged
    assert line.figures.loss == pytest.approx(sum(plain.losses) / 50, abs=1e-5)
    assert line.figures.gradient_norm == pytest.approx(sum(plain.norms) / 50, rel=1e-5)
    assert_same_weights(captured.weights, plain.weights, within=1e-5)


@NEEDS_GPU
@pytest.mark.usefixtures("_exact")
def test_auto_captures_all_weights_and_the_fused_form_of_a_gpu_equals_the_plain_one() -> None:
    plain, captured = (Run(classifier().requires_grad_(True).to(CUDA), engine) for engine in ("plain", "auto"))
    plain(settings(epochs=2)), captured(settings(epochs=2))
    assert captured.said[0] == "test: captured engine"
    assert captured.losses == pytest.approx(plain.losses, abs=1e-4)
    assert_same_weights(captured.weights, plain.weights, within=1e-3)


@NEEDS_GPU
@pytest.mark.usefixtures("_exact")
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_evaluations_and_checkpoints_between_replays_change_nothing(tmp_path: Path, dropout: float) -> None:
    undisturbed = Run(student(dropout, CUDA), "captured")
    undisturbed(settings(), rows=long_texts())

    model, scores = student(dropout, CUDA), []

    def evaluate() -> None:
        model.eval()
        scores.append(score_rows(classifier_forward(model), long_texts(), CUDA))

    disturbed = Run(model, "captured", evaluate=evaluate)
    chosen = settings(evaluate_every_steps=5, checkpoint_every_steps=7)
    disturbed(chosen, rows=long_texts(), store=CheckpointStore(tmp_path, {"of": "me"}))
    assert disturbed.losses == undisturbed.losses and len(scores) == 9
    assert_same_weights(disturbed.weights, undisturbed.weights)
    # An evaluation sees the weights of its step, not those that the graphs were captured with.
    assert len({tuple(score.flatten().tolist()) for score in scores}) == 9


@NEEDS_GPU
def test_dropout_is_drawn_anew_in_every_replay_and_comes_from_the_seed() -> None:
    def once(seed: int) -> list[float]:
        run = Run(student(0.5, CUDA), "captured")
        # Weights that hardly move, and each epoch the same rows in one batch: what changes is the dropout.
        run(settings(batch_size=ROWS, epochs=6, learning_rate=1e-12, seed=seed))
        return run.losses

    first = once(3)
    # The order of a sum moves its last digits only.
    apart = [abs(a - b) for a, b in combinations(first, 2)]
    assert min(apart) > 1e-4 and once(3) == first and once(4) != first


@NEEDS_GPU
@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_a_killed_captured_run_goes_on_bit_for_bit(tmp_path: Path, micro_batch_size: int | None) -> None:
    chosen = settings(checkpoint_every_steps=4, micro_batch_size=micro_batch_size)
    whole = Run(student(0.3, CUDA), "captured")
    whole(chosen, rows=long_texts())

    def stop_after_22(line: Logged) -> None:
        if line.step == 22:
            raise KeyboardInterrupt

    store = CheckpointStore(tmp_path, {"of": "me"})
    with pytest.raises(KeyboardInterrupt):
        Run(student(0.3, CUDA), "captured", after_log=stop_after_22)(chosen, rows=long_texts(), store=store)
    assert store.step() == 20
    resumed = Run(student(0.3, CUDA), "captured")
    resumed(chosen, rows=long_texts(), store=store)
    assert resumed.losses == whole.losses[20:]
    assert_same_weights(resumed.weights, whole.weights)


@NEEDS_GPU
@pytest.mark.usefixtures("_exact")
@pytest.mark.parametrize("micro_batch_size", [None, 3])
@pytest.mark.parametrize("log_every_steps", [1, 50])
def test_however_late_it_is_read_a_bad_step_moved_no_weight(micro_batch_size: int | None, log_every_steps: int) -> None:
    clean = Run(student(device=CUDA), "captured", keep=frozenset({2}))
    clean(settings(micro_batch_size=micro_batch_size))

    bad, ids = poisoned_at(3, float("nan"), CUDA)
    run = Run(student(device=CUDA), "captured")
    with pytest.raises(NonFiniteError, match=r"^step 3: the loss is nan") as raised:
        run(settings(micro_batch_size=micro_batch_size, log_every_steps=log_every_steps), objective=bad)
    assert f"(rows {', '.join(ids)})" in str(raised.value)
    assert_same_weights(run.weights, clean.kept[2])


@NEEDS_GPU
def test_a_full_log_is_read_before_it_overflows() -> None:
    from llm_neo.engines import choose_engine

    model, rows = student(device=CUDA).train(), texts()
    chosen = choose_engine(
        model,
        objective(device=CUDA),
        settings(),
        total_steps=50,
        longest_text=14,
        device=CUDA,
        autocast_dtype=None,
        wanted="captured",
    )
    large = chosen.engine
    assert isinstance(large, CapturedEngine) and chosen.reason == ""
    small = CapturedEngine(
        classifier_forward(model),
        objective(device=CUDA),
        large.optimizer,
        large.scheduler,
        0.5,
        None,
        CUDA,
        rows_of_batch=8,
        longest_text=14,
        accumulates=False,
        log_capacity=4,
    )
    steps = iter(scheduled(rows, settings(), 0))
    for taken in range(4):
        assert not small.full, taken
        small.step(next(steps)[1])
    assert small.full
    figures = small.read()
    assert len(figures) == 4 and not small.full and small.read() == []
    assert [f.learning_rate for f in figures] == pytest.approx([0.0, 1e-4, 2e-4, 3e-4])
    small.step(next(steps)[1])
    (fifth,) = small.read()
    assert fifth.learning_rate == pytest.approx(4e-4)


@NEEDS_GPU
@pytest.mark.parametrize(("quantization", "targets"), [("nf4", "all-linear"), ("none", ("q_proj", "k_proj", "v_proj"))])
def test_captured_steps_in_bfloat16_are_as_near_to_float32_as_plain_ones(
    llama: Path, tmp_path: Path, quantization: Quantization, targets: tuple[str, ...] | Literal["all-linear"]
) -> None:
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    # Weights that bfloat16 holds exactly become the same 4-bit ones whatever the arithmetic.
    AutoModelForSequenceClassification.from_pretrained(llama, dtype=torch.bfloat16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path)

    def losses(dtype: torch.dtype, engine: EngineName) -> torch.Tensor:
        where = Placement(CUDA, dtype, quantization)
        loaded = load_classifier(tmp_path, "tiny", ["a", "b", "c"], where, max_length_tokens=64, seed=1)
        model = add_adapters(loaded.model, Lora(rank=4, alpha=8, dropout=0.0, targets=targets), 5)
        if quantization == "none" and engine == "captured":
            assert FusedClassifier(model, compiled=True)._kernels, "the kernels that are timed are not those tested"
        run = Run(model, engine)
        assert run(settings(epochs=2, learning_rate=1e-4), rows=long_texts()).engine == engine
        return torch.tensor(run.losses)

    exact, plain = losses(torch.float32, "plain"), losses(torch.bfloat16, "plain")
    captured = losses(torch.bfloat16, "captured")
    assert (captured - exact).abs().max() <= 2 * (plain - exact).abs().max()


@NEEDS_GPU
def test_int8_layers_are_trained_plainly(llama: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from llm_neo.engines import _decide

    where = Placement(CUDA, torch.bfloat16, "int8")
    loaded = load_classifier(llama, "tiny", ["a", "b", "c"], where, max_length_tokens=64, seed=1)
    assert _decide(loaded.model, CUDA, "auto") == ("plain", "its int8 layers wait for the host in every product")
