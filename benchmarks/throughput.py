"""Steady tokens per second of ``launch/pretrain.py`` against a bare hand-written DeepSpeed loop over ready batches.

    python benchmarks/throughput.py [--ranks 1 2] [--seq-len 128] [--batch-size 8] [--max-micro-tokens 512]

Both have the same model and loss function, DeepSpeed JSON, shapes, ranks and threads, and both run under the real
launcher. They are started together and take turns of a few seconds, the other one paused, so that whatever else the
machine does falls on both alike. A step that a pause interrupted is not counted. Two ratios are printed:

- of the median step (``step_seconds`` of metrics.jsonl; the bare loop times each whole step, its loss read);
- of all steps over all wall-clock time of the turns, which holds everything else that a run does between steps too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from small_run import PRETRAIN, QUICKSTART, ROOT, Launch, deadline, step_lines, write_variant

WARMUP_STEPS = 20
POLL_SECONDS = 0.05


@dataclass
class Side:
    """One of the two that take turns.

    Args:
        launch: its processes.
        read: the seconds of all its steps so far.
        turns: median seconds of a step, of every turn.
        steps: seconds of the steps that no pause interrupted.
        counted: steps of all turns.
        wall: seconds of all turns.
    """

    launch: Launch
    read: Callable[[], list[float]]
    turns: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    counted: int = 0
    wall: float = 0.0

    def take_turn(self, seconds: float) -> None:
        """Runs alone for some seconds."""
        before = len(self.read())
        began = time.monotonic()
        self.launch.resume()
        time.sleep(seconds)
        self.launch.pause()
        self.wall += time.monotonic() - began
        self.launch.check()
        done = self.read()[before:]
        self.counted += len(done)
        whole = done[1:]  # the first one began before the pause
        self.steps += whole
        self.turns.append(statistics.median(whole))


def read_seconds(path: Path) -> list[float]:
    """What the bare loop has written so far."""
    return [float(line) for line in path.read_text(encoding="utf-8").split()] if path.exists() else []


def warm_up(sides: list[Side]) -> None:
    """Waits until each has done its first steps, and pauses it."""
    latest = deadline()
    waiting = list(sides)
    while waiting:
        for side in list(waiting):
            side.launch.check()
            if len(side.read()) >= WARMUP_STEPS:
                side.launch.pause()
                waiting.remove(side)
        if time.monotonic() > latest:
            raise RuntimeError("a run did not get going")
        time.sleep(POLL_SECONDS)


def measure(ranks: int, seq_len: int, batch_size: int, micro_tokens: int, turns: int, turn_seconds: float) -> None:
    """Prints the line of one number of ranks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stage = {"step": 0, "seq_len": seq_len, "batch_size": batch_size}
        variant = write_variant(folder, [stage], total_steps=1_000_000, max_tokens_per_micro_batch=micro_tokens)
        metrics, seconds = folder / "ours/metrics.jsonl", folder / "bare.txt"
        pretrain = ["--config", str(QUICKSTART), "--config", str(variant)]
        bare_loop = ["--recipe", str(QUICKSTART), "--recipe", str(variant), "--seconds", str(seconds)]
        with (
            Launch(ranks, PRETRAIN, pretrain, folder / "ours.log") as first,
            Launch(ranks, ROOT / "benchmarks/bare_loop.py", bare_loop, folder / "bare.log") as second,
        ):
            ours = Side(first, lambda: [line["step_seconds"] for line in step_lines(metrics)])
            bare = Side(second, lambda: read_seconds(seconds))
            warm_up([ours, bare])
            for turn in range(turns):
                for side in (ours, bare) if turn % 2 == 0 else (bare, ours):
                    side.take_turn(turn_seconds)
    tokens = seq_len * batch_size
    medians = [statistics.median(side.steps) for side in (ours, bare)]
    pairs = sorted(other / own for own, other in zip(ours.turns, bare.turns, strict=True))
    low, _, high = statistics.quantiles(pairs, n=4)
    wall = (ours.counted / ours.wall) / (bare.counted / bare.wall)
    print(
        f"{ranks:5d}{tokens / medians[0]:12,.0f}{tokens / medians[1]:12,.0f}{medians[1] / medians[0]:8.3f}"
        f"{statistics.median(pairs):10.3f} ({low:.3f} to {high:.3f}){wall:8.3f}"
        f"{len(ours.steps):8d}{len(bare.steps):6d}",
        flush=True,
    )


def main() -> None:
    """Measures every number of ranks and prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-micro-tokens", type=int, default=512)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--turn-seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    print(f"{arguments.seq_len} x {arguments.batch_size} tokens a step; tokens/s by the median step; ours over bare")
    print("ranks  ours tok/s  bare tok/s   ratio  by turn (quartiles)         wall   steps")
    for ranks in arguments.ranks:
        measure(
            ranks,
            arguments.seq_len,
            arguments.batch_size,
            arguments.max_micro_tokens,
            arguments.turns,
            arguments.turn_seconds,
        )


if __name__ == "__main__":
    main()
