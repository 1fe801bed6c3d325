"""From plain data to a checked recipe, with every problem of it reported at once.

Checks across fields need a recipe to look at. Where some fields are wrong they get the best one that can be had:
the wrong values are left out, and what the checks then say about those very keys is dropped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from ds_pretrain.config.checks import CHECKS
from ds_pretrain.config.messages import Location, explain, locate
from ds_pretrain.config.schema import Recipe
from ds_pretrain.config.unbuilt import unbuilt_problems
from ds_pretrain.errors import Problem, RecipeError

Check = Callable[[Recipe], Sequence[Problem]]

# what stands in for a required value that is missing or wrong, so that the checks can look at the rest
_STAND_INS: Mapping[Location, Any] = {
    ("model",): {"architecture": "gpt2"},
    ("data",): {"train": [{"path": "-"}]},
    ("data", "train"): [{"path": "-"}],
    ("curriculum",): {"total_steps": 1},
    ("curriculum", "pacing", "start_seq_len"): 8,
    ("optimizer",): {"lr": 1.0},
    ("optimizer", "lr"): 1.0,
}
_ROUNDS = 4


def parse_recipe(data: Mapping[str, Any], checks: Sequence[Check] = (), source: str = "recipe") -> Recipe:
    """Checks plain data and makes it a recipe.

    Args:
        data: a mapping as YAML gives it.
        checks: what else has to hold, beside the recipe's own checks.
        source: where the data came from, for the message.

    Returns:
        The recipe.

    Raises:
        RecipeError: every problem at once.
    """
    problems: list[Problem] = []
    recipe: Recipe | None
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        problems = explain(error, data)
        recipe = _best_effort(data)
    if recipe is not None:
        wrong = [problem.path for problem in problems]
        for check in (*CHECKS, unbuilt_problems, *checks):
            problems += [found for found in check(recipe) if not _concerns(found.path, wrong)]
    if problems or recipe is None:
        raise RecipeError(problems, source)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that loads to an equal one."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _concerns(path: str, wrong: Sequence[str]) -> bool:
    """Whether a path names a key that is known to be wrong, or one that lies above or below it."""
    return any(f"{path}.".startswith(f"{bad}.") or f"{bad}.".startswith(f"{path}.") for bad in wrong)


def _best_effort(data: Mapping[str, Any]) -> Recipe | None:
    rest = copy.deepcopy(dict(data))
    for _ in range(_ROUNDS):
        try:
            return Recipe.model_validate(rest)
        except ValidationError as error:
            for details in error.errors():
                _leave_out(rest, locate(rest, details))
    return None


def _leave_out(data: dict[str, Any], location: Location) -> None:
    stand_in = _STAND_INS.get(location)
    node: Any = data
    for part in location[:-1]:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            return
    last = location[-1] if location else None
    if isinstance(node, dict):
        if stand_in is not None:
            node[last] = copy.deepcopy(stand_in)
        else:
            node.pop(last, None)
    elif isinstance(node, list) and isinstance(last, int) and last < len(node):
        node[last] = {}
