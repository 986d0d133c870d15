"""A GGUF file as a folder that transformers loads like any other: converted once, kept in the cache.

transformers reads GGUF files, but slowly (seconds per 100 MB), not together with bitsandbytes, and with gaps
in the tokenizer. The conversion fills those gaps from the file's own metadata (`tokenizer.ggml.*`).
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from logging import ERROR
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_neo.assets.cache import cache_folder, file_sha256, staged_folder
from llm_neo.assets.gguf_tokenizer import (
    TokenizerFacts,
    cure_tokenizer,
    knows_pre_tokenizer,
    read_tokenizer_facts,
)
from llm_neo.assets.seals import changed_in, seal_folder
from llm_neo.errors import InputError
from llm_neo.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONVERTER_VERSION = 2
"""Part of the cache's key: raise it whenever the conversion of the same file gives another folder."""

_MAGIC = b"GGUF"


def convert_gguf(path: Path, progress: Progress | None = None) -> Path:
    """The folder that holds a GGUF file's model and tokenizer in the form that transformers saves.

    The folder has `config.json`, `generation_config.json`, `model.safetensors` (bfloat16) and the tokenizer,
    whose post-processor puts the bos token before each text where the model wants one. It is made once per
    content of the file: a second call only hashes the file.

    Args:
        path: the GGUF file.
        progress: told that a conversion takes place.

    Returns:
        The folder, inside the cache; not to be changed.

    Raises:
        InputError: the file is no GGUF file, is damaged, or holds an architecture that transformers cannot
            read.
        ResourceError: the disk is full.
    """
    progress = progress or SilentProgress()
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
        digest = file_sha256(path)
    except OSError as error:
        raise InputError(f"the GGUF file {path} cannot be read ({error.strerror}); check its name") from error
    if magic != _MAGIC:
        raise InputError(f"{path} is not a GGUF file: it does not begin with the bytes GGUF; name another")
    target = cache_folder() / "models" / f"{digest[:32]}-v{CONVERTER_VERSION}"
    if target.is_dir():
        _require_whole(target)
        return target
    megabytes = path.stat().st_size / 1e6
    progress.say(f"Converting {path.name} ({megabytes:.0f} MB) to safetensors, once; about {15 + megabytes / 8:.0f} s")
    with staged_folder(target) as stage:
        _convert(path, stage, progress)
        seal_folder(stage)
    return target


def _require_whole(folder: Path) -> None:
    changed = changed_in(folder)
    if changed is not None:
        raise InputError(f"{folder / changed}, a converted model's, is damaged; delete {folder} and run again")


def _convert(path: Path, folder: Path, progress: Progress) -> None:
    """Write the model and the tokenizer of `path` into `folder`."""
    facts = read_tokenizer_facts(path)
    try:
        with _quiet():
            tokenizer = _load_tokenizer(path)
            model = _load_model(path)
    except (ValueError, NotImplementedError, KeyError, AttributeError, ImportError) as error:
        raise InputError(
            f"transformers cannot read the GGUF file {path} ({error}); name the model by its hub id or a"
            " folder with safetensors instead"
        ) from error
    cure_tokenizer(tokenizer, facts)
    _cure_model(model, facts)
    if not knows_pre_tokenizer(tokenizer, facts):
        progress.say(
            f"{path.name} splits words by the rule {facts.pre!r}, which is not known here: token ids may"
            " differ from the original model's"
        )
    with _quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    # safetensors writes for the owner alone; a shared cache needs what the other files got.
    mode = (folder / "config.json").stat().st_mode
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


def _load_tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    tokenizer = AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False
    )
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _load_model(path: Path) -> "PreTrainedModel":
    """The dequantised model in bfloat16.

    Raises:
        ValueError: a parameter has no tensor in the file, so that it would stay random.
    """
    import torch
    import transformers

    # Newer versions can keep the blocks packed; only plain tensors can be saved.
    packing = getattr(transformers, "GgufConfig", None)
    extra: dict[str, Any] = {} if packing is None else {"quantization_config": packing(dequantize=True)}
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.bfloat16,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        **extra,
    )
    model, report = loaded
    absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if absent:
        raise ValueError(f"no tensor for {', '.join(absent[:3])}" + (" and others" if len(absent) > 3 else ""))
    assert isinstance(model, transformers.PreTrainedModel)
    return model


def _cure_model(model: Any, facts: TokenizerFacts) -> None:
    """Make the loaded model an ordinary one: nothing of it is quantised, and its token ids are the file's."""
    model.hf_quantizer = None
    model.config._name_or_path = ""
    # The second is the file's title, where other tools expect a hub id.
    for stale in ("quantization_config", "_model_name_or_path"):
        model.config.__dict__.pop(stale, None)
    for holder in (model.config, model.generation_config):
        for name, role in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            setattr(holder, f"{name}_token_id", facts.ids.get(role))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars and notes off the screen; its failures still raise."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
