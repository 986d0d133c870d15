"""How one recipe is laid over another: `extends` and the overrides of the command line.

Mappings merge key by key; everything else replaces. Three keys of the base make way for what replaces them
as a whole, so that a user swaps a thing with one key: the other ways to a teacher, the other kind of
validation rows, and the column names of another file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from llm_neo.recipe.document import DocumentError, parse, show
from llm_neo.recipe.rows import validation_kind

_TEACHER_WAYS = frozenset({"fine_tune", "adapter", "prompt"})


def merge(base: Mapping[str, Any], layer: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """`base` with the keys of `layer` laid over it; neither is changed.

    Args:
        base: the recipe below, as plain values.
        layer: the keys that win, as plain values.
        path: the keys that lead to both, from the top of the recipe.

    Returns:
        a new mapping.
    """
    gone = _replaced_keys(base, layer, path)
    merged = {key: value for key, value in base.items() if key not in gone}
    for key, value in layer.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value, (*path, key))
        else:
            merged[key] = value
    return merged


def _replaced_keys(base: Mapping[str, Any], layer: Mapping[str, Any], path: tuple[str, ...]) -> set[str]:
    gone: set[str] = set()
    if path == ("teacher",) and any(layer.get(way) is not None for way in _TEACHER_WAYS):
        gone |= _TEACHER_WAYS - {way for way in _TEACHER_WAYS if layer.get(way) is not None}
    if path == ("data", "validation") and layer.keys() - {"limit"}:
        gone |= set(base) if validation_kind(dict(base)) != validation_kind(dict(layer)) else set()
    if path[:1] == ("data",) and layer.get("source", base.get("source")) != base.get("source"):
        gone.add("columns")
    return gone


def read_overrides(overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The layer that the words "a.b.c=value" make together; a later word wins over an earlier one.

    Args:
        overrides: dotted key, equals sign and a value in YAML 1.2, such as `train.epochs=2`.

    Returns:
        the layer, and one sentence for each word that is none.
    """
    layer: dict[str, Any] = {}
    problems: list[str] = []
    for word in overrides:
        dotted, equals, text = word.partition("=")
        keys = dotted.strip().split(".")
        try:
            if not equals or not all(keys) or any(key != key.strip() for key in keys):
                raise DocumentError("it must be a dotted key, an equals sign and a value, such as train.epochs=2")
            if not text.strip():
                raise DocumentError(f"it has no value; write {dotted}=null to switch it off")
            _set(layer, keys, parse(text))
        except DocumentError as error:
            problems.append(f"{dotted.strip() or '(no key)'}: the override {show(word)} cannot be read: {error}")
    return layer, problems


def _set(layer: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        if not isinstance(layer.get(key), dict):
            layer[key] = {}
        layer = layer[key]
    layer[keys[-1]] = value
