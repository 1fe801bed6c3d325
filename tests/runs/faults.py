"""Trains several recipes on the ranks of one launch, some of them with a fault that a machine could have.

Started by the real launcher: ``deepspeed tests/runs/faults.py JOBS.json``; each job is ``{"overrides": […], "fault":
…}`` over the recipe ``base``. Faults: ``{"kind": "nan", "rank": 1, "step": 12}`` sets a layer to NaN on one rank before
a step; ``{"kind": "kill"}`` kills the rank with -9 once ``recovery.json`` is there and nothing else of a rollback is.
The processor's fp16, which DeepSpeed refuses as too slow, is allowed. A run that fails is told of.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from ds_pretrain.config import load_recipe
from ds_pretrain.engine.ranks import Ranks, start_ranks, stop_ranks
from ds_pretrain.errors import TrainingError
from ds_pretrain.train import recovery, trainer
from ds_pretrain.train.run import train_recipe

_train_batch = trainer.train_batch


def main() -> None:
    jobs = json.loads(Path(sys.argv[-1]).read_text(encoding="utf-8"))
    get_accelerator().is_fp16_supported = lambda: True
    ranks = start_ranks(120.0)
    for job in jobs["runs"]:
        install(job.get("fault"), ranks)
        try:
            train_recipe(load_recipe([Path(jobs["base"])], job["overrides"]), ranks, job["overrides"])
        except TrainingError as error:
            if ranks.is_main:
                print(f"FAILED {job['overrides']}: {error}", flush=True)
    stop_ranks()


def install(fault: dict[str, Any] | None, ranks: Ranks) -> None:
    """Arms a fault, once, or disarms the last one."""
    trainer.train_batch = _train_batch
    if fault is None:
        return
    if fault["kind"] == "kill":
        recovery.set_rejected_aside = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        return
    pending = [fault["step"]]

    def train_batch(engine: Any, batch: Any, *arguments: Any) -> Any:
        if pending and batch.step == pending[0] and ranks.rank == fault["rank"]:
            pending.clear()
            with torch.no_grad():
                weight = engine.module.model.model.layers[1].mlp.up_proj.weight
                # at ZeRO 3 this rank's part of it, and the whole where that is kept
                for tensor in (weight.data, getattr(weight, "ds_tensor", weight).data):
                    tensor.fill_(float("nan"))
        return _train_batch(engine, batch, *arguments)

    trainer.train_batch = train_batch


if __name__ == "__main__":
    main()
