"""Finds and loads checkpoints: the live engine, the run's state and every rank's random numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deepspeed import DeepSpeedEngine
from safetensors.torch import load_file

from ds_pretrain.engine.checkpoint_files import damage, list_checkpoints
from ds_pretrain.engine.ranks import Ranks, broadcast_object, gather_objects
from ds_pretrain.engine.rng import restore_rng
from ds_pretrain.errors import CheckpointError

ENGINE_TAG = "engine"


def load_checkpoint(engine: DeepSpeedEngine, folder: Path, ranks: Ranks) -> None:
    """Loads a verified checkpoint into an engine of the same recipe and world size, and this rank's generators.

    The learning rates and the clip of the saved moment come with it: apply the stage again afterwards.

    Args:
        engine: the live engine.
        folder: what ``newest_whole`` found.
        ranks: this process among those of the run.
    """
    load_engine(engine, folder, ranks)
    restore_rng(load_file(folder / rng_name(ranks.rank)))


def load_engine(engine: DeepSpeedEngine, folder: Path, ranks: Ranks) -> None:
    """The same without the generators, which at ZeRO 0 any number of ranks may do."""
    loaded, _ = engine.load_checkpoint(str(folder), tag=ENGINE_TAG, load_lr_scheduler_states=False)
    if loaded is None:
        raise CheckpointError(f"{folder}: DeepSpeed found nothing to load for rank {ranks.rank}")


def newest_whole(
    checkpoints: Path, ranks: Ranks, counts: Callable[[Path], bool] = lambda folder: True
) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files all match its manifest. Every rank takes part and shares the reading.

    Args:
        checkpoints: folder of the run's checkpoints.
        ranks: this process among those of the run.
        counts: whether a checkpoint is to be looked at; asked on rank 0.

    Returns:
        The folder, or None where there is none, and a warning for every damaged one that was passed over.
    """
    folders = broadcast_object(
        [folder for _, folder in reversed(list_checkpoints(checkpoints)) if counts(folder)] if ranks.is_main else None,
        ranks,
    )
    warnings: list[str] = []
    for folder in folders:
        found = gather_objects(damage(folder, ranks.rank, ranks.world_size), ranks)
        problems = list(dict.fromkeys(problem for share in found for problem in share))
        if not problems:
            return folder, warnings
        warnings.append(f"checkpoint {folder} is damaged and passed over: {'; '.join(problems)}")
    return None, warnings


def rng_name(rank: int) -> str:
    """File of a rank's generators in a checkpoint."""
    return f"rng_rank_{rank:05d}.safetensors"
