"""What is wrong with a recipe, in one sentence a key: dotted key, value, rule, remedy."""

import re
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from llm_neo.recipe.document import DocumentError, parse, show
from llm_neo.recipe.tree import HeldOut, LabelledSource, Recipe, Section

_RULES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "too_short": "a list of at least {min_length}",
    "literal_error": "one of {expected}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "smaller than {lt}",
    "less_than_equal": "at most {le}",
}

# The member of a union that is a section is named "Name" or "function-after[..., Name]" by pydantic.
_LAST_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class _Place:
    """Where in the recipe an error is.

    keys: the path from the top, without the names that pydantic gives to the members of a union.
    section: the section that holds the last key.
    field: the last key's definition; None for a key that does not exist.
    in_union: the error belongs to one form of a value that may take several.
    optional: how many of the keys lead to the innermost one that a recipe may leave out; 0 = there is none.
    """

    keys: tuple[str | int, ...]
    section: type[Section]
    field: FieldInfo | None
    in_union: bool
    optional: int

    @property
    def dotted(self) -> str:
        """The path as a user writes it."""
        return ".".join(key if isinstance(key, str) else f"[{key}]" for key in self.keys).replace(".[", "[")


_Found = tuple[ErrorDetails, _Place]


def faults(document: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with a recipe, in the order of its keys.

    Rules that span keys are only checked where the keys themselves are right. Keys that are wrong on their
    own and can be left out are therefore left out for a second look, which finds what they hid.

    Args:
        document: the recipe as plain values.

    Returns:
        one sentence for each broken rule, each beginning with the dotted key; none for a valid recipe.
    """
    found = _errors(document)
    misspelt = {key for detail, place in found if _unknown(detail) for key in _nearest(place)}
    lines = _sentences(found, document, misspelt)
    if found:
        rest = _without_faulty_keys(found, document)
        lines += [line for line in _sentences(_errors(rest), rest, misspelt) if line not in lines]
    return lines


def _errors(document: Mapping[str, Any]) -> list[_Found]:
    try:
        Recipe.model_validate(document)
    except ValidationError as error:
        return [(detail, _place(detail, document)) for detail in error.errors(include_url=False)]
    return []


def _without_faulty_keys(found: list[_Found], document: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without unknown keys and without wrong values of keys that no rule across sections reads."""
    rest: dict[str, Any] = deepcopy(dict(document))
    for detail, place in found:
        *above, last = place.keys[: place.optional] or [None]
        if last is not None and (_unknown(detail) or above[:1] not in (["data"], ["teacher"])):
            section: Any = rest
            for key in above:
                section = section.get(key, {})
            section.pop(last, None)
    return rest


def _sentences(found: list[_Found], document: Mapping[str, Any], misspelt: set[str]) -> list[str]:
    # A misspelt key is also a missing one, and a list with a wrong item also a short one: say it once.
    listed = {place.dotted.partition("[")[0] for _, place in found if "[" in place.dotted}
    lines: dict[str, None] = {}
    for detail, place in found:
        if place.dotted not in {"missing": misspelt, "too_short": listed}.get(detail["type"], set()):
            lines |= dict.fromkeys(_lines(detail, place, document))
    return list(lines)


def _unknown(detail: ErrorDetails) -> bool:
    return detail["type"] == "extra_forbidden"


def _place(detail: ErrorDetails, document: Mapping[str, Any]) -> _Place:
    place = _Place((), Recipe, None, in_union=False, optional=0)
    forms: list[type[Section]] = [Recipe]
    for depth, part in enumerate(detail["loc"]):
        names = {form.__name__: form for form in forms}
        new = _unknown(detail) and depth == len(detail["loc"]) - 1
        form = names.get(_LAST_WORD.findall(str(part))[-1]) if not new else None
        if form and isinstance(_at(document, place.keys), Mapping):
            forms = [form]
        elif isinstance(part, int):
            place = replace(place, keys=(*place.keys, part))
        elif len(forms) == 1 and (new or part in forms[0].model_fields):
            field = forms[0].model_fields.get(part)
            keys = (*place.keys, part)
            optional = place.optional if field and field.is_required() else len(keys)
            place = _Place(keys, forms[0], field, in_union=False, optional=optional)
            forms = _forms(field.annotation) if field else []
        else:
            return replace(place, in_union=True)
    return place


def _at(document: Mapping[str, Any], keys: tuple[str | int, ...]) -> Any:
    value: Any = document
    for key in keys:
        value = value[key]
    return value


def _forms(annotation: Any) -> list[type[Section]]:
    """The sections that a key's type allows as its value."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [form for argument in get_args(annotation) for form in _forms(argument)]


def _lines(detail: ErrorDetails, place: _Place, document: Mapping[str, Any]) -> list[str]:
    key, kind, field = place.dotted, detail["type"], place.field
    about = f" ({field.description})" if field and field.description else ""
    if kind == "value_error":
        prefix = f"{key}." if key else ""
        return [prefix + line for line in str(detail["ctx"]["error"]).splitlines()]
    if _unknown(detail):
        return [f"{key}: unknown key; {_unknown_remedy(place)}"]
    if kind == "missing" and not place.in_union:
        forms = _forms(field.annotation) if field else []
        needs = f"; it is a section with the keys {', '.join(forms[0].model_fields)}" if forms else ""
        return [f"{key}: missing{about}{needs if not about else ''}; add it"]
    value = _at(document, place.keys)
    if place.in_union:
        described = isinstance(value, Mapping) and field and _forms(field.annotation)
        return [] if described else [f"{key}: {show(value)} does not fit; give {field.description if field else ''}"]
    if kind == "model_type":
        keys = ", ".join(_forms(field.annotation)[0].model_fields) if field else ""
        return [f"{key}: {show(value)} is not a section; write its keys below it: {keys}"]
    rule = _RULES[kind].format(**detail.get("ctx", {})) if kind in _RULES else detail["msg"]
    return [f"{key}: {show(value)} is not allowed; it must be {rule}{about}{_remedy(kind, value, field)}"]


def _remedy(kind: str, value: Any, field: FieldInfo | None) -> str:
    if kind == "string_type" and value is not None:
        return "; if it is meant as text, put it in quotes"
    if kind in ("int_type", "float_type", "bool_type") and isinstance(value, str):
        with suppress(DocumentError):
            if not isinstance(parse(value), str):
                return "; take the quotes off"
    default = field.default if field else PydanticUndefined
    return "" if default is PydanticUndefined or isinstance(default, Section) else f"; the default is {show(default)}"


def _unknown_remedy(place: _Place) -> str:
    if place.section is HeldOut and place.keys[-1] in LabelledSource.model_fields:
        return "it cannot stand beside fraction_of_train: keep one of the two"
    if near := _nearest(place):
        return f"did you mean {' or '.join(near)}?"
    where = ".".join(map(str, place.keys[:-1])) or "a recipe"
    return f"the keys of {where} are {', '.join(place.section.model_fields)}"


def _nearest(place: _Place) -> list[str]:
    """Keys that an unknown one may have been meant as: of its section, else of another; at most two."""
    word, section = str(place.keys[-1]), place.dotted.rpartition(".")[0]
    own = [f"{section}.{key}".lstrip(".") for key in _siblings(place.section)]
    other: dict[str, list[str]] = {}
    for path in _paths(Recipe):
        other.setdefault(path.rpartition(".")[2], []).append(path)
    word_like = word.lower().replace("-", "_")

    def close(names: list[str], cutoff: float) -> list[str]:
        return get_close_matches(word_like, names, n=1, cutoff=cutoff)

    own_names = [path.rpartition(".")[2] for path in own]
    if near := close(own_names, 0.8):
        return [own[own_names.index(near[0])]]
    if word_like in other:
        return sorted(other[word_like], key=lambda path: not path.startswith(f"{section}."))[:2]
    if near := close(own_names, 0.6):
        return [own[own_names.index(near[0])]]
    return [path for name in close(list(other), 0.75) for path in other[name]][:2]


def _siblings(section: type[Section]) -> list[str]:
    held_out = section is HeldOut
    return [*section.model_fields, *(LabelledSource.model_fields if held_out else ())]


@cache
def _paths(section: type[Section]) -> tuple[str, ...]:
    """Every dotted key below a section."""
    paths: list[str] = []
    for name, field in section.model_fields.items():
        paths.append(name)
        for form in _forms(field.annotation):
            paths += [f"{name}.{path}" for path in _paths(form)]
    return tuple(dict.fromkeys(paths))
