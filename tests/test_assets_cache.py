"""The cache folder, and that what enters it enters whole or not at all."""

import errno
import os
import threading
import time
from pathlib import Path

import platformdirs
import pytest
from assets_builders import sha256_of

from llm_neo.assets.cache import cache_folder, file_sha256, staged_file, staged_folder
from llm_neo.errors import InputError, ResourceError


def test_the_folder_is_the_variables_else_the_platforms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLM_NEO_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("LLM_NEO_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_NEO_CACHE", "near")
    assert cache_folder() == tmp_path / "near"
    monkeypatch.delenv("LLM_NEO_CACHE")
    assert cache_folder() == platformdirs.user_cache_path("llm-neo")


def test_sha256_of_a_file_longer_than_one_read_counts_its_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(content)
    counted = []

    class Bar:
        def advance(self, amount: int = 1, **figures: float) -> None:
            counted.append(amount)

    assert file_sha256(tmp_path / "f", Bar()) == sha256_of(content)
    assert file_sha256(tmp_path / "f") == sha256_of(content)
    assert counted == [1 << 20, len(content) - (1 << 20)]


def test_a_staged_file_appears_when_done_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "f"
    for content in ("one", "two"):
        with staged_file(target) as stage:
            stage.write_text(content)
            assert stage.parent == target.parent
            assert not target.exists() or target.read_text() == "one"
        assert target.read_text() == content
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path: Path, kind: type[BaseException]) -> None:
    def fail_halfway(half: Path) -> None:
        half.write_text("half")
        raise kind

    with pytest.raises(kind), staged_file(tmp_path / "f") as stage:
        fail_halfway(stage)
    with pytest.raises(kind), staged_folder(tmp_path / "d") as stage:
        fail_halfway(stage / "half")
    assert list(tmp_path.iterdir()) == []


def test_of_two_folders_made_at_once_one_stays_whole(tmp_path: Path) -> None:
    target, both_in = tmp_path / "d", threading.Barrier(2)

    def make(name: str) -> None:
        with staged_folder(target) as stage:
            (stage / "a").write_text(name)
            (stage / "inner").mkdir()
            (stage / "inner" / "b").write_text(name)
            both_in.wait(10)

    threads = [threading.Thread(target=make, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (target / "a").read_text() == (target / "inner" / "b").read_text()
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_process_left_a_day_ago_is_removed(tmp_path: Path) -> None:
    old_folder, old_file, fresh = (tmp_path / f".staging-{name}" for name in ("a", "b", "c"))
    old_folder.mkdir()
    (old_folder / "x").write_text("x")
    old_file.write_text("x")
    fresh.write_text("x")
    for leftover in (old_folder, old_file):
        os.utime(leftover, (time.time() - 90_000,) * 2)
    with staged_file(tmp_path / "f") as stage:
        stage.write_text("x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".staging-c", "f"]


def test_a_full_disk_is_a_resource_error_and_a_closed_folder_an_input_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match="is full; free some space, or set LLM_NEO_CACHE"),
        staged_file(tmp_path / "f"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(InputError, match=r"cannot be written at .* set LLM_NEO_CACHE"),
        staged_folder(tmp_path / "f"),
    ):
        raise OSError(errno.EROFS, "Read-only file system")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"), staged_file(tmp_path / "file" / "f"):
        pass
    with pytest.raises(OSError, match="strange"), staged_file(tmp_path / "f"):
        raise OSError(errno.EIO, "strange")
    with pytest.raises(InputError, match="cannot be written"), staged_folder(tmp_path / "file") as stage:
        # A file stands where the folder should go.
        (stage / "x").write_text("x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
