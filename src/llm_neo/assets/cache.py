"""The folder where downloads and conversions are kept, and how a thing gets into it whole or not at all.

Several processes may share the folder: each writes under a name of its own and renames when it is done, so a
reader sees a complete entry or none.
"""

import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from llm_neo.errors import InputError, ResourceError
from llm_neo.progress import Bar

CHUNK_BYTES = 1 << 20
_STAGING_PREFIX = ".staging-"
# Windows knows no quota.
_EDQUOT = getattr(errno, "EDQUOT", errno.ENOSPC)
_STALE_SECONDS = 24 * 3600.0


def cache_folder() -> Path:
    """Where assets are kept.

    Returns:
        `$LLM_NEO_CACHE` where that is set, else the platform's user cache folder for `llm-neo`; absolute, not
        necessarily there yet.
    """
    configured = os.environ.get("LLM_NEO_CACHE")
    folder = Path(configured).expanduser() if configured else platformdirs.user_cache_path("llm-neo")
    return folder.absolute()


def file_sha256(path: Path, bar: Bar | None = None) -> str:
    """The sha256 of a file's bytes.

    Args:
        path: the file.
        bar: counts the bytes read, where given.

    Returns:
        64 lower-case hexadecimal digits.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            if bar is not None:
                bar.advance(len(chunk))
    return digest.hexdigest()


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """A path to write to that becomes `target` when the block ends well and vanishes when it does not.

    Args:
        target: the file to put in place; an existing one is replaced.

    Raises:
        InputError: the folder cannot be written to.
        ResourceError: the disk is full.
    """
    with _friendly_disk_errors(target):
        stage = _staging_path(target)
        try:
            yield stage
            _sync(stage)
            stage.replace(target)
        finally:
            stage.unlink(missing_ok=True)


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """An empty folder to fill that becomes `target` when the block ends well and vanishes when it does not.

    Where another process has put `target` in place meanwhile, that one stays: both were made from the same
    input.

    Args:
        target: the folder to put in place.

    Raises:
        InputError: the folder cannot be written to.
        ResourceError: the disk is full.
    """
    with _friendly_disk_errors(target):
        stage = _staging_path(target)
        stage.mkdir()
        try:
            yield stage
            for file in stage.rglob("*"):
                if file.is_file():
                    _sync(file)
            try:
                stage.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
        finally:
            shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def _friendly_disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, _EDQUOT):
            raise ResourceError(
                f"the disk that holds {target.parent} is full; free some space, or set LLM_NEO_CACHE to a"
                " folder on another disk"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise InputError(
                f"the cache cannot be written at {target.parent} ({error.strerror}); set LLM_NEO_CACHE to a"
                " folder that you may write to"
            ) from error
        raise


def _staging_path(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target.parent)
    return target.parent / f"{_STAGING_PREFIX}{uuid.uuid4().hex}"


def _remove_stale(folder: Path) -> None:
    """Delete what killed processes left; a day is longer than any download or conversion that still runs."""
    for leftover in folder.glob(f"{_STAGING_PREFIX}*"):
        # Another process may clean up at the same time.
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime < _STALE_SECONDS:
                continue
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


def _sync(file: Path) -> None:
    """Force the bytes to the disk before the rename: a power cut must not leave half a file in place."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
