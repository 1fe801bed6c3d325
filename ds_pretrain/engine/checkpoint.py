"""Saves and loads the live engine, with the run's state and every rank's random numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepspeed import DeepSpeedEngine
from safetensors.torch import load_file, save_file

from ds_pretrain.engine.checkpoint_files import (
    STATE,
    checkpoint_folder,
    damage,
    files_of,
    list_checkpoints,
    partial_folder,
    publish,
    record_files,
    write_durably,
)
from ds_pretrain.engine.ranks import Ranks, barrier, broadcast_object, gather_objects
from ds_pretrain.engine.rng import restore_rng, rng_state
from ds_pretrain.errors import CheckpointError

ENGINE_TAG = "engine"


def save_checkpoint(engine: DeepSpeedEngine, checkpoints: Path, state: Mapping[str, Any], ranks: Ranks) -> Path:
    """Writes a checkpoint that becomes visible only when it is whole. Every rank takes part.

    Args:
        engine: the live engine, between two steps.
        checkpoints: folder of the run's checkpoints, on a disk that all ranks share.
        state: the run's own state; JSON values, ``step`` among them.
        ranks: this process among those of the run.

    Returns:
        The checkpoint's folder.
    """
    step = int(state["step"])
    partial, final = partial_folder(checkpoints, step), checkpoint_folder(checkpoints, step)
    if ranks.is_main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier()
    engine.save_checkpoint(str(partial), tag=ENGINE_TAG, save_latest=False)
    save_file(rng_state(), partial / _rng_name(ranks.rank))
    if ranks.is_main:
        write_durably(partial / STATE, json.dumps(state, indent=2) + "\n")
    barrier()
    mine = record_files(partial, files_of(partial)[ranks.rank :: ranks.world_size])
    records = {name: record for share in gather_objects(mine, ranks) for name, record in share.items()}
    if ranks.is_main:
        about = {"world_size": ranks.world_size, "zero_stage": engine.zero_optimization_stage()}
        publish(partial, final, step, records, about)
    barrier()
    return final


def load_checkpoint(engine: DeepSpeedEngine, folder: Path, ranks: Ranks) -> None:
    """Loads a verified checkpoint into an engine of the same recipe and world size.

    The learning rates and the clip of the saved moment come with it: apply the stage again afterwards.

    Args:
        engine: the live engine.
        folder: what ``newest_whole`` found.
        ranks: this process among those of the run.
    """
    loaded, _ = engine.load_checkpoint(str(folder), tag=ENGINE_TAG, load_lr_scheduler_states=False)
    if loaded is None:
        raise CheckpointError(f"{folder}: DeepSpeed found nothing to load for rank {ranks.rank}")
    restore_rng(load_file(folder / _rng_name(ranks.rank)))


def newest_whole(checkpoints: Path, ranks: Ranks) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files all match its manifest. Every rank takes part and shares the reading.

    Args:
        checkpoints: folder of the run's checkpoints.
        ranks: this process among those of the run.

    Returns:
        The folder, or None where there is none, and a warning for every damaged one that was passed over.
    """
    folders = broadcast_object(
        [folder for _, folder in reversed(list_checkpoints(checkpoints))] if ranks.is_main else None, ranks
    )
    warnings: list[str] = []
    for folder in folders:
        found = gather_objects(damage(folder, ranks.rank, ranks.world_size), ranks)
        problems = list(dict.fromkeys(problem for share in found for problem in share))
        if not problems:
            return folder, warnings
        warnings.append(f"checkpoint {folder} is damaged and passed over: {'; '.join(problems)}")
    return None, warnings


def read_state(folder: Path) -> dict[str, Any]:
    """The run's own state in a checkpoint."""
    return json.loads((folder / STATE).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _rng_name(rank: int) -> str:
    return f"rng_rank_{rank:05d}.safetensors"
