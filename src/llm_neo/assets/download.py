"""A distribution file of a package from the user's own index, chosen and verified by its sha256.

unearth lists the files and brings credentials (netrc, keyring, those in the address) and certificates; this
module chooses, streams, verifies and says what went wrong.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import httpx2
from packaging.version import Version
from unearth import Link, PackageFinder
from unearth.fetchers import Fetcher, PyPIClient

from llm_neo.assets.cache import CHUNK_BYTES, staged_file
from llm_neo.assets.pip_settings import IndexSettings, open_index_client, read_index_settings
from llm_neo.errors import InputError
from llm_neo.files import require_space
from llm_neo.progress import Progress

_ATTEMPTS = 3
_PAUSE_SECONDS = 0.5
_SHOWN = 5
_LOGGER = logging.getLogger("unearth")


@dataclass
class _Search:
    """What has been learnt while looking, for the message if all places fail.

    Attributes:
        versions: every version listed.
        other_files: files of the right version with another sha256.
        mismatches: downloads whose bytes were not the pinned ones.
        troubles: places that could not be asked or files that could not be fetched, with the reason.
    """

    versions: set[str] = field(default_factory=set)
    other_files: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)


class _MismatchError(Exception):
    """The bytes that came are not the pinned ones; the text is their sha256."""


def download_distribution(
    name: str, version: str, sha256: str, target: Path, progress: Progress, filename: str | None = None
) -> None:
    """Fetch the one file of `name==version` that has this sha256.

    The places are asked in the order find-links, index, further indexes, and the first file that fits is
    taken; a place that cannot be reached is passed over.

    Args:
        name: of the package.
        version: exactly this one.
        sha256: of the file, 64 lower-case hexadecimal digits.
        target: where to put it; appears only when it is whole and verified.
        progress: shown a bar of the bytes.
        filename: what the file is called on an index, where known; only for the message of an error.

    Raises:
        InputError: no place has it; the sentence says why and what to do.
        ResourceError: the disk is full.
    """
    settings = read_index_settings()
    search = _Search()
    with open_index_client(settings) as client, _warnings_of_unearth(search.troubles):
        for finder in _finders(client, settings):
            for link, vouched in _candidates(finder, name, version, sha256, search):
                try:
                    _download(client, link, sha256, target, f"Downloading {name} {version}", progress)
                except _MismatchError as error:
                    if vouched:
                        search.mismatches.append(f"{link.redacted} has the sha256 {error}")
                    else:
                        search.other_files.append(f"{link.redacted} (sha256 {error})")
                except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
                    search.troubles.append(f"{link.redacted}: {_reason(error)}")
                else:
                    return
    raise InputError(_failure(f"{name}=={version}", filename, sha256, settings, search))


def _finders(client: PyPIClient, settings: IndexSettings) -> Iterator[PackageFinder]:
    """One finder a place, so that one place's failure hides no other's files."""
    session = cast(Fetcher, client)
    for place in settings.find_links:
        expanded = str(Path(place).expanduser()) if place.startswith("~") else place
        yield PackageFinder(session, find_links=[expanded], ignore_compatibility=True)
    for url in settings.index_urls:
        yield PackageFinder(session, index_urls=[url], ignore_compatibility=True)


def _candidates(
    finder: PackageFinder, name: str, version: str, sha256: str, search: _Search
) -> list[tuple[Link, bool]]:
    """The files of that version that may be the pinned one, each with whether the place says that it is."""
    place = finder.sources[0]["url"]
    try:
        packages = list(finder.find_all_packages(name, allow_yanked=True))
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, OSError) as error:
        search.troubles.append(f"{_redacted(place)}: {_reason(error)}")
        return []
    vouched: list[tuple[Link, bool]] = []
    unknown: list[tuple[Link, bool]] = []
    for package in packages:
        search.versions.add(str(package.version))
        if Version(str(package.version)) != Version(version):
            continue
        listed = (package.link.hash_option or {}).get("sha256", [None])[0]
        if listed is None:
            unknown.append((package.link, False))
        elif listed.lower() == sha256:
            vouched.append((package.link, True))
        else:
            search.other_files.append(f"{package.link.filename} (sha256 {listed})")
    return vouched + unknown


def _download(client: PyPIClient, link: Link, sha256: str, target: Path, label: str, progress: Progress) -> None:
    """Stream a file to `target`, trying again where the connection breaks."""
    attempt = 1
    while True:
        try:
            return _stream(client, link, sha256, target, label, progress)
        except httpx2.TransportError:
            if attempt == _ATTEMPTS:
                raise
        time.sleep(_PAUSE_SECONDS * attempt)
        attempt += 1


def _stream(client: PyPIClient, link: Link, sha256: str, target: Path, label: str, progress: Progress) -> None:
    digest = hashlib.sha256()
    # The stored bytes are wanted: a server that compresses on the way would change them.
    headers = {"Accept-Encoding": "identity"}
    with client.get_stream(link.normalized, headers=headers) as response, staged_file(target) as stage:
        response.raise_for_status()
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        require_space(stage, total or 0)
        with progress.bar(label, total, "B") as bar, stage.open("wb") as file:
            for chunk in response.iter_raw(CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
                bar.advance(len(chunk))
        if digest.hexdigest() != sha256:
            raise _MismatchError(digest.hexdigest())


@contextmanager
def _warnings_of_unearth(troubles: list[str]) -> Iterator[None]:
    """Collect what unearth only logs, such as an index that answers 401; it is not printed then."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # 404 is how an index says that it does not know the package.
            if "Error(404)" not in record.getMessage():
                troubles.append(record.getMessage())

    collector = Collector(logging.WARNING)
    _LOGGER.addHandler(collector)
    try:
        yield
    finally:
        _LOGGER.removeHandler(collector)


def _failure(package: str, filename: str | None, sha256: str, settings: IndexSettings, search: _Search) -> str:
    """One or two sentences: what stood in the way, and the way out."""
    places = ", ".join(_redacted(place) for place in (*settings.find_links, *settings.index_urls))
    if search.mismatches:
        return (
            f"{package} was refused and nothing of it kept: {'; '.join(search.mismatches)}, but {sha256} is"
            " pinned. The file was damaged or replaced on its way; try again, or set PIP_INDEX_URL to"
            " another index"
        )
    if search.other_files:
        return (
            f"none of the files of {package} has the pinned sha256 {sha256}:"
            f" {', '.join(search.other_files[:_SHOWN])}; correct the pin, or set PIP_INDEX_URL to the index"
            " that it was taken from"
        )
    if search.troubles or not places:
        reasons = "; ".join(dict.fromkeys(search.troubles)) or "pip is set to use no index and no find-links"
        return f"{package} could not be fetched ({reasons}); {_remedy(package, filename, sha256, reasons)}"
    if search.versions:
        newest = sorted(map(Version, search.versions), reverse=True)[:_SHOWN]
        return f"there is no {package} at {places}, only {', '.join(map(str, newest))}; correct the version"
    return f"there is no {package} at {places}; check the name, or set PIP_INDEX_URL to an index that has it"


def _remedy(package: str, filename: str | None, sha256: str, reasons: str) -> str:
    if "Error(401)" in reasons or "Error(403)" in reasons:
        return "put the user and password of the index into ~/.netrc or into the address that pip asks"
    if "not being trusted" in reasons:
        return "use https, or name its host in PIP_TRUSTED_HOST"
    file = filename or f"the file of {package} with the sha256 {sha256}"
    return (
        f"without a network, put {file} into a folder and set PIP_FIND_LINKS to it, or copy the folder"
        " LLM_NEO_CACHE of a machine that has it; behind a mirror, set PIP_INDEX_URL"
    )


def _redacted(place: str) -> str:
    """The place without the password that may stand in its address."""
    return Link(place).redacted if "://" in place else place


def _reason(error: Exception) -> str:
    if isinstance(error, httpx2.HTTPStatusError):
        return f"the server answers {error.response.status_code}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
