"""How files of a run are written: whole or not at all, and with one clear sentence where the system refuses."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llm_neo.errors import InputError, ResourceError, is_disk_full

if TYPE_CHECKING:
    from pydantic import BaseModel

_SPARE_BYTES = 1 << 20


@contextmanager
def explained(path: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Say in one sentence why `path` could not be written.

    Args:
        path: what is being written.
        needed_bytes: its size, where it is known.

    Raises:
        ResourceError: the disk or the user's share of it is full.
        InputError: any other refusal of the system.
    """
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            size = "" if needed_bytes is None else f", which needs {mebibytes(needed_bytes)}"
            raise ResourceError(
                f"the disk is full: {path}{size} was not written; free some space and run again"
            ) from error
        if isinstance(error, OSError):
            raise InputError(
                f"cannot write {path}: {error.strerror or error}; choose another output or change what is there"
            ) from error
        raise


def require_space(path: Path, needed_bytes: int) -> None:
    """Refuse to begin a file or folder that the disk has no room for, so that nothing half written is left.

    Args:
        path: what is to be written; a folder above it exists.
        needed_bytes: its size.

    Raises:
        ResourceError: the disk has less.
    """
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + _SPARE_BYTES:
        raise ResourceError(
            f"{path} needs {mebibytes(needed_bytes)} and the disk has {mebibytes(free)} left; free some space and "
            "run again"
        )


def mebibytes(count: int) -> str:
    """A size for people, such as `12.3 MiB`."""
    return f"{count / 2**20:,.1f} MiB"


def write_text_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 file that is there whole or not at all, also after a power cut.

    Raises:
        InputError: the folder cannot be written.
        ResourceError: the disk is full.
    """
    with explained(path):
        stage = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
        try:
            with stage.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            stage.replace(path)
        finally:
            # After the replacement there is nothing left to remove.
            with suppress(OSError):
                stage.unlink()
    sync_folder(path.parent)


def write_json_atomically(path: Path, model: "BaseModel") -> None:
    """Write a pydantic model as indented JSON; see `write_text_atomically`."""
    write_text_atomically(path, model.model_dump_json(indent=2) + "\n")


def is_temporary(name: str) -> bool:
    """Whether a file of this name is what a killed `write_text_atomically` left."""
    return name.startswith(".") and name.endswith(".tmp")


def publish_file(stage: Path, target: Path) -> None:
    """Put a written file in place of `target`: its bytes reach the disk before its name does."""
    sync_file(stage)
    stage.replace(target)
    sync_folder(target.parent)


def publish_folder(stage: Path, target: Path) -> None:
    """Give a filled folder its name: its files and folders reach the disk before that, the name at the end.

    Raises:
        OSError: `target` is there already and not empty.
    """
    for folder, _, names in os.walk(stage, topdown=False):
        for name in names:
            sync_file(Path(folder, name))
        sync_folder(Path(folder))
    stage.rename(target)
    sync_folder(target.parent)


@contextmanager
def filled_folder(target: Path, needed_bytes: int | None = None) -> Iterator[Path]:
    """A folder to fill that becomes `target` when the block ends well and vanishes when it does not.

    Args:
        target: is not there, or empty; its parents are made.
        needed_bytes: what will be written, where it is known.

    Raises:
        InputError: the folder cannot be written.
        ResourceError: the disk is full.
    """
    with explained(target, needed_bytes):
        target.parent.mkdir(parents=True, exist_ok=True)
        if needed_bytes is not None:
            require_space(target, needed_bytes)
        stage = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
        stage.mkdir()
        try:
            yield stage
            if target.is_dir():
                target.rmdir()
            publish_folder(stage, target)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def sync_file(file: Path) -> None:
    """Force the bytes to the disk: after a rename a power cut must not leave half a file in place."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def sync_folder(folder: Path) -> None:
    """Force a folder's names to the disk."""
    # A folder cannot be opened on Windows, nor synchronised on some network disks; the files themselves are safe.
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
