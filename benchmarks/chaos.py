"""Kills a run many times at random moments and compares what is left with an unbroken run: python benchmarks/chaos.py

Two ranks over the real launchers. Moments: in a step, during a save, during an evaluation, at a stage switch, before
the first step; targets: a rank, DeepSpeed's launcher and runner, `ds-pretrain launch`; by SIGKILL, SIGTERM, SIGINT and
SIGUSR1; every second checkpoint or so is damaged after a kill. Ends with 1 where the final weights differ in one bit,
a step is missing or stands twice in the history, or a process is left over.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from kills import Outcome, Run, random_kills, recipe_of
from records import metrics, steps
from support import TINY

from ds_pretrain.data.prepare import prepare
from ds_pretrain.engine.consolidate import whole_weights


def main() -> None:
    """Runs both, and compares them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(
            [str(Path(__file__).parents[1] / "ds_pretrain")], folder / "mine", tokenizer="train:400", validation=0.1
        )
        recipe = recipe_of(folder / "mine", dict(TINY), arguments.steps, 10)
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        boundaries = [stage["step"] for stage in recipe["curriculum"]["stages"]][1:]
        unbroken, broken = (Run(path, folder / kind / "run", boundaries) for kind in ("unbroken", "broken"))
        for run in (unbroken, broken):
            run.folder.parent.mkdir()
        began = time.monotonic()
        assert unbroken.finish().finished
        outcomes: list[Outcome] = []
        for kill in random_kills(arguments.kills, arguments.seed):
            outcomes.append(broken.kill(kill))
            show(len(outcomes), outcomes[-1])
            if outcomes[-1].finished:
                break
        last = broken.finish()
        report(outcomes, last, arguments.seed)
        print(f"{time.monotonic() - began:.0f} s in all", flush=True)
        compare(unbroken, broken, arguments.steps)


def show(number: int, outcome: Outcome) -> None:
    """A line on one kill."""
    kill = outcome.kill
    print(
        f"{number:3d}  {kill.number.name} to {kill.target}, {kill.moment}: {'met' if outcome.met else 'not met'}, step "
        f"{outcome.step}, exit code {outcome.code}{f', then {kill.damage}' if kill.damage else ''}",
        flush=True,
    )


def report(outcomes: list[Outcome], last: Outcome, seed: int) -> None:
    """How many kills of each moment and signal were met; ends where a process was left over or the run not finished."""
    met = [outcome.kill for outcome in outcomes if outcome.met]
    print(f"seed {seed}: {len(met)} of {len(outcomes)} kills met their moment")
    print("  moments: " + ", ".join(f"{key} {count}" for key, count in Counter(kill.moment for kill in met).items()))
    print(
        "  signals: " + ", ".join(f"{key} {count}" for key, count in Counter(kill.number.name for kill in met).items())
    )
    print("  targets: " + ", ".join(f"{key} {count}" for key, count in Counter(kill.target for kill in met).items()))
    print(
        "  damaged: " + ", ".join(f"{key} {count}" for key, count in Counter(k.damage for k in met if k.damage).items())
    )
    left = [line for outcome in outcomes for line in outcome.left_over]
    if left or not last.finished:
        sys.exit(f"left over: {left}; the last start ended with {last.code}:\n{last.text[-3000:]}")


def compare(unbroken: Run, broken: Run, total: int) -> None:
    """Ends with 1 where the two runs differ."""
    if [line["step"] for line in steps(broken.folder)] != list(range(1, total + 1)):
        sys.exit("a step is missing from the history, or stands twice in it")
    if metrics(broken.folder) != metrics(unbroken.folder):
        sys.exit("the histories differ")
    expected, found = (whole_weights(run.folder / f"checkpoints/step_{total:08d}") for run in (unbroken, broken))
    if expected.keys() != found.keys() or not all(bool((expected[name] == found[name]).all()) for name in expected):
        sys.exit("the weights differ")
    print(f"every step from 1 to {total} once, histories and weights equal to the bit")


if __name__ == "__main__":
    main()
