"""Reads a recipe: YAML files, later over earlier, then ``key.path=value`` overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ds_pretrain.config.parse import Check, parse_recipe
from ds_pretrain.config.schema import Recipe
from ds_pretrain.config.secrets import secret_problems, without_secrets
from ds_pretrain.errors import Problem, RecipeError

# keys of which one replaces the others: a later file or the command line need not take the earlier one back
_ALTERNATIVES = (
    ("curriculum", ("total_steps", "total_tokens", "total_epochs")),
    ("curriculum", ("stages", "pacing")),
    ("curriculum.pacing", ("fraction", "steps", "tokens")),
    ("model", ("architecture", "pretrained")),
    ("tokenizer", ("path", "train")),
    ("schedule.warmup", ("tokens", "steps", "fraction")),
)
# stands for "${" while OmegaConf handles a recipe: it must not look anything up, least of all in the environment
_GUARD = "\ue000{"
# far beyond any recipe; a few lines of nested aliases can stand for more values than there is memory
_MAX_VALUES = 100_000
_MAX_DEPTH = 32
_TOO_DEEP = f"nests deeper than {_MAX_DEPTH} levels, or refers to itself"
# what reading YAML raises; values of wrong forms, such as a 13th month, are ValueErrors
_UNREADABLE = (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError)


def load_recipe(files: Sequence[Path], overrides: Sequence[str] = (), checks: Sequence[Check] = ()) -> Recipe:
    """Loads and checks a recipe.

    Args:
        files: YAML files, later ones over earlier ones; lists are replaced, not joined.
        overrides: ``key.path=value`` with YAML values; list items by index, as in ``curriculum.stages.0.grad_clip=2``.
        checks: what else has to hold, beside the recipe's own checks.

    Returns:
        The recipe; text such as ``${name}`` stands in it as written.

    Raises:
        RecipeError: every problem at once.
    """
    if not files:
        raise RecipeError([Problem("", "no recipe given; name a YAML file, e.g. ds_configs/quickstart.yaml")])
    source = ", ".join(str(file) for file in files)
    merged: dict[str, Any] = {}
    unreadable: list[Problem] = []
    for file in files:
        try:
            merged = _merged(merged, _read(file))
        except ValueError as error:
            unreadable.append(Problem(str(file) if len(files) > 1 else "", str(error)))
    if unreadable:
        raise RecipeError(without_secrets(unreadable), source)
    data, problems = _overridden(merged, overrides)
    plain = {str(key): value for key, value in _swapped(data, _GUARD, "${").items()}
    problems += secret_problems(plain)
    try:
        recipe = parse_recipe(plain, checks, source)
    except RecipeError as error:
        problems += error.problems
    if problems:
        raise RecipeError(without_secrets(problems), source)
    return recipe


def _read(file: Path) -> dict[str, Any]:
    """A file as plain data; a ValueError says why that is not to be had."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start})") from error
    try:
        top = _composed(text)
        if isinstance(top, yaml.MappingNode):
            return _plain(OmegaConf.create(text.replace("${", _GUARD)))
    except _UNREADABLE as error:
        raise ValueError(f"is not valid YAML: {_reason(error)}") from error
    raise ValueError("is empty" if top is None else "is not a recipe: a mapping of keys is needed at the top")


def _composed(text: str) -> yaml.Node | None:
    """The nodes of a text that is not too large to be made values; a ValueError says that it is."""
    try:
        top = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if top is not None and _count(top, {}, 1) > _MAX_VALUES:
        raise ValueError(f"stands for more than {_MAX_VALUES:,} values, by its aliases (*name)")
    return top


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Values that a node stands for, those behind aliases counted wherever they are used."""
    if depth > _MAX_DEPTH:
        raise ValueError(_TOO_DEEP)
    if id(node) not in known:
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_count(part, known, depth + 1) for part in inner)
    return known[id(node)]


def _merged(base: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    _make_way(base, layer)
    return _plain(OmegaConf.merge(OmegaConf.create(base), OmegaConf.create(layer)))


def _overridden(base: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """The data under the overrides that can be applied, and the others as problems."""
    problems: list[Problem] = []
    sound: list[tuple[str, Any]] = []
    for text in overrides:
        key, sign, _ = text.partition("=")
        if not sign or not key.strip():
            problems.append(Problem("", f"found override {text!r}; allowed: key.path=value, e.g. optimizer.lr=1e-3"))
            continue
        try:
            _composed(text[len(key) + 1 :])
            layer = _plain(OmegaConf.from_dotlist([text.replace("${", _GUARD)]))
            value = _plain(OmegaConf.from_dotlist([f"value{text[len(key) :]}".replace("${", _GUARD)]))["value"]
        except _UNREADABLE as error:
            problems.append(_not_applied(key, text, error))
            continue
        _give_way(base, layer)  # before any is applied: two alternatives on one command line stay a contradiction
        sound.append((key.strip(), value))
    config = OmegaConf.create(base)
    for key, value in sound:
        try:
            replace = isinstance(OmegaConf.select(config, key), ListConfig)
            OmegaConf.update(config, key, value, merge=not replace)
        except (*_UNREADABLE, IndexError) as error:
            problems.append(_not_applied(key, f"{key}={value}", error))
    return _plain(config), problems


def _not_applied(key: str, text: str, error: Exception) -> Problem:
    return Problem(key.strip(), f"the override {text!r} cannot be applied: {_reason(error)}")


def _reason(error: Exception) -> str:
    if isinstance(error, IndexError):
        return "the list has no such item"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
    return str(error).splitlines()[0]


def _make_way(base: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Takes out of ``base`` what ``layer`` replaces and a merge would keep, or would not merge: a list or a mapping."""
    _give_way(base, layer)
    for key, value in layer.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            _make_way(old, value)
        elif isinstance(old, (dict, list)):
            del base[key]


def _give_way(base: Mapping[str, Any], layer: Mapping[str, Any]) -> None:
    for section, names in _ALTERNATIVES:
        old, new = _section(base, section), _section(layer, section)
        given = [name for name in names if new.get(name) is not None]
        for name in names if given else ():
            if name not in given:
                old.pop(name, None)


def _section(data: Any, path: str) -> dict[str, Any]:
    for part in path.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def _plain(config: Any) -> dict[str, Any]:
    data = _swapped(OmegaConf.to_container(config, resolve=False), "${", _GUARD)  # a YAML escape can spell "${" too
    assert isinstance(data, dict)
    return data


def _swapped(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {_swapped(key, old, new): _swapped(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_swapped(item, old, new) for item in value]
    return value
