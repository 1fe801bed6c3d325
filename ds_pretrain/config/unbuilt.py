"""What the schema already names and the framework does not do yet: refused, never silently ignored."""

from __future__ import annotations

from collections.abc import Sequence

from ds_pretrain.config.messages import shown
from ds_pretrain.config.schema import Recipe
from ds_pretrain.errors import Problem

# keys, and the values that are built
_BUILT_VALUES = {
    "model.compile": (False,),
    "tracking.tensorboard": (False,),
}


def unbuilt_problems(recipe: Recipe) -> Sequence[Problem]:
    """Every key that asks for something that is not built yet.

    Args:
        recipe: a valid recipe; values equal to the defaults ask for nothing.
    """
    problems = []
    for path, built in _BUILT_VALUES.items():
        value = _value(recipe, path)
        if value not in built:
            choices = ", ".join(shown(choice) if choice is False else str(choice) for choice in built)
            problems.append(Problem(path, f"found {shown(value)}, which is not built yet; allowed: {choices}"))
    return problems


def _value(recipe: Recipe, path: str) -> object:
    value: object = recipe
    for part in path.split("."):
        value = getattr(value, part)
    return value
