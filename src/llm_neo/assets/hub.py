"""A model of the Hugging Face hub, in the hub's own cache: configuration, tokenizer and safetensors only.

Pickled weights and Python files are never fetched: loading either would run code of the repository.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path
from typing import Any

from llm_neo.errors import InputError, ResourceError
from llm_neo.files import require_space
from llm_neo.interrupts import raise_if_arrived
from llm_neo.progress import Bar, Progress

MODEL_FILE_PATTERNS = ("*.json", "*.safetensors", "*.model", "merges.txt", "vocab.*", "*.jinja")
"""The files of a model folder that matter, at its top level."""

_SELECTION: dict[str, Any] = {
    "allow_patterns": list(MODEL_FILE_PATTERNS),
    # fnmatch lets * cross folders; `consolidated` is a second copy of the weights in another layout.
    "ignore_patterns": ["*/*", "consolidated*.safetensors"],
}
_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch_hub_model(repository: str, revision: str | None, progress: Progress) -> tuple[Path, str]:
    """The folder of a hub model at one commit.

    Args:
        repository: `owner/name`.
        revision: a branch, a tag or a commit; None for the main branch.
        progress: shown a bar of the bytes where something has to be fetched.

    Returns:
        The folder, inside the hub's cache (`HF_HOME`), and the commit.

    Raises:
        InputError: the repository or revision is not there, is gated, holds no safetensors, or the hub cannot
            be reached and nothing is cached.
        ResourceError: the disk has no room for it.
    """
    from huggingface_hub import constants

    with _hub_errors(repository, revision):
        if revision is not None and _COMMIT.fullmatch(revision):
            # A commit never changes: what is cached whole needs no question to the hub.
            cached = _cached(repository, revision)
            if cached is not None:
                return cached, cached.name
        total = _bytes_to_fetch(repository, revision)
        if total:
            require_space(Path(constants.HF_HUB_CACHE) / repository, total)
            with progress.bar(f"Downloading {repository}", total, "B") as bar:
                folder = _snapshot(repository, revision, _bar_class(bar))
        else:
            folder = _snapshot(repository, revision, _bar_class(None))
    return folder, folder.name


def _snapshot(repository: str, revision: str | None, bar_class: type[Any], **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            repository,
            revision=revision,
            tqdm_class=bar_class,
            **_SELECTION,
            **options,
        )
    )


def _cached(repository: str, commit: str) -> Path | None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _snapshot(repository, commit, _bar_class(None), local_files_only=True)
    except LocalEntryNotFoundError:
        return None


def _bytes_to_fetch(repository: str, revision: str | None) -> int | None:
    """How much is not cached yet; None where the hub cannot be asked.

    Raises:
        InputError: the repository holds no safetensors; said before anything is fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    try:
        files = snapshot_download(
            repository, revision=revision, tqdm_class=_bar_class(None), dry_run=True, **_SELECTION
        )
    except DryRunError:
        return None
    if not any(file.filename.endswith(".safetensors") for file in files):
        raise InputError(
            f"the hub model {repository} holds no safetensors, and pickled weights are not loaded because"
            " they can run code; choose a revision or a model with safetensors"
        )
    return sum(file.file_size or 0 for file in files if file.will_download)


def _bar_class(bar: Bar | None) -> type[Any]:
    """A tqdm that draws nothing and passes the bytes on to `bar`."""
    from huggingface_hub.utils.tqdm import tqdm

    class Forwarding(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            # The hub counts the bytes twice: as they come, and as they are written.
            self._counts = options.get("unit") == "B" and not str(options.get("desc")).startswith("Downloading bytes")
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            # Called by the threads that download: the main one, which the signal reached, waits for them.
            raise_if_arrived()
            if bar is not None and self._counts:
                bar.advance(int(n or 0))
            super().update(n)

    return Forwarding


@contextmanager
def _hub_errors(repository: str, revision: str | None) -> Iterator[None]:
    """Say in one sentence what the hub's exceptions mean."""
    import httpx2
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    # What the hub only logs on its way to an exception is said by the exception's sentence.
    logging.set_verbosity(ERROR)
    try:
        yield
    except (httpx2.HTTPError, HFValidationError, OSError) as error:
        where = repository if revision is None else f"{repository}@{revision}"
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise ResourceError(
                f"the disk is full while fetching {where}; free some space, or set HF_HOME to a folder on another disk"
            ) from error
        raise InputError(_sentence(error, repository, where)) from error
    finally:
        logging.set_verbosity(verbosity)


def _sentence(error: Exception, repository: str, where: str) -> str:
    from huggingface_hub import errors

    # A gated repository is reported as a kind of one that is not found.
    if isinstance(error, errors.GatedRepoError):
        return (
            f"the hub model {where} is gated: accept its licence on the model's page and set HF_TOKEN to a"
            " token of that account"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{repository} is neither a local folder nor a model on the hub (or it is private: set"
            " HF_TOKEN); check the name"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub model {where} is not there, though {repository} is; name a branch, tag or commit"
    if isinstance(error, errors.HFValidationError):
        return f"{where} is no hub id such as owner/name or owner/name@revision ({_first_line(error)})"
    return (
        f"{where} is no local folder, and the hub could not be reached for it ({_first_line(error)});"
        " check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or name a local folder with the model"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].removeprefix("Got: ").rstrip(":")
