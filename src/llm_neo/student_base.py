"""Which pretrained base a saved student stands on, and whether it still is the one of the run."""

from pathlib import Path

from llm_neo.assets import resolve_model
from llm_neo.errors import InputError
from llm_neo.models.adapter_folder import read_adapter_config
from llm_neo.recipe import Recipe

BASE_FOLDER = "base"
"""Where in the student's folder its own base is, if it has one."""


def base_of(folder: Path, recipe: Recipe, pinned: str | None) -> tuple[Path, str]:
    """The folder of the student's base and what to call it.

    Args:
        pinned: the fingerprint of the base in the run; None = the run is older than that figure.

    Raises:
        InputError: the base is gone, or no longer what the adapter was trained on.
    """
    if recipe.student.lora is None:
        return folder, str(folder)
    config = read_adapter_config(folder)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if name == BASE_FOLDER:
        return folder / BASE_FOLDER, str(folder / BASE_FOLDER)
    # The commit that the adapter was trained on, whatever the branch has become since.
    spec = f"{name}@{revision}" if revision else str(name)
    source = resolve_model(spec)
    if pinned is not None and source.fingerprint != pinned:
        raise InputError(
            f"the base {spec} is no longer the one that this student was trained on: its files have changed since; "
            "put them back, or distil again"
        )
    return source.folder, spec
