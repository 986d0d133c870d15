"""Targets come back as they were written, for the rows they were written for, or not at all."""

import json
from pathlib import Path

import pytest
import torch

from llm_neo.errors import InputError
from llm_neo.targets import INDEX_FILE, LOGITS_FILE, Targets, load_targets, save_targets, targets_folder

TARGETS = Targets(
    ("train:1", "train:3", "validation:2"), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), False, 3, 99
)


def test_what_was_never_scored_is_not_there() -> None:
    assert load_targets("k") is None


def test_targets_come_back_whole() -> None:
    folder = save_targets(TARGETS, "k", {"teacher": "x"})
    loaded = load_targets("k")
    assert loaded is not None and torch.equal(loaded.logits_NC, TARGETS.logits_NC)
    assert (loaded.row_ids, loaded.fresh_head, loaded.layers, loaded.parameters) == (
        TARGETS.row_ids,
        False,
        3,
        99,
    )
    assert {file.name for file in folder.iterdir()} == {LOGITS_FILE, INDEX_FILE}


def test_rows_are_joined_by_id_in_any_order() -> None:
    assert TARGETS.of(["validation:2", "train:1"]).tolist() == [[5.0, 6.0], [1.0, 2.0]]
    with pytest.raises(InputError, match="lack row train:2"):
        TARGETS.of(["train:1", "train:2"])


def damage_bytes(folder: Path) -> None:
    file = folder / LOGITS_FILE
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def another_key(folder: Path) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    (folder / INDEX_FILE).write_text(json.dumps(index | {"key": "other"}))


@pytest.mark.parametrize(
    "damage",
    [
        damage_bytes,
        another_key,
        lambda folder: (folder / INDEX_FILE).write_text("{"),
        lambda folder: (folder / INDEX_FILE).write_text("[]"),
        lambda folder: (folder / INDEX_FILE).unlink(),
        lambda folder: (folder / LOGITS_FILE).unlink(),
    ],
)
def test_damaged_targets_are_an_error_with_the_remedy(damage: object) -> None:
    folder = save_targets(TARGETS, "k", {})
    damage(folder)  # type: ignore[operator]
    with pytest.raises(InputError, match=f"{targets_folder('k')} are damaged; delete that folder"):
        load_targets("k")
