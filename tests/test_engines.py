"""Which engine is chosen and why, and that the choice changes nothing but the speed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from test_fused import CLASSES, classifier, token_rows, with_lora
from transformers import GPT2Config

from llm_neo.batching import Batch, TokenRows, epoch_order
from llm_neo.engine import Objective, PlainEngine
from llm_neo.engines import Chosen, choose_engine
from llm_neo.errors import InputError, NonFiniteError
from llm_neo.evaluate import EngineName
from llm_neo.losses import RowLosses, distillation_loss
from llm_neo.models.adapters import trainable_tensors
from llm_neo.models.fused import FusedClassifier
from llm_neo.progress import SilentProgress
from llm_neo.schedule import TrainSettings
from llm_neo.train import Listener, TrainResult, train
from llm_neo.train_state import Logged

CPU = torch.device("cpu")
ROWS = 38
"""No multiple of the batch size, so that the last batch of an epoch is short."""


def settings(**changes: object) -> TrainSettings:
    """50 steps of 8 rows, 6 in the last one of each epoch."""
    values = {
        "epochs": 10,
        "batch_size": 8,
        "micro_batch_size": None,
        "learning_rate": 1e-3,
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


def texts(longest: int = 14) -> TokenRows:
    lengths = torch.randint(1, longest + 1, (ROWS,), generator=torch.Generator().manual_seed(4))
    return token_rows(*lengths.tolist())


def student(dropout: float = 0.0, device: torch.device = CPU) -> torch.nn.Module:
    return with_lora(classifier(), lora_dropout=dropout).to(device)


def teacher_logits() -> torch.Tensor:
    return 2.0 * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(9))


def objective(teacher: torch.Tensor | None = None, device: torch.device = CPU) -> Objective:
    """Hard labels for some rows, soft targets for all."""
    generator = torch.Generator().manual_seed(9)
    targets = (teacher_logits() if teacher is None else teacher).to(device)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=generator).to(device)
    labelled = (torch.rand(ROWS, generator=generator) > 0.3).to(device)

    def losses(logits_BC: torch.Tensor, rows_B: torch.Tensor) -> RowLosses:
        return distillation_loss(
            logits_BC, targets[rows_B], labels[rows_B], labelled[rows_B], hard_label_weight=0.4, temperature=2.5
        )

    return losses


@dataclass
class Run:
    """A training run: what it logged and what its weights were after the steps in `keep`."""

    model: torch.nn.Module
    engine: EngineName
    keep: frozenset[int] = frozenset()
    after_log: Callable[[Logged], None] = lambda _: None
    evaluate: Callable[[], object] = lambda: None
    logged: list[Logged] = field(default_factory=list)
    kept: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def __call__(self, chosen: TrainSettings, *, rows: TokenRows | None = None, **options: object) -> TrainResult:
        class Progress(SilentProgress):
            say = staticmethod(self.said.append)

        device = next(self.model.parameters()).device
        options.setdefault("objective", objective(device=device))
        options.setdefault("autocast_dtype", None)
        return train(
            self.model,
            texts() if rows is None else rows,
            settings=chosen,
            device=device,
            listener=Listener(self._log, self._evaluate),
            progress=Progress(),
            label="test",
            engine=self.engine,
            **options,  # type: ignore[arg-type]
        )

    @property
    def losses(self) -> list[float]:
        return [line.figures.loss for line in self.logged]

    @property
    def norms(self) -> list[float]:
        return [line.figures.gradient_norm for line in self.logged]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in trainable_tensors(self.model).items()}

    def _log(self, line: Logged) -> None:
        self.logged.append(line)
        if line.step in self.keep:
            self.kept[line.step] = self.weights
        self.after_log(line)

    def _evaluate(self, *_: object) -> dict[str, object]:
        self.evaluate()
        return {}


def assert_same_weights(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], within: float = 0.0) -> None:
    assert found.keys() == wanted.keys() and wanted
    for name, tensor in wanted.items():
        assert (found[name] - tensor).abs().max() <= within, name


def assert_same_run(found: Run, wanted: Run, within: float) -> None:
    assert len(found.losses) == len(wanted.losses) == 50
    assert found.losses == pytest.approx(wanted.losses, abs=within)
    assert found.norms == pytest.approx(wanted.norms, rel=within, abs=within)
    for a, b in zip(found.logged, wanted.logged, strict=True):
        assert a.figures.hard_loss == pytest.approx(b.figures.hard_loss, abs=within)
        assert a.figures.soft_loss == pytest.approx(b.figures.soft_loss, abs=within)
        assert a.figures.learning_rate == pytest.approx(b.figures.learning_rate, rel=1e-6)
        assert a.figures.tokens == b.figures.tokens
    assert_same_weights(found.weights, wanted.weights, within)


def choose(model: torch.nn.Module, wanted: EngineName) -> Chosen:
    return choose_engine(
        model,
        objective(),
        settings(),
        total_steps=50,
        longest_text=14,
        device=CPU,
        autocast_dtype=None,
        wanted=wanted,
    )


def unknown() -> torch.nn.Module:
    return classifier(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, pad_token_id=0)).requires_grad_(True)


@pytest.mark.parametrize(
    ("wanted", "used", "reason"),
    [
        ("auto", "fused", "a CPU has no graphs to capture"),
        ("plain", "plain", "the recipe asks for it"),
        ("captured", "fused", "a CPU has no graphs to capture"),
    ],
)
def test_the_engine_on_a_cpu_and_why(wanted: EngineName, used: str, reason: str) -> None:
    chosen = choose(student(), wanted)
    assert (chosen.used, chosen.reason) == (used, reason)
    assert isinstance(chosen.engine, PlainEngine)
    assert isinstance(chosen.engine.forward, FusedClassifier) == (used == "fused")


def test_a_model_that_cannot_be_fused_is_trained_plainly_unless_graphs_are_asked_for() -> None:
    chosen = choose(unknown(), "auto")
    assert (chosen.used, chosen.reason) == ("plain", "a GPT2Model is not of the Llama family")
    with pytest.raises(InputError, match=r"runtime\.engine: captured .* a GPT2Model is not of.*; choose auto or plain"):
        choose(unknown(), "captured")


def test_weight_decay_pulls_matrices_alone_and_the_rate_warms_up() -> None:
    chosen = choose(unknown(), "plain")
    matrices, vectors = chosen.engine.optimizer.param_groups
    assert {p.ndim for p in matrices["params"]} == {2} and matrices["weight_decay"] == 0.1
    assert {p.ndim for p in vectors["params"]} == {1} and vectors["weight_decay"] == 0.0
    # 10 of the 50 steps warm up, so that the first is taken with 0 and the sixth with half.
    assert matrices["lr"] == 0.0
    for _ in range(5):
        chosen.engine.optimizer.step()
        chosen.engine.scheduler.step()
    assert matrices["lr"] == pytest.approx(5e-4)


def test_the_run_says_which_engine_it_has_and_records_it() -> None:
    run = Run(student(), "captured")
    result = run(settings(epochs=1))
    assert result.engine == "fused"
    assert run.said[0] == "test: fused engine (a CPU has no graphs to capture)"


@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 3}, {"max_gradient_norm": None}], ids=str)
def test_both_engines_take_the_same_50_steps(changes: dict[str, object]) -> None:
    plain, fused = Run(student(), "plain"), Run(student(), "auto")
    chosen = settings(**changes)
    assert (plain(chosen).engine, fused(chosen).engine) == ("plain", "fused")
    assert_same_run(fused, plain, 1e-5)
    # The steps did something, and the clip was felt in some of them.
    assert fused.losses[-1] < fused.losses[0] - 0.1 and max(fused.norms) > 0.5
    start = {name: tensor.clone() for name, tensor in trainable_tensors(student()).items()}
    assert all(not torch.equal(tensor, start[name]) for name, tensor in fused.weights.items())


def test_a_step_in_parts_is_the_whole_step() -> None:
    whole, parts = Run(student(), "auto"), Run(student(), "auto")
    whole(settings()), parts(settings(micro_batch_size=3))
    assert_same_run(parts, whole, 1e-5)


def test_all_weights_learn_the_same_with_both() -> None:
    runs = [Run(classifier().requires_grad_(True), engine) for engine in ("plain", "auto")]
    assert [run(settings(epochs=2)).engine for run in runs] == ["plain", "fused"]
    plain, fused = runs
    assert fused.losses == pytest.approx(plain.losses, abs=1e-4)
    assert_same_weights(fused.weights, plain.weights, within=1e-3)


@pytest.mark.parametrize("engine", ["plain", "auto"])
def test_the_same_seed_with_dropout_is_the_same_run_bit_for_bit(engine: EngineName) -> None:
    def once(seed: int) -> Run:
        run = Run(student(dropout=0.3), engine)
        run(settings(epochs=3, micro_batch_size=3, seed=seed))
        return run

    first, second, third = once(3), once(3), once(4)
    assert first.losses == second.losses != third.losses
    assert_same_weights(second.weights, first.weights)


def poisoned_at(step: int, value: float, device: torch.device = CPU) -> tuple[Objective, list[str]]:
    """An objective that is not finite for one row of this step of the first epoch, and the ids of all its rows."""
    rows = epoch_order(ROWS, settings().seed, 0)[(step - 1) * 8 : step * 8]
    teacher = teacher_logits()
    teacher[rows[5], 1] = value
    return objective(teacher, device), [f"row {row}" for row in rows]


@pytest.mark.parametrize("engine", ["plain", "auto"])
@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_a_target_that_is_no_number_stops_before_a_weight_moves(
    engine: EngineName, micro_batch_size: int | None
) -> None:
    bad, ids = poisoned_at(3, float("nan"))
    run = Run(student(), engine, keep=frozenset({2}))
    start = run.weights
    with pytest.raises(NonFiniteError, match=r"^step 3: the loss is nan") as raised:
        run(settings(micro_batch_size=micro_batch_size), objective=bad)
    assert f"(rows {', '.join(ids)})" in str(raised.value)
    assert len(run.logged) == 2
    assert_same_weights(run.weights, run.kept[2])
    assert any(not torch.equal(tensor, start[name]) for name, tensor in run.weights.items())


def test_rows_beyond_eight_are_counted_not_named() -> None:
    order = epoch_order(ROWS, settings().seed, 0)
    teacher = teacher_logits()
    teacher[order[0]] = float("nan")
    with pytest.raises(NonFiniteError, match=rf"\(rows row {order[0]}, .* and 4 more\)") as raised:
        Run(student(), "auto")(settings(batch_size=12), objective=objective(teacher))
    assert str(raised.value).count("row ") == 8


def test_a_killed_fused_run_goes_on_to_the_very_same_weights(tmp_path: Path) -> None:
    from llm_neo.checkpoint import CheckpointStore

    chosen = settings(epochs=2, checkpoint_every_steps=4, micro_batch_size=3)
    whole = Run(student(dropout=0.3), "auto")
    whole(chosen)

    def stop_after_6(line: Logged) -> None:
        if line.step == 6:
            raise KeyboardInterrupt

    store = CheckpointStore(tmp_path, {"of": "me"})
    with pytest.raises(KeyboardInterrupt):
        Run(student(dropout=0.3), "auto", after_log=stop_after_6)(chosen, store=store)
    assert store.step() == 4
    resumed = Run(student(dropout=0.3), "auto")
    resumed(chosen, store=store)
    assert resumed.losses == whole.losses[4:]
    assert_same_weights(resumed.weights, whole.weights)


def test_a_rehearsal_comes_after_the_state_is_restored_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does before its first step: a graph that is captured then must read the restored tensors."""
    from llm_neo.checkpoint import CheckpointStore

    chosen, moments = settings(checkpoint_every_steps=4), []
    whole = Run(student(dropout=0.3), "auto")
    whole(chosen)

    def seen(engine: PlainEngine, batch: Batch) -> None:
        slots = [slot for slots in engine.optimizer.state.values() for slot in slots.values()]
        moments.append([slot.data_ptr() for slot in slots])
        rehearse(engine, batch)
        after = [slot.data_ptr() for slots in engine.optimizer.state.values() for slot in slots.values()]
        assert after == moments[-1]

    def stop_after_6(line: Logged) -> None:
        if line.step == 6:
            raise KeyboardInterrupt

    rehearse = PlainEngine.rehearse
    monkeypatch.setattr("llm_neo.train._has_own_memory", lambda device: True)
    monkeypatch.setattr(PlainEngine, "rehearse", seen)
    store = CheckpointStore(tmp_path, {"of": "me"})
    with pytest.raises(KeyboardInterrupt):
        Run(student(dropout=0.3), "auto", after_log=stop_after_6)(chosen, store=store)
    resumed = Run(student(dropout=0.3), "auto")
    resumed(chosen, store=store)
    assert moments[0] == [] and len(moments[1]) > 0
    assert_same_weights(resumed.weights, whole.weights)
