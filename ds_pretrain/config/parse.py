"""From plain data to a checked recipe, with every problem of it reported at once.

Checks across fields need a recipe to look at. Where some fields are wrong they get the best one that can be had:
the wrong values are left out, and what the checks then say about those very keys is dropped.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from ds_pretrain.config.checks import CHECKS
from ds_pretrain.config.data import as_sources
from ds_pretrain.config.messages import Location, doubtful_paths, explain, locate
from ds_pretrain.config.schema import Recipe
from ds_pretrain.config.unbuilt import unbuilt_problems
from ds_pretrain.errors import Problem, RecipeError

Check = Callable[[Recipe], Sequence[Problem]]

# what stands in for a required value that is missing or wrong, so that the checks can look at the rest
_STAND_INS: Mapping[Location, Any] = {
    ("data",): {"train": [{"path": "-"}]},
    ("data", "train"): [{"path": "-"}],
    ("curriculum", "pacing", "start_seq_len"): 8,
    ("optimizer",): {"lr": 1.0},
    ("optimizer", "lr"): 1.0,
    ("tokenizer", "train", "vocab_size"): 258,
}
_ROUNDS = 8


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
    data = _with_listed_sources(data)
    problems: list[Problem] = []
    doubtful: list[str] = []
    recipe: Recipe | None
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        problems, doubtful = explain(error, data), doubtful_paths(error, data)
        recipe = _best_effort(data)
    if recipe is not None:
        for check in (*CHECKS, unbuilt_problems, *checks):
            problems += [found for found in check(recipe) if not _rests_on(found, doubtful)]
    if problems or recipe is None:
        raise RecipeError(sorted(problems, key=_section_index), source)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that loads to an equal one."""
    return yaml.dump(recipe.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Quotes what PyYAML leaves plain and the reader takes for something else: ``1e3``, and rare line breaks."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if set(data) & set("\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+.\d][-+.:_\deE]*$"), list("-+.0123456789"))


def _with_listed_sources(data: Mapping[str, Any]) -> dict[str, Any]:
    """One source may stand without a list; with it, an error's location is also a place in the data."""
    section = data.get("data")
    if not isinstance(section, Mapping):
        return dict(data)
    listed = {key: as_sources(section[key]) for key in ("train", "validation") if key in section}
    return {**data, "data": {**section, **listed}}


def _section_index(problem: Problem) -> int:
    """Where a problem's section stands in the schema; unknown sections come last."""
    sections = list(Recipe.model_fields)
    name = problem.path.partition(".")[0]
    return sections.index(name) if name in sections else len(sections)


def _rests_on(problem: Problem, doubtful: Sequence[str]) -> bool:
    """Whether a check found fault with a stand-in: its path or its message names a key whose value is not known."""
    for key in doubtful:
        above, _, name = key.rpartition(".")
        if f"{problem.path}.".startswith(f"{key}.") or _names(problem.message, key):
            return True
        if f"{above}.".startswith(f"{problem.path}.") and _names(problem.message, name):
            return True
    return False


def _names(message: str, key: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", message) is not None


def _best_effort(data: Mapping[str, Any]) -> Recipe | None:
    rest = copy.deepcopy(dict(data))
    for _ in range(_ROUNDS):
        try:
            return Recipe.model_validate(rest)
        except ValidationError as error:
            # one key once: the alternatives of a union are errors of their own
            for location in dict.fromkeys(locate(rest, details) for details in error.errors()):
                _leave_out(rest, location)
    return None


def _leave_out(data: dict[str, Any], location: Location) -> None:
    stand_in = _STAND_INS.get(location)
    node: Any = data
    for part in location[:-1]:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            return
    if not location:
        return
    last = location[-1]
    if isinstance(node, dict) and stand_in is not None:
        node[last] = copy.deepcopy(stand_in)
    elif isinstance(node, dict) and last in node:
        del node[last]
    elif isinstance(node, list) and isinstance(last, int) and last < len(node) and node[last] != {}:
        node[last] = {}  # a later item keeps its index, by which it is named
    else:
        _leave_out(data, location[:-1])
