"""Do the guards leave healthy runs alone? Noisy runs of a tiny model, one for each seed, on one rank.

Batches are as small as 64 tokens, so that losses scatter as nobody's who pretrains do, through three stages with
abrupt changes of length and rate. Any spike or rollback is a false alarm. For each seed a line is printed: how far the
loss was above its running average at most, as a share of the way to a spike, and how far the average above its lowest.

    python benchmarks/false_rollbacks.py [--seeds 20] [--first 1] [--steps 1000] [--record DIR]

``--record`` writes every run's losses and gradient norms as JSON, which tests/guards/test_replays.py replays.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support import TINY

from ds_pretrain.config import Safety, load_recipe
from ds_pretrain.data.prepare import prepare
from ds_pretrain.engine.ranks import Ranks, start_ranks, stop_ranks
from ds_pretrain.guards import GuardState, StepFacts, after_step
from ds_pretrain.train.run import train_recipe

ROOT = Path(__file__).parents[1]


def recipe(folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """A recipe of three stages of tiny batches."""
    return {
        "run": {"name": f"seed{seed}", "output_dir": str(folder), "seed": seed},
        "model": TINY["model"],
        "data": {"train": str(folder / "corpus"), "max_seq_len": 64},
        "curriculum": {
            "total_steps": steps,
            "stages": [
                {"fraction": 0, "seq_len": 16, "batch_size": 4},
                {"fraction": 0.4, "seq_len": 32, "batch_size": 2, "lr_multiplier": 0.7},
                {"fraction": 0.7, "seq_len": 64, "batch_size": 2, "lr_multiplier": 1.2},
            ],
        },
        "optimizer": {"lr": 1.0e-2},
        "schedule": {"scope": "stage", "warmup": {"steps": 20}},
        "precision": "fp32",
        "checkpoint": {"every_steps": 500},
    }


def train(folder: Path, seed: int, steps: int, ranks: Ranks) -> list[dict[str, Any]]:
    """Trains a seed; the step lines of its metrics."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(folder, seed, steps)), encoding="utf-8")
    train_recipe(load_recipe([path], []), ranks, [])
    text = (folder / f"seed{seed}/metrics.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if "loss" in line]


def history(folder: Path, seed: int, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What the guards need of a run: stages, and losses and norms of every step."""
    stages = json.loads((folder / f"seed{seed}/plan.json").read_text(encoding="utf-8"))["stages"]
    return {
        "stages": [{key: stage[key] for key in ("start_step", "end_step", "warmup_steps")} for stage in stages],
        "loss": [round(line["loss"], 4) for line in lines],
        "grad_norm": [float(f"{line['grad_norm']:.4g}") for line in lines],
    }


def replay(run: dict[str, Any], safety: Safety) -> tuple[int, int, int, float, float]:
    """Spikes, warnings, rollbacks, and the largest loss over its average and average over its lowest."""
    state, spikes, warnings, rollbacks, loss_ratio, mean_ratio = GuardState(), 0, 0, 0, 0.0, 0.0
    for index, stage in enumerate(run["stages"]):
        for step in range(stage["start_step"], stage["end_step"]):
            grace = step < stage["start_step"] + stage["warmup_steps"]
            facts = StepFacts(step + 1, index, grace, run["loss"][step], run["grad_norm"][step], False)
            if not grace and state.stage == index and state.average.count >= 10:
                loss_ratio = max(loss_ratio, facts.loss / state.average.mean)
            state, verdict = after_step(state, facts, safety)
            spikes += verdict.spike
            warnings += len(verdict.notices)
            rollbacks += verdict.rollback is not None
            assert state.lowest_average is not None
            mean_ratio = max(mean_ratio, state.average.mean / state.lowest_average)
    return spikes, warnings, rollbacks, loss_ratio, mean_ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", "0")  # one rank, without a launcher
    ranks = start_ranks(600.0)
    alarms = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare([str(ROOT / "ds_pretrain")], folder / "corpus", tokenizer="train:400", validation=0.1, workers=1)
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            began = time.monotonic()
            lines = train(folder, seed, arguments.steps, ranks)
            assert len(lines) == arguments.steps, "the run went back"
            run = history(folder, seed, lines)
            spikes, warnings, rollbacks, loss_ratio, mean_ratio = replay(run, Safety())
            alarms += spikes + rollbacks
            print(
                f"seed {seed}: {len(lines)} steps in {time.monotonic() - began:.0f} s, loss {lines[0]['loss']:.2f} to "
                f"{lines[-1]['loss']:.2f}; loss at most {loss_ratio:.2f} x its average, average at most "
                f"{mean_ratio:.2f} x its lowest; {spikes} spikes, {warnings} warnings, {rollbacks} rollbacks",
                flush=True,
            )
            if arguments.record is not None:
                arguments.record.mkdir(parents=True, exist_ok=True)
                (arguments.record / f"noisy_{seed}.json").write_text(json.dumps(run) + "\n", encoding="utf-8")
    stop_ranks()
    print(f"{arguments.seeds} runs, {alarms} false alarms")


if __name__ == "__main__":
    main()
