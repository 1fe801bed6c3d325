"""Steady tokens per second of ``launch/pretrain.py`` against a bare hand-written DeepSpeed loop over ready batches.

    python benchmarks/throughput.py [--ranks 1 2] [--seq-len 128] [--batch-size 8] [--max-micro-tokens 512]

Both have the same model and loss function, DeepSpeed JSON, shapes, ranks and threads, both run under the real launcher,
and both stay alive and take turns of some steps, the other one paused, so that whatever else the machine does falls on
both alike. A step that a pause interrupted is not counted. Three ratios are printed, all of speeds: of the medians of
all steps (``step_seconds`` of metrics.jsonl; the bare loop times each whole step, its loss read), the median over turns
of that of two neighbouring turns, and the same of wall-clock time a step, which holds what a run does between two steps
as well.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from small_run import PRETRAIN, QUICKSTART, ROOT, Launch, deadline, step_lines, write_variant

WARMUP_STEPS = 20
POLL_SECONDS = 0.1


@dataclass
class Side:
    """One of the two that take turns.

    Args:
        launch: its processes.
        log: the file to which it writes a line after every step.
        read: the seconds of all its steps so far, from that file.
        steps: seconds of the steps that no pause interrupted, turn by turn.
        wall: wall-clock seconds of a step, of every turn.
    """

    launch: Launch
    log: Path
    read: Callable[[Path], list[float]]
    steps: list[list[float]] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def wait_for(self, lines: int) -> None:
        """Waits until so many lines are written."""
        latest = deadline()
        while self.lines() < lines:
            self.launch.check()
            if time.monotonic() > latest:
                raise RuntimeError(f"{self.log} does not grow")
            time.sleep(POLL_SECONDS)

    def lines(self) -> int:
        """Lines written so far, counted without being read as numbers: the reader shares the machine."""
        return self.log.read_bytes().count(b"\n") if self.log.exists() else 0

    def take_turn(self, steps: int) -> None:
        """Runs alone for some steps."""
        seen, before = len(self.read(self.log)), self.lines()
        began = time.monotonic()
        self.launch.resume()
        self.wait_for(before + 1 + steps)
        self.launch.pause()
        seconds = time.monotonic() - began
        done = self.read(self.log)[seen:]
        self.steps.append(done[1:])  # the first one began before the pause
        self.wall.append(seconds / len(done))


def metrics_seconds(path: Path) -> list[float]:
    """``step_seconds`` of a run."""
    return [line["step_seconds"] for line in step_lines(path)]


def plain_seconds(path: Path) -> list[float]:
    """What the bare loop has written."""
    return [float(line) for line in path.read_text(encoding="utf-8").split()]


def measure(ranks: int, seq_len: int, batch_size: int, micro_tokens: int, turns: int, steps: int) -> None:
    """Prints the line of one number of ranks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stage = {"step": 0, "seq_len": seq_len, "batch_size": batch_size}
        variant = write_variant(folder, [stage], total_steps=1_000_000, max_tokens_per_micro_batch=micro_tokens)
        seconds = folder / "bare.txt"
        pretrain = ["--config", str(QUICKSTART), "--config", str(variant)]
        bare_loop = ["--recipe", str(QUICKSTART), "--recipe", str(variant), "--seconds", str(seconds)]
        with ExitStack() as alive:

            def start(script: Path, arguments: list[str], log: Path, read: Callable[[Path], list[float]]) -> Side:
                launch = alive.enter_context(Launch(ranks, script, arguments, folder / f"{script.stem}.log"))
                side = Side(launch, log, read)
                # one after the other: a process that is paused while it compiles an operator would block the next
                side.wait_for(WARMUP_STEPS)
                launch.pause()
                return side

            ours = start(PRETRAIN, pretrain, folder / "ours/metrics.jsonl", metrics_seconds)
            bare = start(ROOT / "benchmarks/bare_loop.py", bare_loop, seconds, plain_seconds)
            for turn in range(turns):
                for side in (ours, bare) if turn % 2 == 0 else (bare, ours):
                    side.take_turn(steps)
    medians = [statistics.median(seconds for turn in side.steps for seconds in turn) for side in (ours, bare)]
    pairs = [
        statistics.median(other) / statistics.median(own) for own, other in zip(ours.steps, bare.steps, strict=True)
    ]
    wall = statistics.median(other / own for own, other in zip(ours.wall, bare.wall, strict=True))
    low, middle, high = statistics.quantiles(pairs, n=4)
    rates = "".join(f"{seq_len * batch_size / median:13,.0f}" for median in medians)
    print(
        f"{ranks:5d}{rates}{medians[1] / medians[0]:11.3f}{middle:11.3f} ({low:.3f} to {high:.3f}){wall:11.3f}",
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
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    arguments = parser.parse_args()
    print(f"{arguments.seq_len} x {arguments.batch_size} tokens a step, ratios of ours over bare")
    print("ranks   ours tok/s   bare tok/s  all steps  median turn (quartiles)     wall clock")
    for ranks in arguments.ranks:
        measure(
            ranks,
            arguments.seq_len,
            arguments.batch_size,
            arguments.max_micro_tokens,
            arguments.turns,
            arguments.steps,
        )


if __name__ == "__main__":
    main()
