"""Recipes by shipped name or file, with `extends` and overrides, checked as a whole before anything loads."""

from collections.abc import Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from llm_neo.errors import InputError, RecipeError
from llm_neo.recipe.document import DocumentError, dump, parse, show
from llm_neo.recipe.layers import merge, read_overrides
from llm_neo.recipe.problems import faults
from llm_neo.recipe.tree import Recipe

_SUFFIX = ".yaml"


def recipe_names() -> tuple[str, ...]:
    """The names of the recipes that come with LLM-Neo, in alphabetical order."""
    shipped = (files("llm_neo") / "recipes").iterdir()
    return tuple(sorted(item.name.removesuffix(_SUFFIX) for item in shipped if item.name.endswith(_SUFFIX)))


def recipe_text(name: str) -> str:
    """The YAML of a shipped recipe, comments included.

    Raises:
        InputError: no shipped recipe has this name.
    """
    if name not in recipe_names():
        raise InputError(_not_found(name))
    return (files("llm_neo") / "recipes" / f"{name}{_SUFFIX}").read_text(encoding="utf-8")


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a shipped name or of a YAML file, with overrides laid over it.

    Args:
        name_or_path: a name of `recipe_names()`, else the path of a YAML file.
        overrides: words "a.b.c=value", the value in YAML 1.2; a later one wins.

    Returns:
        the checked recipe.

    Raises:
        RecipeError: what was read breaks rules; all of them are listed.
        InputError: there is no such recipe or it cannot be read.
    """
    document = _document(name_or_path, None, ())
    layer, unreadable = read_overrides(overrides)
    document = merge(document, layer)
    if broken := [*unreadable, *faults(document)]:
        raise RecipeError(name_or_path, broken)
    return Recipe.model_validate(document)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML that loads back equal."""
    return dump(recipe.model_dump())


def _document(name: str, folder: Path | None, above: tuple[str, ...]) -> dict[str, Any]:
    """The plain values of a recipe with those that it extends below them."""
    path = None if name in recipe_names() else _path(name, folder)
    origin = name if path is None else str(path)
    identity = name if path is None else str(path.resolve())
    if identity in above:
        raise RecipeError(above[0], [f"extends: {' -> '.join((*above, identity))} goes in a circle; cut it"])
    try:
        document = parse(recipe_text(name) if path is None else _read(path))
    except DocumentError as error:
        raise RecipeError(origin, [str(error)]) from error
    if document is None:
        raise RecipeError(origin, ["is empty; begin with `extends: quickstart` and the keys to change"])
    if not isinstance(document, dict):
        raise RecipeError(origin, [f"{show(document)} is not a mapping; write keys such as `data:` at its top"])
    base = document.pop("extends", None)
    if base is None:
        return document
    if not isinstance(base, str):
        raise RecipeError(origin, [f"extends: {show(base)} must be one name or file of a recipe, as text"])
    return merge(_document(base, path.parent if path else None, (*above, identity)), document)


def _path(name: str, folder: Path | None) -> Path:
    path = Path(name).expanduser()
    if folder is not None:
        path = folder / path
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a recipe; name the YAML file in it")
    if not path.is_file():
        raise InputError(_not_found(str(path) if folder else name))
    return path


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            str(path), [f"line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8; save it as UTF-8"]
        ) from error
    except OSError as error:
        raise InputError(f"recipe {path} cannot be read: {error.strerror}; check its permissions") from error


def _not_found(name: str) -> str:
    names = recipe_names()
    near = get_close_matches(Path(name).name.removesuffix(_SUFFIX), names, n=1)
    return f"there is no recipe {name}: it is neither a file nor one of the shipped recipes ({', '.join(names)})" + (
        f"; did you mean {near[0]}?" if near else "; name one of them or a YAML file"
    )
