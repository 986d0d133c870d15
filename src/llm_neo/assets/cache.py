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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from llm_neo.errors import InputError, ResourceError, is_disk_full
from llm_neo.files import publish_file, publish_folder
from llm_neo.progress import Bar

CHUNK_BYTES = 1 << 20
_STAGING_PREFIX = ".staging-"
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
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
            publish_file(stage, target)
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
            try:
                publish_folder(stage, target)
            except OSError:
                if not target.is_dir():
                    raise
        finally:
            shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def locked(file: Path, doing: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock that one process at a time can have; a dead one has none.

    Args:
        file: is made, and stays.
        doing: what another process does that holds the lock, as the end of a sentence.
        say: is told that this one waits.

    Raises:
        InputError: the folder cannot be written to.
    """
    with _friendly_disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another run {doing}; waiting for it")
            lock.acquire()
        except NotImplementedError:
            say(f"the file system of {file.parent} knows no locks; do not let two runs share it at the same time")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _friendly_disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise ResourceError(
                f"the disk that holds {target.parent} is full; free some space, or set LLM_NEO_CACHE to a"
                " folder on another disk"
            ) from error
        if isinstance(error, OSError) and error.errno in (
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOTDIR,
            errno.EEXIST,
        ):
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
