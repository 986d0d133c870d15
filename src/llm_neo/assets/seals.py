"""Seals: JSON documents that hold their own sha256, and the sha256 of the files that they vouch for."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llm_neo.assets.cache import file_sha256

SEAL = "sha256"
"""The key of a document's own sha256."""
SUMS_FILE = "SHA256SUMS"
"""In a folder of the cache: the sha256 of every other file in it, as `sha256sum --check` reads it."""


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with its own sha256 at the end.

    Args:
        document: what JSON can write; a seal that it has is replaced.
    """
    content = {key: value for key, value in document.items() if key != SEAL}
    return content | {SEAL: hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def is_sealed(document: object) -> bool:
    """Whether this is a JSON object as `sealed` returned it, in whatever layout it was written."""
    return isinstance(document, dict) and document.get(SEAL) == sealed(document)[SEAL]


def sealed_text(document: Mapping[str, Any]) -> str:
    """The sealed document as one line of JSON."""
    return json.dumps(sealed(document)) + "\n"


def read_sealed(path: Path) -> dict[str, Any] | None:
    """A file that `sealed_text` was written to, or None where a byte of it has changed or it is not there."""
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None
    # The layout too: what still says the same after a change was damaged all the same.
    return document if is_sealed(document) and sealed_text(document) == text else None


def checksums(folder: Path, leave_out: Iterable[str] = ()) -> dict[str, str]:
    """The sha256 of every file in a folder, by its path relative to it, with `/`.

    Args:
        folder: with folders in it, or without.
        leave_out: names of files, at any depth, that are not vouched for.
    """
    skipped = frozenset(leave_out)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name not in skipped)
    return {file.relative_to(folder).as_posix(): file_sha256(file) for file in files}


def changed_file(folder: Path, sums: Mapping[str, str]) -> str | None:
    """The first file that is gone or has another sha256, or None where all are as they were.

    Args:
        folder: what the paths are relative to.
        sums: as `checksums` gives them.
    """
    for name, digest in sums.items():
        try:
            if file_sha256(folder / name) != digest:
                return name
        except OSError:
            return name
    return None


def seal_folder(folder: Path) -> None:
    """Write `SUMS_FILE` into a folder that is otherwise complete."""
    lines = [f"{digest}  {name}\n" for name, digest in checksums(folder, [SUMS_FILE]).items()]
    (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8", newline="\n")


def changed_in(folder: Path) -> str | None:
    """A file of a sealed folder that is not as it was, is gone, or came later; None where the folder is whole."""
    try:
        lines = (folder / SUMS_FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return SUMS_FILE
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    present = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    strange = sorted({SUMS_FILE, *sums} ^ present)
    return strange[0] if strange else changed_file(folder, sums)
