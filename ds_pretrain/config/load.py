"""Reads a recipe: YAML files, later over earlier, then ``key.path=value`` overrides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ds_pretrain.config.parse import Check, parse_recipe
from ds_pretrain.config.schema import Recipe
from ds_pretrain.errors import Problem, RecipeError

# keys of which one replaces the others: a later file or override need not take the earlier one back
_ALTERNATIVES = (
    ("curriculum.total_steps", "curriculum.total_tokens", "curriculum.total_epochs"),
    ("curriculum.stages", "curriculum.pacing"),
    ("model.architecture", "model.pretrained"),
    ("tokenizer.path", "tokenizer.train"),
    ("schedule.warmup.tokens", "schedule.warmup.steps", "schedule.warmup.fraction"),
)


def load_recipe(files: Sequence[Path], overrides: Sequence[str] = (), checks: Sequence[Check] = ()) -> Recipe:
    """Loads and checks a recipe.

    Args:
        files: YAML files, later ones over earlier ones; lists are replaced, not joined.
        overrides: ``key.path=value`` with YAML values; list items by index, as in ``curriculum.stages.0.grad_clip=2``.
        checks: what else has to hold, beside the recipe's own checks.

    Returns:
        The recipe.

    Raises:
        RecipeError: every problem at once.
    """
    if not files:
        raise RecipeError([Problem("", "no recipe given; name a YAML file, e.g. ds_configs/quickstart.yaml")])
    merged = OmegaConf.create({})
    for file in files:
        merged = _merged(merged, _read(file), file)
    problems = [problem for problem in (_override(merged, text) for text in overrides) if problem]
    source = ", ".join(str(file) for file in files)
    if problems:
        raise RecipeError(problems, source)
    # resolve=False: "${oc.env:…}" stays text, so that no secret of the environment gets into a recipe
    data = OmegaConf.to_container(merged, resolve=False)
    assert isinstance(data, dict)
    return parse_recipe({str(key): value for key, value in data.items()}, checks, source)


def _read(file: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(file)
    except FileNotFoundError:
        raise _unreadable(file, "there is no such file") from None
    except OSError as error:
        raise _unreadable(file, f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise _unreadable(file, f"is not UTF-8 text (byte {error.start})") from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise _unreadable(file, f"is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, DictConfig):
        raise _unreadable(file, "is not a recipe: a mapping of keys is needed at the top")
    if not loaded:
        raise _unreadable(file, "is empty")
    return loaded


def _unreadable(file: Path, reason: str) -> RecipeError:
    return RecipeError([Problem("", reason)], str(file))


def _merged(base: DictConfig, layer: DictConfig, file: Path) -> DictConfig:
    for group in _ALTERNATIVES:
        if any(_get(layer, key) is not None for key in group):
            for key in group:
                _remove(base, key)
    try:
        merged = OmegaConf.merge(base, layer)
    except OmegaConfBaseException as error:
        raise _unreadable(file, f"cannot be merged over the files before it: {error.msg}") from error
    assert isinstance(merged, DictConfig)
    return merged


def _override(config: DictConfig, text: str) -> Problem | None:
    key, sign, value = text.partition("=")
    key = key.strip()
    if not sign or not key:
        return Problem("", f"found override {text!r}; allowed: key.path=value, e.g. optimizer.lr=1e-3")
    try:
        parsed = OmegaConf.from_dotlist([f"value={value}"]).value
        for other in _rivals(key):
            _remove(config, other)
        OmegaConf.update(config, key, parsed, merge=True)
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError, IndexError, KeyError) as error:
        reason = " ".join(str(error).split())
        return Problem(key, f"the override {text!r} cannot be applied ({reason})")
    return None


def _rivals(key: str) -> Iterator[str]:
    """The keys that ``key``, or a key it lies under, replaces."""
    for group in _ALTERNATIVES:
        if any(key == member or key.startswith(f"{member}.") for member in group):
            yield from (other for other in group if not (key == other or key.startswith(f"{other}.")))


def _get(config: DictConfig, key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            return None
        node = node._get_node(part)
        if node is None or node._is_none():
            return None
    return node


def _remove(config: DictConfig, key: str) -> None:
    parent, _, name = key.rpartition(".")
    node = _get(config, parent)
    if isinstance(node, DictConfig) and name in node:
        del node[name]
