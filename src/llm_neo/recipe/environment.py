"""What a recipe asks of this machine, as far as it can be told without importing torch."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from llm_neo.errors import RecipeError
from llm_neo.recipe.tree import Recipe, TextSource

_DATA_SUFFIXES = (".tsv", ".txt", ".csv", ".jsonl", ".ndjson", ".json", ".parquet")
_MODEL_SUFFIXES = (".gguf",)


def check_environment(recipe: Recipe, origin: str | None = None) -> None:
    """Refuse a recipe that cannot run here: missing packages, files or parts of this version.

    Args:
        recipe: a valid recipe.
        origin: the name or file that it came from; None names its output.

    Raises:
        RecipeError: everything that is missing, listed.
    """
    if problems := [*_missing_packages(recipe), *_missing_files(recipe)]:
        raise RecipeError(origin or f"for {recipe.output}", problems)


def _missing_packages(recipe: Recipe) -> Iterator[str]:
    quantization = recipe.teacher.quantization
    if quantization != "none" and find_spec("bitsandbytes") is None:
        yield (
            f"teacher.quantization: {quantization} needs bitsandbytes, which is not installed here; "
            "pip install bitsandbytes, or choose teacher.quantization=none"
        )
    if "tensorboard" in recipe.trackers and find_spec("tensorboard") is None:
        yield (
            "trackers: tensorboard is not installed here; pip install 'llm-neo[tensorboard]', or take it off the list"
        )


def _missing_files(recipe: Recipe) -> Iterator[str]:
    models = {
        "teacher.model": recipe.teacher.model,
        "teacher.adapter": recipe.teacher.adapter or "",
        "student.model": recipe.student.model,
    }
    for key, name in models.items():
        if _is_missing(name, _MODEL_SUFFIXES):
            yield f"{key}: {name} does not exist here; correct the path (it is relative to {Path.cwd()})"
    for key in ("train", "validation", "unlabelled"):
        rows = getattr(recipe.data, key)
        if isinstance(rows, TextSource) and _is_missing(rows.source, _DATA_SUFFIXES):
            yield (
                f"data.{key}.source: {rows.source} does not exist here; correct the path "
                f"(it is relative to {Path.cwd()})"
            )


def _is_missing(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether `name` looks like a path of this machine, rather than a hub id, and nothing is there."""
    if name.startswith("pypi:"):
        return False
    path_like = name.startswith((".", "/", "~")) or name.lower().endswith(suffixes)
    return path_like and not Path(name).expanduser().exists()
