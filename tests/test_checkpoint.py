"""A checkpoint is the newest whole state of its own run; continuing from it is tested in test_train."""

import shutil
from pathlib import Path

import pytest
import torch

from llm_neo.checkpoint import LATEST_FILE, STATE_FILE, TENSORS_FILE, CheckpointStore, TrainingState
from llm_neo.engine import StepFigures
from llm_neo.errors import InputError


def parts() -> tuple[torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: object) -> None:
    model(torch.randn(4, 3)).square().mean().backward()
    optimizer.step()
    scheduler.step()  # type: ignore[attr-defined]
    optimizer.zero_grad()


def test_everything_comes_back_random_numbers_included(tmp_path: Path) -> None:
    store, whole = CheckpointStore(tmp_path / "c", "me"), parts()
    step(*whole)
    state = TrainingState()
    state.add([StepFigures(1.0, 2.0, 3.0, 4.0, 5.0, 6)], 7.0)
    store.save(*whole, state)
    step(*whole)
    expected = [p.clone() for p in whole[0].parameters()]

    again = parts()
    assert store.restore(*again) == state and again[1].param_groups[0]["lr"] == pytest.approx(0.05)
    step(*again)
    assert all(torch.equal(p, q) for p, q in zip(again[0].parameters(), expected, strict=True))


def test_no_checkpoint_means_a_new_run(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c", "me")
    assert store.restore(*parts()) is None and store.newest() is None and store.step() == 0


def test_only_the_newest_is_kept_and_named(tmp_path: Path) -> None:
    store, whole = CheckpointStore(tmp_path, "me"), parts()
    for number in (1, 2, 2, 3):
        step(*whole)
        store.save(*whole, TrainingState(step=number))
    assert sorted(file.name for file in tmp_path.iterdir()) == [LATEST_FILE, "step-00000003"]
    assert store.step() == 3 and {f.suffix for f in (tmp_path / "step-00000003").iterdir()} == {
        ".safetensors",
        ".json",
    }


@pytest.mark.parametrize("name", [TENSORS_FILE, STATE_FILE])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path: Path, name: str, damage: str) -> None:
    store = CheckpointStore(tmp_path, "me")
    file = store.save(*parts(), TrainingState(step=1)) / name
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    else:
        file.unlink()
    with pytest.raises(InputError, match="step-00000001 is damaged"):
        store.restore(*parts())


def test_a_checkpoint_that_is_named_but_gone_is_an_error(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "me")
    shutil.rmtree(store.save(*parts(), TrainingState(step=1)))
    with pytest.raises(InputError, match="is damaged"):
        store.restore(*parts())


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, "me").save(*parts(), TrainingState(step=1))
    with pytest.raises(InputError, match="belongs to another recipe, data or model"):
        CheckpointStore(tmp_path, "you").restore(*parts())


def test_means_are_over_the_steps_since_the_last_reading() -> None:
    state = TrainingState()
    state.add([StepFigures(1.0, 2.0, 3.0, 4.0, 0.2, 10), StepFigures(3.0, 4.0, 5.0, 8.0, 0.1, 20)], 2.5)
    assert state.pop_mean() == StepFigures(2.0, 3.0, 4.0, 6.0, pytest.approx(0.15), 30)  # type: ignore[arg-type]
    state.add([StepFigures(5.0, 6.0, 7.0, 8.0, 0.0, 30)], 3.0)
    assert state.pop_mean().loss == 5.0 and state.pop_training_loss() == 3.0
    assert (state.step, state.tokens, state.seconds) == (3, 60, 3.0)
