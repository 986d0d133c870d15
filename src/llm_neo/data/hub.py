"""Data sets of the Hugging Face hub, loaded by the `datasets` library, which runs no code of a data set."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llm_neo.data.columnar import from_arrow
from llm_neo.data.table import Table, positions
from llm_neo.errors import InputError
from llm_neo.progress import Progress

_SPEC = re.compile(r"([\w.-]+/[\w.-]+?)(?::([\w.+-]+))?/(\w+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubId:
    """A split of a hub data set: "owner/name[:config]/split"."""

    name: str
    config: str | None
    split: str


def hub_id(spec: str) -> HubId | None:
    """The parts of "owner/name[:config]/split"; None if the spec has another form."""
    match = _SPEC.fullmatch(spec)
    return HubId(match[1], match[2], match[3]) if match else None


def read_hub(hub: HubId, source: str, wanted: Sequence[str]) -> Table:
    """The `wanted` columns of a hub data set; its rows are numbered from 1.

    Args:
        source: the spec, as errors name it.

    Raises:
        InputError: the data set, its config or split is unknown or out of reach, or a column is missing.
    """
    import datasets

    with _hub_failures(hub, source):
        found = datasets.load_dataset(hub.name, hub.config, split=hub.split)
    positions(wanted, found.column_names, source)
    names = {
        column: tuple(feature.names)
        for column, feature in found.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    return from_arrow(found.select_columns(list(wanted)).with_format("arrow")[:], source, wanted, names)


def fetch_hub(hub: HubId, source: str, progress: Progress) -> None:
    """Put a hub data set into the cache of the `datasets` library, which is shared with other programs.

    Args:
        source: the spec, as errors name it.
        progress: told of a download; not of a data set that is there already.

    Raises:
        InputError: the data set, its config or split is unknown or out of reach.
    """
    import datasets

    with _hub_failures(hub, source):
        builder = datasets.load_dataset_builder(hub.name, hub.config)
        if not Path(builder.cache_dir).is_dir():
            progress.say(f"Downloading the data set {hub.name}")
        builder.download_and_prepare()
        builder.as_dataset(hub.split)


@contextmanager
def _hub_failures(hub: HubId, source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a dozen kinds, of three libraries, depending on what the hub answers
        raise InputError(_failure(hub, source, error)) from error


def _failure(hub: HubId, source: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    reason = reason if len(reason) <= 300 else reason[:300] + "..."
    if isinstance(error, ConnectionError):
        return (
            f"the hub cannot be reached for the data set {hub.name!r} ({reason}); go online, or name a local "
            f"file in place of {source!r}"
        )
    return (
        f"no local file and no hub data set answers to {source!r}: data set {hub.name!r}, config "
        f"{hub.config or 'default'!r}, split {hub.split!r}: {reason}"
    )
