"""What is wrong with a recipe's values, in the words of the recipe instead of the validator's."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
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
    "string_type": "text (in quotes where it looks like a number)",
    "tuple_type": "a list",
}
_BOUNDS: Mapping[str, tuple[str, str]] = {
    "greater_than": ("a number above", "gt"),
    "greater_than_equal": ("a number of at least", "ge"),
    "less_than": ("a number below", "lt"),
    "less_than_equal": ("a number of at most", "le"),
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
    meant = {(*location[:-1], meant_key(location)) for location, found in by_location.items() if _is_unknown(found)}
    problems = []
    for location, found in by_location.items():
        if found[0]["type"] == "missing":
            # a key that was only misspelled is not missing as well
            needed = [leaf for leaf in _required(location) if leaf not in meant]
            problems += [Problem(as_path(leaf), f"is required: {_description(leaf)}") for leaf in needed]
        else:
            problems.append(Problem(as_path(location), _sentence(location, found)))
    return problems


def doubtful_paths(error: ValidationError, data: Mapping[str, Any]) -> list[str]:
    """The keys whose values are not known: wrong, missing, or meant by a misspelled key."""
    paths = []
    for details in error.errors():
        location = locate(data, details)
        if details["type"] == "missing":
            paths += [as_path(leaf) for leaf in _required(location)]
        elif details["type"] != "extra_forbidden":
            paths.append(as_path(location))
        elif (key := meant_key(location)) is not None:
            paths.append(as_path((*location[:-1], key)))
    return paths


def meant_key(location: Location) -> str | None:
    """The known key nearest to an unknown one, where one is near."""
    near = difflib.get_close_matches(str(location[-1]), list(_fields(location[:-1])), n=1)
    return near[0] if near else None


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


def shown(value: object) -> str:
    """A value as a recipe would state it, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_unknown(found: list[ErrorDetails]) -> bool:
    return found[0]["type"] in ("extra_forbidden", "invalid_key")


def _sentence(location: Location, found: list[ErrorDetails]) -> str:
    value = found[0]["input"]
    if _is_unknown(found):
        known = list(_fields(location[:-1]))
        elsewhere = [as_path(path) for path in _paths(Recipe) if path[-1] == location[-1]]
        hint = f" (did you mean {elsewhere[0]!r}?)" if elsewhere else ""
        return f"unknown key; allowed: {', '.join(known)}{nearest(location[-1], known) or hint}"
    allowed = " or ".join(dict.fromkeys(_allowed(details) for details in found))
    hint = ""
    for details in found:
        if details["type"] == "literal_error":
            hint = nearest(value, _choices(details))
    return f"found {shown(value)}; allowed: {allowed}{hint}"


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
    if kind == "too_short":
        return f"at least {context['min_length']} item"
    if kind == "too_long":
        return f"at most {context['max_length']} items"
    return details["msg"]


def _choices(details: ErrorDetails) -> list[str]:
    return [choice.strip("'") for choice in re.split(", | or ", str(details["ctx"]["expected"]))]


def _fields(location: Location) -> Mapping[str, FieldInfo]:
    """The keys that a section of the recipe may hold."""
    model: Any = Recipe
    for part in location:
        if isinstance(part, str):
            model = _section(model.model_fields[part].annotation)
    return model.model_fields if model is not None else {}


def _required(location: Location) -> list[Location]:
    """The missing key itself, or the keys that a missing section has to hold."""
    model = _fields(location[:-1])[str(location[-1])].annotation
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return [location]
    return [(*location, name) for name, field in model.model_fields.items() if field.is_required()]


def _description(location: Location) -> str:
    return str(_fields(location[:-1])[str(location[-1])].description).rstrip(".").replace("``", "")


def _paths(model: type[BaseModel], above: Location = ()) -> Iterator[Location]:
    for name, field in model.model_fields.items():
        yield (*above, name)
        section = _section(field.annotation)
        if section is not None:
            yield from _paths(section, (*above, name))


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as ``tuple[Stage, ...] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        found = _section(inner)
        if found is not None:
            return found
    return None
