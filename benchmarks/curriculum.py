"""What short sequences first are worth: a curriculum against runs of one length, by tokens and by time.

    python benchmarks/curriculum.py [--steps 488] [--rates 2e-3] [--lengths 128,256,512]

The quickstart's model, text, schedule and 4,096 tokens a step. Each run of one length is trained at each rate; so is
the curriculum. Losses are those of the validation text at full length. The figure is where the best curriculum passes
the end of the best run of one length, in shares of that run's tokens and of its time in steps. Evaluations are a
twentieth of the run apart, and the loss is taken as a line between them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import yaml
from small_run import PRETRAIN, QUICKSTART, ROOT, Launch, step_lines

from ds_pretrain.observe.jsonl import read_jsonl

STEP_TOKENS, FULL = 4096, 512
CURRICULUM = ((0.0, 64), (0.2, 128), (0.45, 256), (0.7, 512))


@dataclass(frozen=True)
class Run:
    """A run's validation losses at full length.

    Args:
        name: of what was trained, and at which rate.
        losses: nats per token, one an evaluation.
        tokens: trained on by then.
        seconds: spent in steps by then.
    """

    name: str
    losses: Sequence[float]
    tokens: Sequence[int]
    seconds: Sequence[float]


def train(name: str, stages: Sequence[tuple[float, int]], steps: int, rate: float, ranks: int, folder: Path) -> Run:
    """Trains stages of (where it begins, length) under the real launcher."""
    run = name.replace(" ", "-")
    recipe = {
        "run": {"name": run, "output_dir": str(folder)},
        "data": {"cache_dir": str(ROOT / "data/cache")},
        "optimizer": {"lr": rate},
        "curriculum": {
            "total_steps": steps,
            "stages": [
                {"fraction": start, "seq_len": length, "batch_size": STEP_TOKENS // length} for start, length in stages
            ],
        },
        "checkpoint": {"every_steps": None},
        "evaluation": {"every_steps": max(1, steps // 20), "batches": 20},
    }
    path = folder / f"{run}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with Launch(ranks, PRETRAIN, ["--config", str(QUICKSTART), "--config", str(path)], folder / f"{run}.log") as launch:
        launch.wait()
    metrics = folder / run / "metrics.jsonl"
    seconds = list(accumulate((float(line["step_seconds"]) for line in step_lines(metrics)), initial=0.0))
    lines = [line for line in read_jsonl(metrics) if "val_loss" in line and line["seq_len"] == FULL]
    return Run(
        name,
        [line["val_loss"] for line in lines],
        [line["tokens"] for line in lines],
        [seconds[line["step"]] for line in lines],
    )


def passed(run: Run, loss: float) -> tuple[float, float] | None:
    """Tokens and seconds at which a run first has a loss; None where it never has."""
    below = next((place for place, value in enumerate(run.losses) if value <= loss), None)
    if below is None:
        return None
    if below == 0:
        return float(run.tokens[0]), run.seconds[0]
    before = below - 1
    share = (run.losses[before] - loss) / (run.losses[before] - run.losses[below])
    return (
        run.tokens[before] + share * (run.tokens[below] - run.tokens[before]),
        run.seconds[before] + share * (run.seconds[below] - run.seconds[before]),
    )


def main() -> None:
    """Trains, and prints every run's end and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=488, help="of every run, 4,096 tokens each")
    parser.add_argument("--rates", default="2e-3", help="peak learning rates, each for every run")
    parser.add_argument("--lengths", default="128,256,512", help="of the runs of one length")
    parser.add_argument("--ranks", type=int, default=1)
    options = parser.parse_args()
    rates = [float(text) for text in options.rates.split(",")]
    wanted = [("curriculum", CURRICULUM), *((text, ((0.0, int(text)),)) for text in options.lengths.split(","))]
    runs: list[Run] = []
    print("run                 validation loss    seconds in steps")
    with tempfile.TemporaryDirectory() as folder:
        for name, stages in wanted:
            for rate in rates:
                runs.append(train(f"{name} at {rate:g}", stages, options.steps, rate, options.ranks, Path(folder)))
                print(f"{runs[-1].name:22}{runs[-1].losses[-1]:13.4f}{runs[-1].seconds[-1]:20.0f}", flush=True)
    ours = min(runs[: len(rates)], key=lambda run: run.losses[-1])
    best = min(runs[len(rates) :], key=lambda run: run.losses[-1])
    found = passed(ours, best.losses[-1])
    if found is None:
        print(f"{ours.name} never reaches the end of {best.name}")
        return
    tokens, seconds = found
    print(
        f"{ours.name} reaches the end of {best.name} in {tokens / best.tokens[-1]:.2f} of its tokens and "
        f"{seconds / best.seconds[-1]:.2f} of its time"
    )


if __name__ == "__main__":
    main()
