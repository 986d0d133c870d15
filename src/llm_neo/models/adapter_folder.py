"""What a saved adapter says of itself: read before peft does, so that no file makes it import a module."""

import json
from pathlib import Path

from llm_neo.errors import InputError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

_IMPORTING = "megatron_config"
"""With it peft imports the module that `megatron_core` names."""


def read_adapter_config(folder: Path) -> dict[str, object]:
    """The saved adapter's own description.

    Raises:
        InputError: `folder` holds no adapter in safetensors, or one that asks peft to import code by name.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(f"{folder} holds no {name}; give a folder that peft's save_pretrained wrote")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / CONFIG_FILE} is no valid JSON ({error}); save the adapter again") from error
    if not isinstance(config, dict):
        raise InputError(f"{folder / CONFIG_FILE} is no JSON object; save the adapter again")
    if config.get(_IMPORTING) is not None:
        raise InputError(
            f"{folder / CONFIG_FILE} has {_IMPORTING}, by which peft imports a module that the file names; that runs "
            "code, so save the adapter without it"
        )
    return config


def doubt_of_base(folder: Path, spec: str, base: Path) -> tuple[str, ...]:
    """What to say of an adapter that names another base than the one it is put on; nothing where it names this one.

    Weights of the same shapes take any adapter, so that nothing but the name can tell. A copy under another name is
    as good, which is why this is said and not refused.

    Args:
        folder: what peft wrote.
        spec: what the recipe calls the base.
        base: the base's folder.
    """
    named = read_adapter_config(folder).get("base_model_name_or_path")
    if not isinstance(named, str) or not named or named == spec.partition("@")[0]:
        return ()
    if any(place.exists() and place.samefile(base) for place in (folder / named, Path(named).expanduser())):
        return ()
    return (
        f"the adapter {folder.name} was trained on {named!r:.120}, but is put on {spec!r:.120}; if these are not the "
        "same weights, its answers are wrong: name that base as the model",
    )
