"""Trains, breaks and restores an engine for several recipes, on the same ranks.

``sweeps.py JOBS.json``, started on every rank; each job is a list of recipe files and
overrides. Rank 0 writes what every rank saw beside the jobs.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from deepspeed.accelerator import get_accelerator

from ds_pretrain.config import load_recipe
from ds_pretrain.engine.build import Engine
from ds_pretrain.engine.ranks import gather_objects, start_ranks, stop_ranks
from ds_pretrain.engine.snapshot import EngineSnapshot
from ds_pretrain.train.setup import prepare_run, start_engine
from ds_pretrain.train.stop import StopRequest
from ds_pretrain.train.sweep import SweepTrainer

GOOD, TERRIBLE = (1e-2,) * 4, (1e30,) * 4


def digest(engine: Engine) -> str:
    """Of this rank's weights, as far as it holds them."""
    found = hashlib.sha256()
    for _, parameter in engine.module.named_parameters():
        held = getattr(parameter, "ds_tensor", parameter)  # ZeRO 3 leaves a rank its part
        found.update(held.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def main() -> None:
    jobs = Path(sys.argv[-1])
    get_accelerator().is_fp16_supported = lambda: True
    ranks = start_ranks(120.0)
    results = []
    for files, overrides in json.loads(jobs.read_text(encoding="utf-8")):
        setup = prepare_run(load_recipe([Path(file) for file in files], overrides), ranks, StopRequest(), fresh=True)
        engine, *_ = start_engine(setup, ranks)
        trainer = SweepTrainer(engine, setup, ranks)
        snapshot = EngineSnapshot(engine, jobs.parent / "state", ranks)
        courses = []
        for rates in (GOOD, TERRIBLE, GOOD, GOOD):
            before = digest(engine)
            points = trainer.train(setup.plan.stages[0], rates, lambda points: points[-1].bad)
            dropped = torch.rand(3).tolist()
            courses.append([before, [point.loss for point in points], points[-1].bad, digest(engine), dropped])
            snapshot.restore()
        snapshot.delete()
        results.append(gather_objects(courses, ranks))
    if ranks.is_main:
        (jobs.parent / "results.json").write_text(json.dumps(results), encoding="utf-8")
    stop_ranks()


if __name__ == "__main__":
    main()
