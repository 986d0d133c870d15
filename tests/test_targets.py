"""Targets come back as they were written, for the rows they were written for, or not at all."""

import random
import shutil
from pathlib import Path

import pytest
import torch

from llm_neo.errors import InputError
from llm_neo.targets import INDEX_FILE, LOGITS_FILE, SHARD_FILE, Targets, TargetStore

LOGITS = (torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0]]))
STORE = TargetStore("k", (("validation:2", "train:1"), ("train:3",)))
TARGETS = Targets(("validation:2", "train:1", "train:3"), torch.cat(LOGITS), False, 3, 99)


def silent(_: str) -> None:
    pass


@pytest.fixture
def folder() -> Path:
    """All shards and the index."""
    for number, logits in enumerate(LOGITS):
        STORE.write(number, logits)
    STORE.finish(TARGETS, {"teacher": "x"})
    return STORE.folder


def test_what_was_never_scored_is_not_there() -> None:
    assert STORE.load() is None and STORE.read(0) is None


def test_targets_come_back_whole(folder: Path) -> None:
    loaded = STORE.load()
    assert loaded is not None and torch.equal(loaded.logits_NC, TARGETS.logits_NC)
    assert (loaded.row_ids, loaded.fresh_head, loaded.layers, loaded.parameters) == (TARGETS.row_ids, False, 3, 99)
    assert sorted(f.name for f in folder.iterdir()) == ["shard-00000", "shard-00001", INDEX_FILE]


def test_without_the_index_they_are_unfinished_but_no_shard_is_lost() -> None:
    STORE.write(0, LOGITS[0])
    assert STORE.load() is None and STORE.read(1) is None
    first = STORE.read(0)
    assert first is not None and torch.equal(first, LOGITS[0])


def test_a_shard_that_was_deleted_is_scored_anew_alone(folder: Path) -> None:
    shutil.rmtree(folder / "shard-00001")
    assert STORE.load() is None and STORE.read(0) is not None and STORE.read(1) is None


def test_rows_are_joined_by_id_in_any_order() -> None:
    assert TARGETS.of(["train:3", "train:1"]).tolist() == [[5.0, 6.0], [3.0, 4.0]]
    with pytest.raises(InputError, match="lack row train:2"):
        TARGETS.of(["train:1", "train:2"])


@pytest.mark.parametrize("name", [LOGITS_FILE, SHARD_FILE])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_shard_is_named_with_the_remedy(folder: Path, name: str, damage: str) -> None:
    file, draw = folder / "shard-00001" / name, random.Random(name)
    whole = file.read_bytes()
    for _ in range(200 if damage == "flipped" else 1):
        place = draw.randrange(len(whole))
        flipped = whole[:place] + bytes([whole[place] ^ draw.randrange(1, 256)]) + whole[place + 1 :]
        file.write_bytes({"flipped": flipped, "cut": whole[:-1], "gone": b""}[damage])
        if damage == "gone":
            file.unlink()
        with pytest.raises(InputError, match=r"shard 2 of 2, .*shard-00001, is damaged; delete that folder and run"):
            STORE.load()


@pytest.mark.parametrize("other", [TargetStore("k", (STORE.shards[0], ("train:4",))), TargetStore("k2", STORE.shards)])
def test_another_ones_shard_is_refused(folder: Path, other: TargetStore) -> None:
    if other.folder != folder:
        shutil.copytree(folder, other.folder)
        (other.folder / INDEX_FILE).unlink()
    with pytest.raises(InputError, match=r"shard-00001, is of other rows; delete that folder"):
        other.read(1)


def test_a_damaged_index_is_named_and_the_shards_are_kept(folder: Path) -> None:
    file, draw = folder / INDEX_FILE, random.Random(0)
    whole = file.read_bytes()
    for _ in range(200):
        place = draw.randrange(len(whole))
        file.write_bytes(whole[:place] + bytes([whole[place] ^ draw.randrange(1, 256)]) + whole[place + 1 :])
        with pytest.raises(InputError, match=r"targets\.json, is damaged; delete that file and run again"):
            STORE.load()
    file.unlink()
    assert STORE.load() is None and STORE.read(1) is not None
