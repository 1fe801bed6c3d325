"""What the schema already names and the framework does not do yet: refused, never silently ignored."""

from __future__ import annotations

from collections.abc import Sequence

from ds_pretrain.config.base import Section
from ds_pretrain.config.messages import shown
from ds_pretrain.config.schema import Recipe
from ds_pretrain.errors import Problem

# keys, and the values that are built
_BUILT_VALUES = {
    "model.compile": (False,),
    "tracking.tensorboard": (False,),
}
# sections of which only the named keys do something so far
_BUILT_KEYS: dict[str, frozenset[str]] = {
    "safety": frozenset(
        {
            "max_consecutive_bad_steps",
            "spike_factor",
            "spike_sigma",
            "spike_window",
            "spike_lr_factor",
            "spike_recovery_steps",
            "spike_patience",
            "grad_norm_factor",
        }
    ),
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
    for path, keys in _BUILT_KEYS.items():
        section = _value(recipe, path)
        assert isinstance(section, Section)
        for name, field in type(section).model_fields.items():
            value = getattr(section, name)
            if name not in keys and value != field.get_default():
                problems.append(
                    Problem(f"{path}.{name}", f"found {shown(value)}, which is not built yet; leave it out")
                )
    if len(recipe.data.train) > 1:
        problems.append(
            Problem(
                "data.train",
                f"found {len(recipe.data.train)} sources; mixing sources is not built yet, give one",
            )
        )
    return problems


def _value(recipe: Recipe, path: str) -> object:
    value: object = recipe
    for part in path.split("."):
        value = getattr(value, part)
    return value
