"""A checkpoint is the newest whole state of its own run; continuing from it is tested in test_train."""

import random
import shutil
from pathlib import Path

import pytest
import torch

from llm_neo import files
from llm_neo.checkpoint import LATEST_FILE, STATE_FILE, TENSORS_FILE, CheckpointStore
from llm_neo.engine import StepFigures
from llm_neo.errors import InputError, ResourceError
from llm_neo.train_state import TrainingState

ME = {"train": {"learning_rate": 0.1, "lora": {"targets": ("q", "v")}}, "rows": "abc"}


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


def stepped(number: int) -> TrainingState:
    return TrainingState(step=number)


def silent(_: str) -> None:
    pass


def test_everything_comes_back_random_numbers_included(tmp_path: Path) -> None:
    store, whole = CheckpointStore(tmp_path / "c", ME), parts()
    step(*whole)
    state = TrainingState()
    state.add([StepFigures(1.0, 2.0, 3.0, 4.0, 5.0, 6)], 7.0)
    state.log()
    state.evaluated({"accuracy": 0.5})
    store.save(*whole, state)
    step(*whole)
    expected = [p.clone() for p in whole[0].parameters()]

    again = parts()
    assert store.restore(*again, silent) == state and again[1].param_groups[0]["lr"] == pytest.approx(0.05)
    assert state.logged[0].figures.loss == 1.0 and state.evaluated_step == 1
    step(*again)
    assert all(torch.equal(p, q) for p, q in zip(again[0].parameters(), expected, strict=True))


def test_no_checkpoint_means_a_new_run(tmp_path: Path) -> None:
    said: list[str] = []
    store = CheckpointStore(tmp_path / "c", ME)
    store.refuse_changes()
    assert store.restore(*parts(), said.append) is None and store.step() == 0 and said == []


def test_the_last_two_are_kept_and_the_newest_is_named(tmp_path: Path) -> None:
    store, whole = CheckpointStore(tmp_path, ME), parts()
    (tmp_path / ".step-00000001.0f.tmp").mkdir()
    for number in (1, 2, 2, 3):
        step(*whole)
        store.save(*whole, stepped(number))
    assert sorted(file.name for file in tmp_path.iterdir()) == [LATEST_FILE, "step-00000002", "step-00000003"]
    assert store.step() == 3 and (tmp_path / LATEST_FILE).read_text() == "step-00000003"
    assert {f.suffix for f in (tmp_path / "step-00000003").iterdir()} == {".safetensors", ".json"}


def test_the_name_is_given_after_the_bytes_and_before_anything_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a file system that loses unsynchronised writes would need: the order of the calls, as they were made."""
    store, whole = CheckpointStore(tmp_path, ME), parts()
    for number in (1, 2):
        store.save(*whole, stepped(number))
    calls: list[tuple[str, str]] = []

    def noted(kind: str, where: object, name: str) -> None:
        act = getattr(where, name)

        def call(path: Path, *more: object, **options: object) -> object:
            shown = Path(path).name
            calls.append((kind, shown if not shown.startswith(".") else shown.split(".")[1] + " staged"))
            return act(path, *more, **options)

        monkeypatch.setattr(where, name, call)

    noted("sync", files, "sync_file")
    noted("sync folder", files, "sync_folder")
    noted("rename", Path, "rename")
    noted("replace", Path, "replace")
    noted("delete", shutil, "rmtree")
    store.save(*whole, stepped(3))
    done = [call for call in calls if call != ("delete", "step-00000003 staged")]
    top = tmp_path.name
    assert sorted(done[1:3]) == [("sync", STATE_FILE), ("sync", TENSORS_FILE)]
    assert [done[0], *done[3:]] == [
        ("delete", "step-00000003"),  # what was not there
        ("sync folder", "step-00000003 staged"),
        ("rename", "step-00000003 staged"),
        ("sync folder", top),
        ("replace", "LATEST staged"),
        ("sync folder", top),
        ("delete", "step-00000001"),
    ]


@pytest.mark.parametrize("name", [TENSORS_FILE, STATE_FILE])
@pytest.mark.parametrize("damage", ["cut", "gone", "flipped"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, name: str, damage: str) -> None:
    store, draw = CheckpointStore(tmp_path, ME), random.Random(name)
    store.save(*parts(), stepped(1))
    file = store.save(*parts(), stepped(2)) / name
    whole = file.read_bytes()
    for _ in range(200 if damage == "flipped" else 1):
        said: list[str] = []
        if damage == "cut":
            file.write_bytes(whole[:-3])
        elif damage == "gone":
            file.unlink()
        else:
            place = draw.randrange(len(whole))
            flipped = bytes([whole[place] ^ draw.randrange(1, 256)])
            file.write_bytes(whole[:place] + flipped + whole[place + 1 :])
        state = store.restore(*parts(), said.append)
        assert state is not None and state.step == 1
        assert [text for text in said if "step-00000002 is damaged and passed over" in text] == said != []
    store.save(*parts(), stepped(2))
    assert store.step() == 2


def test_without_a_whole_checkpoint_the_training_begins_anew_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    store = CheckpointStore(tmp_path, ME)
    (store.save(*parts(), stepped(1)) / STATE_FILE).write_text("{}")
    assert store.restore(*parts(), said.append) is None
    assert said[-1] == "no checkpoint is whole; the training begins anew"
    shutil.rmtree(tmp_path / "step-00000001")
    said.clear()
    assert store.restore(*parts(), said.append) is None and "'step-00000001', which is not there" in said[0]


def test_another_runs_checkpoint_is_refused_field_by_field(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, ME).save(*parts(), stepped(1))
    other = {"train": {"learning_rate": 0.2, "lora": {"targets": ["q", "v"]}, "seed": 1}}
    with pytest.raises(InputError) as refused:
        CheckpointStore(tmp_path, other).restore(*parts(), silent)
    assert str(refused.value).splitlines()[1:-1] == [
        "  train.learning_rate: was 0.1, is 0.2",
        "  rows: was abc, is nothing",
        "  train.seed: was nothing, is 1",
    ]
    CheckpointStore(tmp_path, {"train": {"lora": ME["train"]["lora"]}}).refuse_changes()  # type: ignore[index]
    with pytest.raises(InputError, match=r"train\.learning_rate: was 0\.1, is 0\.2"):
        CheckpointStore(tmp_path, {"train": {"learning_rate": 0.2}}).refuse_changes()


def test_other_software_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    store = CheckpointStore(tmp_path, ME)
    store.save(*parts(), stepped(1))
    monkeypatch.setattr("llm_neo.checkpoint._versions", lambda: {"torch": "9.9"})
    store.restore(*parts(), said.append)
    assert "torch: was 2." in said[0] and "is 9.9" in said[0]


def test_a_disk_without_room_is_refused_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, ME)
    store.save(*parts(), stepped(1))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage())
    with pytest.raises(ResourceError, match=r"step-00000002 needs 1\.0 MiB and the disk has 0\.5 MiB left"):
        store.save(*parts(), stepped(2))
    assert store.step() == 1 and sorted(f.name for f in tmp_path.iterdir()) == [LATEST_FILE, "step-00000001"]


class _Usage:
    free = 1 << 19


def test_means_are_over_the_steps_since_the_last_reading() -> None:
    state = TrainingState()
    state.add([StepFigures(1.0, 2.0, 3.0, 4.0, 0.2, 10), StepFigures(3.0, 4.0, 5.0, 8.0, 0.1, 20)], 2.5)
    logged = state.log()
    assert (logged.step, logged.seconds) == (2, 2.5)
    assert logged.figures == StepFigures(2.0, 3.0, 4.0, 6.0, pytest.approx(0.15), 30)  # type: ignore[arg-type]
    assert state.training_loss == 2.0
    state.evaluated({})
    state.add([StepFigures(5.0, 6.0, 7.0, 8.0, 0.0, 30)], 3.0)
    assert state.log().figures.loss == 5.0 and state.training_loss == 5.0 and len(state.logged) == 2
    assert (state.step, state.tokens, state.seconds) == (3, 60, 3.0)
    assert TrainingState.of(state.document()) == state
