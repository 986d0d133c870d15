"""YAML 1.2 text to plain values and back: mappings are dicts, sequences tuples, scalars by the core schema.

Values are read off the node tree, so that every refusal knows its line and column, and so that words which
only YAML 1.1 or a later extension gives a meaning (yes, 2024-01-01, =) stay words.
"""

import json
from collections.abc import Mapping
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StringMark, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter

_CORE = "tag:yaml.org,2002:"
_MAX_DEPTH = 20
_MAX_NODES = 10_000
_YAML_1_1_WORDS = frozenset({"y", "n", "yes", "no", "on", "off"})


class DocumentError(ValueError):
    """Text that is not the YAML which a recipe may hold; says where and why."""

    def __init__(self, why: str, mark: StringMark | None = None) -> None:
        self.why = why
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        super().__init__(where + why)


def parse(text: str) -> Any:
    """The value of one YAML document.

    Args:
        text: the document; empty text is null.

    Returns:
        dict (string keys), tuple, str, int, float, bool or None, nested.

    Raises:
        DocumentError: a syntax error, a duplicate key, a tag, or text too deep or long to be a recipe.
    """
    yaml = _yaml()
    try:
        node = yaml.compose(StringIO(text))
        return None if node is None else _Reader(yaml).value(node, 0)
    except MarkedYAMLError as error:
        why = f"{error.context}, {error.problem}" if error.context else str(error.problem)
        raise DocumentError(f"not valid YAML: {why}", error.problem_mark) from error
    except YAMLError as error:
        raise DocumentError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise DocumentError("nested too deep for a recipe") from error


def dump(document: Mapping[str, Any]) -> str:
    """YAML that `parse` reads back equal: block mappings in the given order, sequences on one line."""
    yaml = _yaml()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # inferred from None
    yaml.width = 110
    yaml.Representer = _Representer
    stream = StringIO()
    yaml.dump(dict(document), stream)
    return stream.getvalue().removeprefix("%YAML 1.2\n---\n")


def show(value: Any) -> str:
    """A value as a sentence may quote it: like in the YAML, on one line, at most 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.version = "1.2"
    # An anchor may be used again; a warning of Python's about it is no sentence for a user.
    yaml.composer.warn_double_anchors = False
    return yaml


class _Reader:
    """Turns nodes into values; counts them, since aliases can make few characters into many nodes."""

    def __init__(self, yaml: YAML) -> None:
        self._scalar = yaml.constructor.construct_object
        self._nodes = 0

    def value(self, node: Node, depth: int) -> Any:
        """The plain value of a node and of all below it."""
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise DocumentError("nested too deep or too long for a recipe; shorten it", node.start_mark)
        kind = str(node.tag).removeprefix(_CORE)
        if isinstance(node, MappingNode) and kind == "map":
            return self._mapping(node, depth)
        if isinstance(node, SequenceNode) and kind == "seq":
            return tuple(self.value(item, depth + 1) for item in node.value)
        if isinstance(node, ScalarNode) and kind in ("null", "bool", "int", "float"):
            return self._number(node)
        if isinstance(node, ScalarNode) and kind in ("str", "timestamp", "value", "merge"):
            return _text(node)
        raise DocumentError(f"the tag {node.tag} has no meaning in a recipe; remove it", node.start_mark)

    def _mapping(self, node: MappingNode, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise DocumentError("a key must be a word", key_node.start_mark)
            key = _text(key_node)
            if key in mapping:
                raise DocumentError(f"the key {key} is given twice; keep one of them", key_node.start_mark)
            mapping[key] = self.value(value_node, depth + 1)
        return mapping

    def _number(self, node: ScalarNode) -> Any:
        try:
            return self._scalar(node)
        except ValueError as error:
            raise DocumentError(f"{show(node.value)} is not a number", node.start_mark) from error


def _text(node: ScalarNode) -> str:
    text = str(node.value)
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise DocumentError("text must be valid Unicode without NUL characters", node.start_mark)
    return text


class _Representer(SafeRepresenter):
    """Writes sequences on one line, and scalars so that YAML 1.1 readers take them for the same type."""


def _represent_tuple(representer: SafeRepresenter, value: tuple[Any, ...]) -> Node:
    return representer.represent_sequence(_CORE + "seq", value, flow_style=True)


def _represent_float(representer: SafeRepresenter, value: float) -> Node:
    digits, exponent, power = repr(value).partition("e")
    return representer.represent_scalar(
        _CORE + "float", (digits if "." in digits else f"{digits}.0") + exponent + power
    )


def _represent_text(representer: SafeRepresenter, value: str) -> Node:
    style = "'" if value.lower() in _YAML_1_1_WORDS or not value[:1].isalpha() else None
    # Only double quotes keep a line break or a control character as it is.
    style = style if value.isprintable() else '"'
    return representer.represent_scalar(_CORE + "str", value, style=style)


_Representer.add_representer(tuple, _represent_tuple)
_Representer.add_representer(float, _represent_float)
_Representer.add_representer(str, _represent_text)
