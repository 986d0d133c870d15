"""Files that are there whole or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from llm_neo.errors import InputError, ResourceError
from llm_neo.files import explained, is_temporary, write_json_atomically, write_text_atomically


class Figures(BaseModel):
    name: str
    loss: float | None


def test_a_written_model_is_readable_json(tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    write_json_atomically(target, Figures(name="é", loss=0.5))
    assert json.loads(target.read_text(encoding="utf-8")) == {"name": "é", "loss": 0.5}
    assert target.read_bytes().endswith(b"}\n")
    assert os.listdir(tmp_path) == ["run.json"]


def test_replacing_leaves_the_new_content_only(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text_atomically(target, "old, and longer than the new\n")
    write_text_atomically(target, "new\n")
    assert target.read_bytes() == b"new\n"


def test_the_users_umask_decides_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text_atomically(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    if os.name == "posix":
        assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_a_failure_keeps_the_old_file_and_no_rest(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text_atomically(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(target, "lone surrogate \ud800")
    assert target.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json" / "full").mkdir(parents=True)
    with pytest.raises(InputError, match=r"cannot write .*run\.json: .*; choose another output"):
        write_text_atomically(tmp_path / "run.json", "x")
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file or directory"):
        write_text_atomically(tmp_path / "absent" / "a.txt", "x")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_no_fault_of_the_input() -> None:
    with pytest.raises(ResourceError, match=r"the disk is full: out was not written"), explained(Path("out")):
        Path("/dev/full").write_text("x")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_an_exhausted_quota_is_a_full_disk(number: int) -> None:
    with pytest.raises(ResourceError), explained(Path("out")):
        raise OSError(number, os.strerror(number))


def test_leftovers_are_told_apart() -> None:
    assert is_temporary(".run.json.0f3a.tmp")
    assert not is_temporary(".gitignore")
    assert not is_temporary("mine.tmp")
