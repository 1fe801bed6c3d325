"""Trains several recipes on the same ranks, some of them with a fault that a machine could have.

``faults.py JOBS.json``, started on every rank; each job is ``{"overrides": […], "fault": …}`` over the recipe ``base``.
The processor's fp16, which DeepSpeed refuses as too slow, is allowed. A run that fails is told of. Faults, which
``many.py`` and ``worlds.py`` borrow:

- ``{"kind": "nan", "rank": 1, "step": 12}`` sets a layer to NaN on one rank before a step, counted from 0;
- ``{"kind": "kill"}`` kills the rank with -9 once ``recovery.json`` is there and nothing else of a rollback is;
- ``{"kind": "ask", "rank": 1, "step": 6}`` asks a rank to stop after the first batch of the evaluation after a step;
- ``{"kind": "torn", "rank": 1, "step": 8}`` kills a rank with -9 when it has written half of its part of a checkpoint.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from ds_pretrain.config import load_recipe
from ds_pretrain.engine.ranks import Ranks, start_ranks, stop_ranks
from ds_pretrain.errors import TrainingError
from ds_pretrain.train import evaluation, recovery, trainer
from ds_pretrain.train.run import train_recipe

_train_batch = trainer.train_batch
_mean_loss = evaluation.mean_loss
_save = torch.save


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
    trainer.train_batch, evaluation.mean_loss, torch.save = _train_batch, _mean_loss, _save
    if fault is None:
        return
    if fault["kind"] == "kill":
        recovery.set_rejected_aside = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    elif ranks.rank == fault["rank"]:
        {"nan": set_to_nan, "ask": ask_to_stop, "torn": tear}[fault["kind"]](fault["step"])


def set_to_nan(step: int) -> None:
    """Sets a layer to NaN before a step, once."""
    pending = [step]

    def train_batch(engine: Any, batch: Any, *arguments: Any) -> Any:
        if pending and batch.step == pending[0]:
            pending.clear()
            with torch.no_grad():
                weight = engine.module.model.model.layers[1].mlp.up_proj.weight
                # at ZeRO 3 this rank's part of it, and the whole where that is kept
                for tensor in (weight.data, getattr(weight, "ds_tensor", weight).data):
                    tensor.fill_(float("nan"))
        return _train_batch(engine, batch, *arguments)

    trainer.train_batch = train_batch


def ask_to_stop(step: int) -> None:
    """Asks this process to stop, by a signal, between two batches of the evaluation after a step, once."""
    done = [0]

    def train_batch(engine: Any, batch: Any, *arguments: Any) -> Any:
        done[0] = batch.step + 1
        return _train_batch(engine, batch, *arguments)

    def asked(micro_batches: Iterable[Any]) -> Iterator[Any]:
        for index, micro in enumerate(micro_batches):
            assert index <= 1, "the evaluation went on"  # the answer is read one batch behind
            yield micro
            if index == 0:
                os.kill(os.getpid(), signal.SIGUSR1)

    trainer.train_batch = train_batch
    evaluation.mean_loss = lambda engine, micro: _mean_loss(engine, asked(micro) if done[0] == step else micro)


def tear(step: int) -> None:
    """Writes half of the first file of a step's checkpoint, and ends this process."""

    def save(value: object, path: str, **options: Any) -> None:
        if f"step_{step:08d}" not in str(path):
            _save(value, path, **options)
            return
        whole = io.BytesIO()
        _save(value, whole, **options)
        with Path(path).open("wb") as file:
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save


if __name__ == "__main__":
    main()
