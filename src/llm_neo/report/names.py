"""What models and data sets are called where others read it: no path of this machine, no checksum."""

import re
from pathlib import Path

from llm_neo.data.hub import HubId, hub_id
from llm_neo.printing import one_line

_HUB_MODEL = re.compile(r"([\w.-]+/[\w.-]+)(?:@[\w./-]+)?", re.ASCII)
_PACKAGE = "pypi:"


def public_name(spec: str) -> str:
    """A model or data source of a recipe by the part of its name that tells it apart.

    Args:
        spec: as the recipe has it.

    Returns:
        A hub id whole, without its revision; a file of a package or of this machine by its own name.
    """
    model = hub_model(spec)
    if model is not None:
        return model
    data = hub_data(spec)
    if data is not None:
        return f"{data.name}{f' ({data.config})' if data.config else ''}, {data.split}"
    inner = spec.partition("#")[0].replace("\\", "/").rstrip("/")
    return one_line(re.split("[/!]", inner)[-1] or spec)


def hub_model(spec: str) -> str | None:
    """`owner/name` of a model on the hub; None where the spec means a package or this machine."""
    match = _HUB_MODEL.fullmatch(spec)
    return match[1] if match and not _is_here(spec) and not spec.lower().endswith(".gguf") else None


def hub_data(spec: str) -> HubId | None:
    """Name, config and split of a data set on the hub; None where the spec means a package or this machine."""
    return None if _is_here(spec) or spec.startswith(_PACKAGE) else hub_id(spec)


def _is_here(spec: str) -> bool:
    return spec.startswith((".", "/", "~")) or Path(spec).exists()
