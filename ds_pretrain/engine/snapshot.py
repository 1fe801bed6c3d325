"""Puts a live engine back, to the bit, to where it was: weights, optimizer, loss scaler, counters, random numbers.

The state goes through DeepSpeed's own checkpoint, since that alone knows where every ZeRO stage and every offload
keeps its parts, and since it needs no second copy of the state in the memory of the device.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from deepspeed import DeepSpeedEngine

from ds_pretrain.engine.ranks import Ranks, barrier
from ds_pretrain.engine.rng import restore_rng, rng_state

_TAG = "engine"


class EngineSnapshot:
    """The state of an engine between two steps; every rank takes part in all of it.

    Args:
        engine: the live engine.
        folder: where to keep the state, on a disk that all ranks share; what it holds is replaced.
        ranks: this process among those of the run.
    """

    def __init__(self, engine: DeepSpeedEngine, folder: Path, ranks: Ranks) -> None:
        self._engine = engine
        self._folder = folder
        self._ranks = ranks
        self.delete()
        engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)
        self._rng = rng_state()
        barrier()

    def restore(self) -> None:
        """Puts the engine back. Learning rates and clip come with it: apply the stage again afterwards."""
        self._engine.load_checkpoint(str(self._folder), tag=_TAG, load_lr_scheduler_states=False)
        restore_rng(self._rng)

    def delete(self) -> None:
        """Removes the files, on rank 0, once every rank is done with them."""
        barrier()
        if self._ranks.is_main:
            shutil.rmtree(self._folder, ignore_errors=True)
        barrier()
