"""Rows are scored shard by shard: what is there is not scored again, and the shards are of neighbours."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from tiny import toy_sentences

from llm_neo.assets.cache import locked
from llm_neo.batching import TokenRows, encode
from llm_neo.data import Row
from llm_neo.errors import ResourceError
from llm_neo.evaluate import classifier_forward, score_rows, select_rows
from llm_neo.models.load import Placement, load_classifier
from llm_neo.progress import SilentProgress
from llm_neo.scoring import score_shards, shards_of
from llm_neo.targets import TargetStore
from llm_neo.teacher import ClassifierTeacher, TeacherBase

CPU = torch.device("cpu")


def rows(count: int) -> list[Row]:
    return [Row(f"train:{n}", (text,), None) for n, (text, _) in enumerate(toy_sentences(count, seed=4))]


@pytest.fixture(scope="module")
def teacher(llama: Path) -> ClassifierTeacher:
    base = TeacherBase(llama, "tiny", "f", Placement(CPU, torch.float32), ("a", "b", "c"), 32, 0)
    loaded = load_classifier(llama, "tiny", ["a", "b", "c"], base.where, max_length_tokens=32, seed=0)
    return ClassifierTeacher(loaded, loaded.model, [0, 1, 2], base, fresh_head=True)


class Watched:
    """A teacher that counts the rows it is asked for, and fails at some time."""

    def __init__(self, teacher: ClassifierTeacher, fails_at: int = -1) -> None:
        self.teacher, self.fails_at = teacher, fails_at
        self.asked: list[int] = []

    def score(self, ids, texts, progress):  # type: ignore[no-untyped-def]
        if len(self.asked) == self.fails_at:
            raise KeyboardInterrupt
        self.asked.append(len(ids))
        return self.teacher.score(ids, texts, progress)


class Counted(SilentProgress):
    """A progress that sums what its bars were told."""

    def __init__(self) -> None:
        self.done, self.tokens, self.said = 0, 0.0, []

    def say(self, message: str) -> None:
        self.said.append(message)

    def bar(self, label: str, total: int | None, unit: str):  # type: ignore[no-untyped-def]
        counted = self

        class Bar:
            def __enter__(self) -> "Bar":
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def advance(self, amount: int = 1, **figures: float) -> None:
                counted.done += amount
                counted.tokens += figures.get("tokens", 0)

        return Bar()


def test_shards_hold_every_row_once_and_what_begins_alike_together() -> None:
    found = shards_of(rows(50), 16)
    assert [len(shard) for shard in found] == [16, 16, 16, 2]
    assert sorted(row.id for shard in found for row in shard) == sorted(row.id for row in rows(50))
    assert shards_of([], 16) == []
    assert [row.text for shard in found for row in shard] == sorted(row.text for row in rows(50))


def test_an_interrupted_scoring_goes_on_after_the_last_whole_shard_to_the_same_bits(teacher: ClassifierTeacher) -> None:
    shards = dict(enumerate(shards_of(rows(90), 20)))
    ids = tuple(tuple(row.id for row in shard) for shard in shards.values())
    whole, undisturbed = Counted(), TargetStore("one", ids)
    expected = score_shards(teacher, shards, undisturbed, whole)
    assert whole.done == 90 and whole.tokens > 0 and whole.said == []

    store, first, second, told = TargetStore("two", ids), Watched(teacher, fails_at=2), Watched(teacher), Counted()
    with pytest.raises(KeyboardInterrupt):
        score_shards(first, shards, store, told)  # type: ignore[arg-type]
    answers = score_shards(second, shards, store, told)  # type: ignore[arg-type]
    assert first.asked == [20, 20] and second.asked == [20, 20, 10]
    assert told.said == ["teacher targets: 2 of 5 shards are scored already"]
    assert list(answers) == list(expected) and all(torch.equal(answers[row], expected[row]) for row in expected)
    for shard in shards:
        one, two = undisturbed.folder / f"shard-{shard:05d}", store.folder / f"shard-{shard:05d}"
        assert (one / "logits.safetensors").read_bytes() == (two / "logits.safetensors").read_bytes()


def test_a_sharded_scoring_equals_one_of_all_rows(teacher: ClassifierTeacher) -> None:
    every = rows(90)
    shards = dict(enumerate(shards_of(every, 20)))
    store = TargetStore("k", tuple(tuple(row.id for row in shard) for shard in shards.values()))
    answers = score_shards(teacher, shards, store, SilentProgress())
    at_once = teacher.score([row.id for row in every], [row.text for row in every], SilentProgress())
    assert torch.allclose(torch.stack([answers[row.id] for row in every]), at_once, atol=1e-5)


def _hold(file: Path, held: Path) -> None:
    with locked(file, "x", lambda _: None):
        held.touch()
        time.sleep(60)


def test_a_lock_is_waited_for_and_a_killed_process_has_none(tmp_path: Path) -> None:
    file, held, said = tmp_path / "k.lock", tmp_path / "held", []
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(file, held))
    process.start()
    while not held.exists():
        time.sleep(0.01)

    def killed(message: str) -> None:
        said.append(message)
        os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]

    with locked(file, "scores the same rows", killed):
        assert said == ["another run scores the same rows; waiting for it"]
    process.join()
    with locked(file, "scores the same rows", killed):
        assert len(said) == 1


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_a_failing_allocation_halves_the_batch_and_changes_no_answer(teacher: ClassifierTeacher, kind: str) -> None:
    """What PyTorch raises on a GPU and what its CPU allocator raises."""
    texts = [row.text for row in rows(40)]
    tokens = encode(teacher.loaded.tokenizer, [str(n) for n in range(40)], texts, 32)
    forward, largest = classifier_forward(teacher.model), 0

    def small(batch):  # type: ignore[no-untyped-def]
        nonlocal largest
        if batch.tokens > 60:
            message = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            raise torch.OutOfMemoryError("CUDA out of memory") if kind == "cuda" else RuntimeError(message)
        largest = max(largest, batch.tokens)
        return forward(batch)

    expected = score_rows(forward, tokens, CPU, prefix_tree=False)
    assert torch.allclose(score_rows(small, tokens, CPU), expected, atol=1e-5) and 20 < largest <= 60
    one: TokenRows = select_rows(tokens, tokens.lengths.argsort()[-1:])

    def none(batch):  # type: ignore[no-untyped-def]
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ResourceError, match="not even one text"):
        score_rows(none, one, CPU, max_tokens=1)
