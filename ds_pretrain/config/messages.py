"""What is wrong with a recipe's values, in the words of the recipe instead of the validator's."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ds_pretrain.config.schema import Recipe
from ds_pretrain.errors import Problem

Location = tuple[str | int, ...]

_ALLOWED: Mapping[str, str] = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping of keys",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_attributes_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "string_type": "text",
    "tuple_type": "a list",
}
_BOUNDS: Mapping[str, tuple[str, str]] = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
    "string_too_long": ("at most this many characters:", "max_length"),
}


def explain(error: ValidationError, data: Mapping[str, Any]) -> list[Problem]:
    """One problem for every wrong key.

    Args:
        error: what validating ``data`` raised.
        data: the recipe as plain data.

    Returns:
        Problems in the order of the schema; the alternatives of one key in one sentence.
    """
    by_location: dict[Location, list[ErrorDetails]] = {}
    for details in error.errors():
        by_location.setdefault(locate(data, details), []).append(details)
    return [Problem(as_path(location), _sentence(location, found)) for location, found in by_location.items()]


def locate(data: Mapping[str, Any], details: ErrorDetails) -> Location:
    """The key that an error is about: the validator adds the names of alternatives behind it."""
    node: Any = data
    location: list[str | int] = []
    for part in details["loc"]:
        if isinstance(node, Mapping) and part in node:
            node = node[part]
        elif isinstance(node, (list, tuple)) and isinstance(part, int) and part < len(node):
            node = node[part]
        elif details["type"] == "missing" and part == details["loc"][-1]:
            location.append(part)
            break
        else:
            break
        location.append(part)
    return tuple(location)


def as_path(location: Location) -> str:
    """A location as a dotted path."""
    return ".".join(str(part) for part in location)


def nearest(word: object, known: Iterable[str]) -> str:
    """`` (did you mean …?)`` for the known word that is nearest, or nothing where none is near."""
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _sentence(location: Location, found: list[ErrorDetails]) -> str:
    kind, value = found[0]["type"], found[0]["input"]
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        known = list(_fields(location[:-1]))
        listed = "; allowed: " + ", ".join(known)
        return f"unknown key{nearest(location[-1], known) or listed}"
    allowed = " or ".join(dict.fromkeys(_allowed(details) for details in found))
    hint = ""
    for details in found:
        if details["type"] == "literal_error":
            hint = nearest(value, _choices(details))
    return f"found {value!r}; allowed: {allowed}{hint}"


def _allowed(details: ErrorDetails) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind in _ALLOWED:
        return _ALLOWED[kind]
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"{words} {context[key]:g}"
    if kind == "literal_error":
        return ", ".join(_choices(details))
    if kind == "value_error":
        return str(context["error"])
    if kind == "string_pattern_mismatch":
        return "letters, digits, dot, dash and underscore, not starting with a dot"
    if kind in ("too_short", "too_long"):
        return f"{context.get('min_length', context.get('max_length'))} items"
    return details["msg"]


def _choices(details: ErrorDetails) -> list[str]:
    text = str(details["ctx"]["expected"]).replace(" or ", ", ")
    return [choice.strip("'") for choice in text.split(", ")]


def _fields(location: Location) -> Iterable[str]:
    """The keys that a section of the recipe may hold."""
    model: Any = Recipe
    for part in location:
        if isinstance(part, str):
            model = _section(model.model_fields[part].annotation)
    return model.model_fields if model is not None else ()


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as ``tuple[Stage, ...] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        found = _section(inner)
        if found is not None:
            return found
    return None
