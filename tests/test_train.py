"""The loop against a plain implementation of the same mathematics: padded texts, one at a time, autograd by hand."""

import math
import os
import signal
from pathlib import Path

import pytest
import torch
from tiny import tiny_llama, toy_sentences

from llm_neo.batching import TokenRows, encode, epoch_order
from llm_neo.checkpoint import CheckpointStore
from llm_neo.engines import choose_engine
from llm_neo.errors import NonFiniteError, ResourceError
from llm_neo.interrupts import Terminated, raised_signals
from llm_neo.losses import RowLosses, distillation_loss
from llm_neo.models import adapters
from llm_neo.models.load import LoadedModel, Placement, load_classifier
from llm_neo.progress import SilentProgress
from llm_neo.recipe.tree import Lora
from llm_neo.schedule import TrainSettings, largest_micro_batch, scheduled
from llm_neo.train import Listener, TrainResult, train
from llm_neo.train_state import Logged

CPU = torch.device("cpu")
ROWS, CLASSES = 22, 3


def settings(**changes: object) -> TrainSettings:
    values = {
        "epochs": 2,
        "batch_size": 8,
        "micro_batch_size": None,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "schedule": "linear",
        "warmup_fraction": 0.2,
        "max_gradient_norm": 0.5,
        "seed": 3,
        "evaluate_every_steps": None,
        "checkpoint_every_steps": None,
        "log_every_steps": 1,
    }
    return TrainSettings(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    return load_classifier(
        tiny_llama(tmp_path / "m"),
        "tiny",
        ["a", "b", "c"],
        Placement(CPU, torch.float32),
        max_length_tokens=32,
        seed=1,
    )


def tokens_of(loaded: LoadedModel) -> TokenRows:
    texts = [(text,) for text, _ in toy_sentences(ROWS)]
    return encode(loaded.tokenizer, [f"train:{i}" for i in range(ROWS)], texts, 32)


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    labelled = torch.rand(ROWS, generator=generator) > 0.3
    return labels, labelled, torch.randn(ROWS, CLASSES, generator=generator) * 2


def objective(logits_BC: torch.Tensor, rows_B: torch.Tensor) -> RowLosses:
    labels, labelled, teacher = problem()
    return distillation_loss(
        logits_BC, teacher[rows_B], labels[rows_B], labelled[rows_B], hard_label_weight=0.4, temperature=2.5
    )


def run(
    model: torch.nn.Module, rows: TokenRows, chosen: TrainSettings, **more: object
) -> tuple[TrainResult, list[Logged]]:
    logged: list[Logged] = []
    more.setdefault("listener", Listener(log=logged.append, evaluate=lambda *_: {}))
    result = train(
        model,
        rows,
        more.pop("objective", objective),
        chosen,
        device=CPU,
        autocast_dtype=None,  # type: ignore[arg-type]
        progress=SilentProgress(),
        label="test",
        **more,  # type: ignore[arg-type]
    )
    return result, logged


def plain_loss(model: torch.nn.Module, loaded: LoadedModel, row: int) -> torch.Tensor:
    """The recipe's loss of one padded text, through transformers' own classifier."""
    labels, labelled, teacher = problem()
    text = toy_sentences(ROWS)[row][0]
    inputs = loaded.tokenizer(text, padding="max_length", max_length=32, truncation=True, return_tensors="pt")
    z = model(**inputs).logits[0]
    hard = -z.log_softmax(0)[labels[row]] * labelled[row]
    t, s = (teacher[row] / 2.5).softmax(0), (z / 2.5).log_softmax(0)
    return 0.4 * hard + 0.6 * 2.5**2 * (t * (t.log() - s)).sum()


def plain_run(
    model: torch.nn.Module, loaded: LoadedModel, chosen: TrainSettings
) -> tuple[list[float], list[torch.Tensor]]:
    """The same training, every line of it spelled out; gives each step's loss and unclipped gradient."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=chosen.learning_rate, weight_decay=chosen.weight_decay)
    per_epoch = math.ceil(ROWS / chosen.batch_size)
    total, warm = chosen.epochs * per_epoch, math.floor(chosen.warmup_fraction * chosen.epochs * per_epoch)
    losses, gradients = [], []
    model.train()
    for step in range(total):
        order = epoch_order(ROWS, chosen.seed, step // per_epoch)
        batch = order[(step % per_epoch) * chosen.batch_size :][: chosen.batch_size]
        share = step / warm if step < warm else (total - step) / (total - warm)
        optimizer.param_groups[0]["lr"] = chosen.learning_rate * share
        optimizer.zero_grad()
        loss = torch.stack([plain_loss(model, loaded, int(row)) for row in batch]).mean()
        loss.backward()
        flat = torch.cat([p.grad.flatten() for p in parameters])
        losses.append(loss.item())
        gradients.append(flat.clone())
        for p in parameters:
            p.grad *= min(1.0, chosen.max_gradient_norm / (flat.norm() + 1e-6))
        optimizer.step()
    return losses, gradients


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_every_step_equals_the_plain_implementation(
    loaded: LoadedModel, tmp_path: Path, micro_batch_size: int | None
) -> None:
    lora = Lora(rank=4, alpha=8, dropout=0.0)
    again = load_classifier(
        tmp_path / "m", "tiny", ["a", "b", "c"], Placement(CPU, torch.float32), max_length_tokens=32, seed=1
    )
    expected_losses, expected_gradients = plain_run(adapters.add_adapters(again.model, lora, 5), again, settings())

    model = adapters.add_adapters(loaded.model, lora, 5)
    trainable = adapters.trainable_parameters(model)
    seen: list[torch.Tensor] = []
    clip = torch.nn.utils.clip_grad_norm_

    def spy(parameters: list[torch.nn.Parameter], limit: float) -> torch.Tensor:
        seen.append(torch.cat([p.grad.flatten() for p in trainable]).clone())
        return clip(parameters, limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
        result, logged = run(model, tokens_of(loaded), settings(micro_batch_size=micro_batch_size))

    assert result.steps == len(expected_losses) == 6
    for line, loss, gradient, expected in zip(logged, expected_losses, seen, expected_gradients, strict=True):
        assert line.figures.loss == pytest.approx(loss, abs=1e-5)
        assert (gradient - expected).abs().max() < 1e-5
        assert line.figures.gradient_norm == pytest.approx(expected.norm().item(), abs=1e-4)


def test_nothing_but_adapters_and_head_moves(loaded: LoadedModel) -> None:
    model = adapters.add_adapters(loaded.model, Lora(rank=4, alpha=8, dropout=0.1), 5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run(model, tokens_of(loaded), settings())
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "score.modules_to_save" in name for name in moved)


def test_the_same_seed_gives_the_same_run_dropout_included(tmp_path: Path) -> None:
    def losses() -> list[float]:
        fresh = load_classifier(
            tmp_path / "m", "t", ["a", "b", "c"], Placement(CPU, torch.float32), max_length_tokens=32, seed=1
        )
        model = adapters.add_adapters(fresh.model, Lora(rank=4, alpha=8, dropout=0.3), 5)
        return [line.figures.loss for line in run(model, tokens_of(fresh), settings())[1]]

    tiny_llama(tmp_path / "m")
    assert losses() == losses()


def test_evaluations_come_when_due_and_change_nothing(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "m")
    asked: list[tuple[int, float, float]] = []

    def adapted() -> tuple[torch.nn.Module, TokenRows]:
        fresh = load_classifier(
            tmp_path / "m", "t", ["a", "b", "c"], Placement(CPU, torch.float32), max_length_tokens=32, seed=1
        )
        return adapters.add_adapters(fresh.model, Lora(rank=4, alpha=8, dropout=0.3), 5), tokens_of(fresh)

    model, rows = adapted()

    def evaluate(step: int, epoch: float, loss: float) -> dict[str, object]:
        model.eval()
        asked.append((step, epoch, loss))
        return {"step": step}

    logged: list[Logged] = []
    result, _ = run(model, rows, settings(evaluate_every_steps=2), listener=Listener(logged.append, evaluate))
    other, plain = run(*adapted(), settings())
    assert [line.figures.loss for line in logged] == [line.figures.loss for line in plain]
    assert [(step, epoch) for step, epoch, _ in asked] == [
        (2, pytest.approx(2 / 3)),
        (4, pytest.approx(4 / 3)),
    ]
    assert asked[1][2] == pytest.approx((logged[2].figures.loss + logged[3].figures.loss) / 2)
    assert result.evaluations == ({"step": 2}, {"step": 4}) and other.evaluations == ()
    assert result.training_loss == pytest.approx((logged[4].figures.loss + logged[5].figures.loss) / 2)


def test_log_lines_hold_means_over_their_steps(loaded: LoadedModel) -> None:
    model = adapters.add_adapters(loaded.model, Lora(rank=4, alpha=8, dropout=0.0), 5)
    _, each = run(model, tokens_of(loaded), settings(learning_rate=1e-12))
    _, some = run(model, tokens_of(loaded), settings(learning_rate=1e-12, log_every_steps=4))
    assert [line.step for line in some] == [4, 6]
    assert some[0].figures.loss == pytest.approx(sum(line.figures.loss for line in each[:4]) / 4, abs=1e-6)
    assert some[0].figures.tokens == sum(line.figures.tokens for line in each[:4])


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_non_finite_step_stops_before_it_moves_a_weight(loaded: LoadedModel, broken: str) -> None:
    model = adapters.add_adapters(loaded.model, Lora(rank=4, alpha=8, dropout=0.0), 5)
    steps = 0
    before: dict[str, torch.Tensor] = {}

    def poisoned(logits_BC: torch.Tensor, rows_B: torch.Tensor) -> RowLosses:
        nonlocal steps
        steps += 1
        losses = objective(logits_BC, rows_B)
        if steps < 3:
            return losses
        before.update({name: p.detach().clone() for name, p in adapters.trainable_tensors(model).items()})
        if broken == "loss":
            return losses._replace(total_B=losses.total_B * float("nan"))
        # A finite value with an infinite slope: the loss looks fine, its gradient is not.
        return losses._replace(total_B=losses.total_B + (logits_BC[:, 0] - logits_BC[:, 0].detach()).abs().sqrt())

    with pytest.raises(NonFiniteError, match=rf"step 3: the {broken} is (nan|inf).*rows train:"):
        run(model, tokens_of(loaded), settings(), objective=poisoned)
    assert all(torch.equal(before[name], p) for name, p in adapters.trainable_tensors(model).items())


def test_a_killed_run_continues_to_the_very_same_weights(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "m")

    def adapted() -> tuple[torch.nn.Module, TokenRows]:
        fresh = load_classifier(
            tmp_path / "m", "t", ["a", "b", "c"], Placement(CPU, torch.float32), max_length_tokens=32, seed=1
        )
        return adapters.add_adapters(fresh.model, Lora(rank=4, alpha=8, dropout=0.3), 5), tokens_of(fresh)

    chosen = settings(checkpoint_every_steps=2, log_every_steps=3, evaluate_every_steps=2)
    whole, rows = adapted()
    undisturbed, lines = run(whole, rows, chosen)

    store = CheckpointStore(tmp_path / "checkpoints", {"of": "me"})
    killed, rows = adapted()
    steps = 0

    def stop_at_5(logits_BC: torch.Tensor, rows_B: torch.Tensor) -> RowLosses:
        nonlocal steps
        steps += 1
        if steps == 6:
            raise KeyboardInterrupt
        return objective(logits_BC, rows_B)

    with pytest.raises(KeyboardInterrupt):
        run(killed, rows, chosen, objective=stop_at_5, store=store)
    assert store.step() == 4

    resumed, rows = adapted()
    result, more = run(resumed, rows, chosen, store=store)
    for name, tensor in adapters.trainable_tensors(whole).items():
        assert torch.equal(tensor, adapters.trainable_tensors(resumed)[name]), name
    assert more[-1].figures == lines[-1].figures and result.tokens == undisturbed.tokens
    assert result.training_loss == undisturbed.training_loss and len(result.evaluations) == 2


def test_all_weights_learn_with_decay_on_matrices_only(loaded: LoadedModel) -> None:
    model = adapters.open_all_weights(loaded.model)
    count = adapters.count_parameters(model)
    assert count.trainable == count.total
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run(model, tokens_of(loaded), settings(learning_rate=1e-3, weight_decay=500.0))
    shrunk = {n for n, p in model.named_parameters() if p.norm() < 0.8 * before[n].norm()}
    assert shrunk == {n for n, p in model.named_parameters() if p.ndim >= 2}


@pytest.mark.parametrize("where", ["step", "evaluation", "last step"])
@pytest.mark.parametrize("every", [None, 4])
def test_a_signal_ends_the_run_with_a_checkpoint_of_its_last_step(
    tmp_path: Path, where: str, every: int | None
) -> None:
    """Within a step it waits for its end, within an evaluation it does not; resuming gives the very same run."""
    tiny_llama(tmp_path / "m")

    def adapted() -> tuple[torch.nn.Module, TokenRows]:
        fresh = load_classifier(
            tmp_path / "m", "t", ["a", "b", "c"], Placement(CPU, torch.float32), max_length_tokens=32, seed=1
        )
        return adapters.add_adapters(fresh.model, Lora(rank=4, alpha=8, dropout=0.3), 5), tokens_of(fresh)

    lines: list[Logged] = []
    begun: list[int] = []
    evaluated: list[tuple[int, float]] = []

    def listener(*, stops: bool) -> Listener:
        def evaluate(step: int, epoch: float, loss: float) -> dict[str, object]:
            if stops and where == "evaluation":
                os.kill(os.getpid(), signal.SIGTERM)
                raise AssertionError("the evaluation went on")
            evaluated.append((step, loss))
            return {"step": step}

        return Listener(lines.append, evaluate, lambda logged: begun.append(len(logged)))

    chosen = settings(checkpoint_every_steps=every, log_every_steps=2, evaluate_every_steps=3)
    whole, rows = adapted()
    undisturbed, _ = run(whole, rows, chosen, listener=listener(stops=False))
    expected, seen = list(lines), list(evaluated)
    lines.clear(), evaluated.clear()

    steps, at = 0, {"step": 3, "evaluation": -1, "last step": 6}[where]

    def stopped(logits_BC: torch.Tensor, rows_B: torch.Tensor) -> RowLosses:
        nonlocal steps
        steps += 1
        if steps == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return objective(logits_BC, rows_B)

    store = CheckpointStore(tmp_path / "checkpoints", {"of": "me"})
    model, rows = adapted()
    with raised_signals(), pytest.raises(Terminated):
        run(model, rows, chosen, objective=stopped, store=store, listener=listener(stops=True))
    assert store.step() == (6 if where == "last step" else 3)
    model, rows = adapted()
    result, _ = run(model, rows, chosen, store=store, listener=listener(stops=False))
    assert begun[-1] == (3 if where == "last step" else 1)
    for name, tensor in adapters.trainable_tensors(whole).items():
        assert torch.equal(tensor, adapters.trainable_tensors(model)[name]), name
    assert [(line.step, line.figures) for line in lines] == [(line.step, line.figures) for line in expected]
    assert evaluated == seen and result.evaluations == undisturbed.evaluations
    assert (result.training_loss, result.tokens) == (undisturbed.training_loss, undisturbed.tokens)


def test_a_rehearsal_leaves_no_trace_and_takes_the_largest_micro_batch(loaded: LoadedModel) -> None:
    model = adapters.add_adapters(loaded.model, Lora(rank=4, alpha=8, dropout=0.3), 5).train()
    rows, chosen = tokens_of(loaded), settings(micro_batch_size=3)
    largest = largest_micro_batch(rows, chosen)
    assert largest.tokens == max(batch.tokens for _, batches in scheduled(rows, chosen, 0) for batch in batches)
    engine = choose_engine(
        model, objective, chosen, total_steps=6, longest_text=20, device=CPU, autocast_dtype=None, wanted="auto"
    ).engine
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    drawn = torch.get_rng_state()
    engine.rehearse(largest)
    assert torch.equal(drawn, torch.get_rng_state()) and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()) and engine.read() == []


@pytest.mark.parametrize(
    ("micro", "remedy"), [(None, "set train.micro_batch_size to 4"), (1, "lower data.max_length_tokens")]
)
def test_a_failing_allocation_names_the_field_and_its_value(
    loaded: LoadedModel, micro: int | None, remedy: str
) -> None:
    model = adapters.add_adapters(loaded.model, Lora(rank=4, alpha=8, dropout=0.0), 5)
    before = {name: p.detach().clone() for name, p in adapters.trainable_tensors(model).items()}

    def hungry(logits_BC: torch.Tensor, rows_B: torch.Tensor) -> RowLosses:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12")

    with pytest.raises(ResourceError, match=rf"no memory for \d+ rows \(\d+ tokens\) at once; {remedy}"):
        run(model, tokens_of(loaded), settings(micro_batch_size=micro), objective=hungry)
    assert all(torch.equal(before[name], p) for name, p in adapters.trainable_tensors(model).items())
