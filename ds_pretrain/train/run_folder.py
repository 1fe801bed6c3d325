"""The folder of a run: what it keeps of the recipe, and whether a recipe may continue it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ds_pretrain.config import Recipe, dump_recipe
from ds_pretrain.engine.checkpoint_files import write_durably
from ds_pretrain.errors import CheckpointError

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
# keys that change nothing in what is learned
CHANGEABLE = (
    "run.output_dir",
    "tracking.",
    "checkpoint.",
    "evaluation.",
    "lr_finder.",
    "data.prefetch_steps",
    "deepspeed.communication_timeout_seconds",
)


def recipe_document(recipe: Recipe) -> dict[str, Any]:
    """A whole recipe as plain JSON values, as ``config.yaml`` and every checkpoint hold it."""
    return yaml.safe_load(dump_recipe(recipe))  # type: ignore[no-any-return]


def run_folder(recipe: Recipe) -> Path:
    """Where a run keeps everything: ``<output_dir>/<name>``."""
    return Path(recipe.run.output_dir) / recipe.run.name


def changeable(recipe: Recipe) -> tuple[str, ...]:
    """The keys that may be changed on resume: how a run is evaluated too, unless its learning rate follows that."""
    follows = recipe.schedule.type == "plateau"
    return tuple(key for key in CHANGEABLE if not (follows and key == "evaluation."))


def changed_keys(saved: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """What a recipe changes in a run that may not be changed.

    Args:
        saved: the run's ``config.yaml``.
        recipe: the recipe that is to continue it.

    Returns:
        One line for every such key, with both values.
    """
    before = dict(_leaves(saved))
    after = dict(_leaves(yaml.safe_load(dump_recipe(recipe))))
    return [
        f"{key}: {before.get(key)!r} in the run, {after.get(key)!r} now"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key) and not key.startswith(changeable(recipe))
    ]


def check_continuation(folder: Path, recipe: Recipe, state: Mapping[str, Any], world_size: int, corpus: str) -> None:
    """Refuses to continue a run with what would make it another run.

    Args:
        folder: the run's folder, with its ``config.yaml``.
        recipe: the recipe at hand.
        state: the run's own state in its checkpoint.
        world_size: ranks now.
        corpus: fingerprint of the training tokens now.

    Raises:
        CheckpointError: what is different, with both values, and the ways out.
    """
    saved = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    changes = changed_keys(saved, recipe)
    if changes:
        raise CheckpointError(
            f"{folder} is a run of another recipe; changed:\n"
            + "".join(f"  {change}\n" for change in changes)
            + "start a new run with run.name=…, or take the changes back; "
            + f"what may change on resume: {', '.join(key.rstrip('.') for key in changeable(recipe))}"
        )
    if state["corpus"] != corpus:
        raise CheckpointError(
            f"{folder} was trained on other tokens than {recipe.data.train[0].text or recipe.data.train[0].path} now "
            f"holds ({state['corpus']} then, {corpus} now); bring the old text or token files back, or start a new run "
            "with run.name=…"
        )
    saved_world_size = state["world_size"]
    if saved_world_size != world_size:
        raise CheckpointError(
            f"{folder} was saved by {saved_world_size} ranks and is to be continued by {world_size}; continuing on "
            f"another number of ranks is not built yet: start {saved_world_size} (--num_gpus {saved_world_size}), "
            "or a new run with run.name=…"
        )


def write_config(folder: Path, recipe: Recipe) -> None:
    """Keeps the whole resolved recipe as ``config.yaml``."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{CONFIG}.partial"
    write_durably(beside, dump_recipe(recipe))
    os.replace(beside, folder / CONFIG)


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
