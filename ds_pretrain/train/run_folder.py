"""The folder of a run: what it keeps of the recipe, and whether a recipe may continue it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ds_pretrain.config import Recipe, dump_recipe
from ds_pretrain.engine.checkpoint_files import replace_durably
from ds_pretrain.errors import CheckpointError
from ds_pretrain.train.continuation import Changes, changeable

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"


def run_folder(recipe: Recipe) -> Path:
    """Where a run keeps everything: ``<output_dir>/<name>``."""
    return Path(recipe.run.output_dir) / recipe.run.name


def saved_recipe(folder: Path, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe that a checkpoint was trained by; the run's ``config.yaml`` where an older one does not hold it.

    The file alone would not do: it is of the last start, which may have changed the recipe and saved nothing.
    """
    if "recipe" in state:
        return state["recipe"]  # type: ignore[no-any-return]
    return yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def check_recipe(folder: Path, changes: Changes, recipe: Recipe, ends: int | None) -> None:
    """Refuses to continue a run with a recipe that would make it another run.

    Args:
        folder: the run's folder.
        changes: what the recipe changes.
        recipe: the recipe at hand.
        ends: the step at which the run has finished; None where it has not.

    Raises:
        CheckpointError: what is different, with both values, and the ways out.
    """
    if not changes.refused:
        return
    further = "" if ends is None else f"; to train on, add a stage that starts at step {ends}"
    raise CheckpointError(
        f"{folder} is a run of another recipe; changed:\n"
        + "".join(f"  {change}\n" for change in changes.refused)
        + f"start a new run with run.name=…, or take the changes back{further}; what may change on resume: stages that "
        + f"have not begun, {', '.join(key.rstrip('.') for key in changeable(recipe))}"
    )


def check_corpus(folder: Path, recipe: Recipe, saved: str, corpus: str) -> None:
    """Refuses to continue a run on other tokens.

    Args:
        folder: the run's folder.
        recipe: the recipe at hand.
        saved, corpus: fingerprint of the training tokens in the checkpoint, and now.

    Raises:
        CheckpointError: with both fingerprints, and the ways out.
    """
    if saved != corpus:
        raise CheckpointError(
            f"{folder} was trained on other tokens than {', '.join(source.label for source in recipe.data.train)} now "
            f"holds ({saved} then, {corpus} now); bring the old text or token files back, or start a new run "
            "with run.name=…"
        )


def check_layout(folder: Path, recipe: Recipe, manifest: Mapping[str, Any], world_size: int, zero: int) -> None:
    """Refuses ranks and a ZeRO stage for which a checkpoint cannot be converted.

    Args:
        folder: the run's folder.
        recipe: the recipe at hand.
        manifest: the checkpoint's.
        world_size: ranks now.
        zero: ZeRO stage now.

    Raises:
        CheckpointError: what stands in the way, and how to go on.
    """
    saved, before = manifest["world_size"], manifest["zero_stage"]
    offload = recipe.deepspeed.offload_optimizer
    reason = None
    if (saved, before) == (world_size, zero) or before == zero == 0:
        return
    if 0 in (before, zero):
        reason = "ZeRO 0 keeps no partitions that could be converted"
    elif recipe.optimizer.type not in ("adamw", "adam"):
        reason = f"DeepSpeed converts the state of Adam only, not of {recipe.optimizer.type}"
    elif offload is not None and offload.device == "nvme":
        reason = "an optimizer on NVMe cannot be converted"
    if reason is not None:
        raise CheckpointError(
            f"{folder} was saved by {saved} rank(s) at ZeRO {before} and is to be continued by {world_size} at ZeRO "
            f"{zero}, but {reason}; start {saved} (--num_gpus {saved}) with deepspeed.zero_stage={before}, or a new "
            "run with run.name=…"
        )


def write_config(folder: Path, recipe: Recipe) -> None:
    """Keeps the whole resolved recipe as ``config.yaml``."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_durably(folder / CONFIG, dump_recipe(recipe))
