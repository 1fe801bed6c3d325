"""What a stage switch on the live engine costs, in median steps.

    python benchmarks/stage_switch.py [--ranks 1]

Stages alternate between the same two shapes (length, batch, accumulation, clip and learning rate all change), so that
the first kernels of a new shape are met in the first two stages only, which are left out. The cost of a switch is the
time of the first step of a stage, in which ``apply_stage`` lies, less the median of the stage's other steps. Read from
the metrics.jsonl of a run under the real launcher. The time of a run outside the steps (what is between one step and
the next: guards, metrics, progress) is read from its events, over all stages.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from small_run import PRETRAIN, QUICKSTART, Launch, step_lines, write_variant

from ds_pretrain.observe.jsonl import read_jsonl

STAGES = 30
STEPS_PER_STAGE = 8
SHAPES = (
    {"seq_len": 64, "batch_size": 16, "lr_multiplier": 1.0, "grad_clip": 5.0, "warmup_steps": 2},
    {"seq_len": 128, "batch_size": 24, "lr_multiplier": 0.5, "grad_clip": 1.0, "warmup_steps": 2},
)
MICRO_TOKENS = 1024


def run(ranks: int, folder: Path) -> tuple[list[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Trains, and gives the step lines of every stage and all events."""
    stages = [{"step": index * STEPS_PER_STAGE, **SHAPES[index % 2]} for index in range(STAGES)]
    variant = write_variant(folder, stages, STAGES * STEPS_PER_STAGE, MICRO_TOKENS)
    arguments = ["--config", str(QUICKSTART), "--config", str(variant)]
    with Launch(ranks, PRETRAIN, arguments, folder / "ours.log") as launch:
        launch.wait()
    lines = step_lines(folder / "ours/metrics.jsonl")
    by_stage = [list(group) for _, group in groupby(lines, key=lambda line: line["stage"])]
    return by_stage, read_jsonl(folder / "ours/events.jsonl")


def seconds_outside_steps(by_stage: list[list[dict[str, Any]]], events: list[dict[str, Any]]) -> float:
    """Mean seconds between two steps, from the first stage's start to the last one's."""
    starts = [datetime.fromisoformat(event["time"]) for event in events if event["event"] == "stage_start"]
    wall = (starts[-1] - starts[0]).total_seconds()
    inside = sum(float(line["step_seconds"]) for stage in by_stage[:-1] for line in stage)
    return (wall - inside) / sum(len(stage) for stage in by_stage[:-1])


def main() -> None:
    """Measures and prints a table, a line for every shape that is switched to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    print("ranks  switch to  median step ms  extra ms of the first step: median (quartiles)  in median steps")
    for ranks in arguments.ranks:
        with tempfile.TemporaryDirectory() as name:
            by_stage, events = run(ranks, Path(name))
        for shape in range(2):
            stages = [[line["step_seconds"] for line in stage] for stage in by_stage[2 + shape :: 2]]
            step = statistics.median(seconds for stage in stages for seconds in stage[1:])
            extra = [stage[0] - statistics.median(stage[1:]) for stage in stages]
            low, middle, high = statistics.quantiles(extra, n=4)
            sizes = by_stage[shape][0]
            print(
                f"{ranks:5d}{sizes['seq_len']:6d} x {sizes['batch_size']}{1e3 * step:16.1f}"
                f"{1e3 * middle:12.1f} ({1e3 * low:.1f} to {1e3 * high:.1f}){middle / step:20.3f}"
            )
            first = sizes["step_seconds"] - step
            print(f"{'':11}the first time at this shape: {1e3 * first:.1f} ms more")
        print(f"{'':11}outside the steps: {1e3 * seconds_outside_steps(by_stage, events):.2f} ms a step", flush=True)


if __name__ == "__main__":
    main()
