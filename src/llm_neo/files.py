"""How files of a run are written: whole or not at all, and with one clear sentence where the system refuses."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llm_neo.errors import InputError, ResourceError

if TYPE_CHECKING:
    from pydantic import BaseModel

# Windows knows no quota.
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say in one sentence why `path` could not be written.

    Raises:
        ResourceError: the disk or the user's share of it is full.
        InputError: any other refusal of the system.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceError(f"the disk is full: {path} was not written; free some space and run again") from error
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; choose another output or change what is there"
        ) from error


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
    # A folder cannot be opened on Windows, nor synchronised on some network disks; the file itself is safe.
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json_atomically(path: Path, model: "BaseModel") -> None:
    """Write a pydantic model as indented JSON; see `write_text_atomically`."""
    write_text_atomically(path, model.model_dump_json(indent=2) + "\n")


def is_temporary(name: str) -> bool:
    """Whether a file of this name is what a killed `write_text_atomically` left."""
    return name.startswith(".") and name.endswith(".tmp")
