"""A recipe's source spec to records: which reader it means and where its file lies."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from llm_neo.data.columnar import read_parquet
from llm_neo.data.hub import HubId, fetch_hub, hub_id, read_hub
from llm_neo.data.readers import read_csv, read_json, read_json_lines, read_tsv
from llm_neo.data.table import Table, shown
from llm_neo.errors import InputError
from llm_neo.progress import Progress
from llm_neo.recipe.tree import TextSource

Reader = Callable[[Path, str, Sequence[str], tuple[str, ...] | None], Table]

READERS: dict[str, Reader] = {
    ".tsv": read_tsv,
    ".txt": read_tsv,
    ".csv": read_csv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".parquet": read_parquet,
}
PYPI = "pypi:"


def read_source(source: TextSource, wanted: Sequence[str], progress: Progress) -> Table:
    """The `wanted` columns of a source, whatever it is.

    A spec is a hub id only if it has that form, no suffix of a data file, and is no path that exists.

    Raises:
        InputError: the source is out of reach, of an unknown kind, or not as its format wants it.
    """
    spec = source.source
    hub = _hub(source)
    if hub is not None:
        return read_hub(hub, spec, wanted)
    file = _file(spec, progress)
    return READERS[_suffix(spec)](file, _without_checksum(spec), wanted, source.columns)


def fetch_source(source: TextSource, progress: Progress) -> None:
    """Bring a source to this machine; no row of it is read. `progress` hears of a download and of nothing else.

    Raises:
        InputError: the source is out of reach or of an unknown kind.
    """
    hub = _hub(source)
    if hub is not None:
        fetch_hub(hub, source.source, progress)
    else:
        _file(source.source, progress)


def _hub(source: TextSource) -> HubId | None:
    """What the source is on the hub; None for a file."""
    spec = source.source
    hub = hub_id(spec)
    if hub is None or _suffix(spec) in READERS or Path(spec).exists():
        return None
    if source.columns is not None:
        raise InputError(f"{spec} names its columns itself; remove `columns`, which is for TSV and CSV files")
    return hub


def _file(spec: str, progress: Progress) -> Path:
    suffix = _suffix(spec)
    # Of a name that is too long for a path the system does not say that it is no folder; it refuses to look.
    with suppress(OSError):
        if Path(spec).is_dir():
            raise InputError(f"{spec} is a folder; name one file in it ({', '.join(READERS)})")
    if suffix not in READERS:
        raise InputError(_unknown(spec, suffix))
    from llm_neo.assets import resolve_file

    return resolve_file(spec, progress)


def _suffix(spec: str) -> str:
    """The suffix, in lower case, of the file that the spec names; of a package file, the innermost path's."""
    inner = _without_checksum(spec).rpartition("!")[2] if spec.startswith(PYPI) else spec
    return PurePosixPath(inner.replace(os.sep, "/")).suffix.lower()


def _without_checksum(spec: str) -> str:
    return spec.partition("#")[0] if spec.startswith(PYPI) else spec


def _unknown(spec: str, suffix: str) -> str:
    readable = ", ".join(READERS)
    if suffix:
        return f"{shown(spec)}: files ending in {shown(suffix)} are not read; convert it to one of {readable}"
    return (
        f"{shown(spec)} does not say what it is; name a file ending in {readable}, a hub id "
        "owner/name[:config]/split, or pypi:NAME==VERSION/path"
    )
