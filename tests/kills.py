"""Kills a run over and over at chosen moments, and starts it again: what is left must be the run that nobody killed.

The process that stands for a moment is stopped (SIGSTOP) as soon as its files show the moment; only where they still
show it then does the kill count as met. ``benchmarks/chaos.py`` runs many random kills, the suite a few chosen ones.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from launches import LAUNCH_SECONDS, ROOT, free_port

from ds_pretrain.rank_process import has_ended

RANKS = 2
CHECKPOINT_EVERY = 4
EVALUATE_EVERY = 7
_BOUND_SECONDS = 4.0 * LAUNCH_SECONDS


@dataclass(frozen=True)
class Kill:
    """One kill.

    Args:
        moment: ``start``, ``step``, ``save``, ``evaluation`` or ``switch``.
        target: ``rank 0``, ``rank 1``, ``launcher``, ``runner``, or ``launch``: `ds-pretrain launch`, which is then
            what the run is started with.
        number: the signal.
        damage: what is done to the newest checkpoint afterwards: ``flip``, ``truncate``, ``remove`` or nothing.
        after: steps that are trained before the moment is waited for.
    """

    moment: str
    target: str
    number: signal.Signals
    damage: str | None = None
    after: int = 0

    @property
    def supervised(self) -> bool:
        """Whether the run is started with `ds-pretrain launch`."""
        return self.target == "launch"


@dataclass
class Outcome:
    """What came of a kill.

    Args:
        kill: the kill.
        met: whether the moment was there when the signal was sent; False also where the run finished before it.
        code: exit code of what the run was started with.
        step: the last step in the log at the time.
        text: what was printed.
        left_over: processes that were still there long after.
        finished: whether the run came to its end instead.
    """

    kill: Kill
    met: bool
    code: int
    step: int
    text: str
    left_over: list[str] = field(default_factory=list)
    finished: bool = False


def recipe_of(corpus: Path, base: dict[str, Any], steps: int, stage_steps: int) -> dict[str, Any]:
    """A recipe with a stage every so many steps, none of whose changes meets a checkpoint or an evaluation.

    Args:
        corpus: prefix of a token file with a validation part.
        base: model and optimizer.
        steps: steps of the run.
        stage_steps: steps of a stage.
    """
    shapes = [(16, 24), (32, 8), (64, 12), (32, 16)]
    starts = range(0, steps, stage_steps)
    shifted = [
        next(n for n in range(s, s + 9) if n == 0 or (n % CHECKPOINT_EVERY and n % EVALUATE_EVERY)) for s in starts
    ]
    stages = [
        {"step": start, "seq_len": shapes[index % 4][0], "batch_size": shapes[index % 4][1], "warmup_steps": 2}
        for index, start in enumerate(shifted)
    ]
    return {
        **base,
        "model": {**base["model"], "config": {**base["model"]["config"], "attention_dropout": 0.1}},
        "data": {"train": str(corpus), "validation": f"{corpus}-val", "max_seq_len": 64},
        "curriculum": {"total_steps": steps, "stages": stages},
        "schedule": {"scope": "stage"},
        "precision": "fp32",
        "train": {"max_tokens_per_micro_batch": 128},
        "evaluation": {"every_steps": EVALUATE_EVERY, "batches": 8},
        "checkpoint": {"every_steps": CHECKPOINT_EVERY, "keep_last": 4},
        "deepspeed": {"communication_timeout_seconds": 300},
    }


class Run:
    """A run that is started again and again.

    Args:
        recipe: its file.
        folder: where it is written; what is printed is kept beside.
        boundaries: the steps at which a stage starts.
    """

    def __init__(self, recipe: Path, folder: Path, boundaries: Sequence[int]) -> None:
        self.recipe = recipe
        self.folder = folder
        self.boundaries = frozenset(boundaries)
        self.starts = 0

    def finish(self) -> Outcome:
        """Lets the run come to its end."""
        return self.kill(Kill("never", "runner", signal.SIGKILL))

    def kill(self, kill: Kill) -> Outcome:
        """Starts the run, kills it at the moment, and waits until all of it has ended."""
        self.starts += 1
        before = self._log_size("events.jsonl")
        output = self.folder.parent / f"output_{self.starts:03d}.txt"
        with output.open("wb") as file:
            job = subprocess.Popen(
                self._command(kill.supervised), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        tree: dict[psutil.Process, list[str]] = {}
        try:
            met = self._strike(job, kill, before, tree)
            finished = not met and job.wait(_BOUND_SECONDS) == 0
            code = job.wait(_BOUND_SECONDS)
            left = self._left_over(tree)
        finally:
            for process in (*tree, psutil.Process(job.pid) if job.poll() is None else None):
                if process is not None and not has_ended(process):
                    process.kill()
        text = output.read_text(encoding="utf-8", errors="replace")
        step = self._last().get("step", 0)
        if kill.damage and not finished:
            damage_newest(self.folder / "checkpoints", kill.damage)
        return Outcome(kill, met, code, step, text, left, finished)

    def _strike(
        self, job: subprocess.Popen[bytes], kill: Kill, before: int, tree: dict[psutil.Process, list[str]]
    ) -> bool:
        first: int | None = None
        ranks: list[psutil.Process] = []
        next_look = 0.0
        deadline = time.monotonic() + _BOUND_SECONDS
        while job.poll() is None:
            assert time.monotonic() < deadline, f"{kill} did not come"
            trains = self._log_size("events.jsonl") > before
            if time.monotonic() >= next_look:
                _look(job.pid, tree)
                ranks = _ranks(tree)
                next_look = time.monotonic() + 0.5
            last = self._last()
            if trains and first is None and "loss" in last:
                first = last["step"]
            ready = kill.moment == "start" or (first is not None and last.get("step", 0) >= first + kill.after)
            if ready and len(ranks) == RANKS and self._is(kill.moment, trains):
                # nothing moves while it is looked at once more: what rank 0 writes shows where the run is
                ranks[0].suspend()
                if self._is(kill.moment, trains):
                    _look(job.pid, tree)
                    self._send(job, kill, tree, ranks)
                    ranks[0].resume()
                    return True
                ranks[0].resume()
            time.sleep(0.002)
        return False

    def _send(
        self,
        job: subprocess.Popen[bytes],
        kill: Kill,
        tree: dict[psutil.Process, list[str]],
        ranks: list[psutil.Process],
    ) -> None:
        if kill.target.startswith("rank"):
            ranks[int(kill.target.split()[1])].send_signal(kill.number)
        elif kill.target == "launcher":
            next(process for process, command in tree.items() if "deepspeed.launcher.launch" in command).send_signal(
                kill.number
            )
        else:
            job.send_signal(kill.number)

    def _is(self, moment: str, trains: bool) -> bool:
        if moment == "start":
            return not trains
        if moment == "step":
            return trains
        if moment == "save":
            return any((self.folder / "checkpoints").glob(".step_*.partial"))
        last = self._last()
        if moment == "evaluation":
            return trains and "loss" in last and last["step"] % EVALUATE_EVERY == 0
        return moment == "switch" and trains and last.get("step") in self.boundaries

    def _command(self, supervised: bool) -> list[str]:
        flags = ["--num_gpus", str(RANKS), "--master_port", str(free_port())]
        arguments = [str(self.recipe), f"run.output_dir={self.folder.parent}", f"run.name={self.folder.name}"]
        if supervised:
            return [
                sys.executable,
                "-c",
                "from ds_pretrain.cli import main; main()",
                "launch",
                *arguments,
                "--",
                *flags,
            ]
        script = [str(ROOT / "launch/pretrain.py"), "--config", *arguments]
        return [sys.executable, "-m", "deepspeed.launcher.runner", *flags, *script]

    def _log_size(self, name: str) -> int:
        path = self.folder / name
        return path.stat().st_size if path.is_file() else 0

    def _last(self) -> dict[str, Any]:
        """The last whole line of the metrics."""
        with suppress(OSError, ValueError, IndexError), (self.folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            line = json.loads(file.read().split(b"\n")[-2])
            return line if isinstance(line, dict) else {}
        return {}

    @staticmethod
    def _left_over(tree: dict[psutil.Process, list[str]]) -> list[str]:
        deadline = time.monotonic() + _BOUND_SECONDS
        while alive := [process for process in tree if not has_ended(process)]:
            if time.monotonic() >= deadline:
                return [" ".join(tree[process]) for process in alive]
            time.sleep(0.05)
        return []


def _look(pid: int, tree: dict[psutil.Process, list[str]]) -> None:
    with suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                tree[process] = process.cmdline()


def _ranks(tree: dict[psutil.Process, list[str]]) -> list[psutil.Process]:
    """The ranks in their order; a process that a rank forks shows the same command line, and comes later."""
    found: dict[str, psutil.Process] = {}
    for process, command in tree.items():
        for argument in command:
            if argument.startswith("--local_rank="):
                found.setdefault(argument, process)
    return [found[name] for name in sorted(found)]


def damage_newest(checkpoints: Path, how: str) -> None:
    """Damages the newest checkpoint, unless it is the only one.

    Args:
        checkpoints: the run's.
        how: ``flip`` a bit, ``truncate`` to half, or ``remove`` a rank's part.
    """
    folders = sorted(path for path in checkpoints.iterdir() if path.name.startswith("step_"))
    if len(folders) < 2:
        return
    paths = sorted((folders[-1] / "engine").glob("*zero_pp_rank_1_*"))
    if not paths:  # an earlier kill has removed it, and the start since then has not come as far as to notice
        return
    path = paths[0]
    if how == "remove":
        path.unlink()
        return
    content = bytearray(path.read_bytes())
    if how == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def random_kills(count: int, seed: int) -> Iterator[Kill]:
    """Kills at every kind of moment in turn, of random processes by random signals.

    Args:
        count: how many.
        seed: of what is drawn.
    """
    draw = random.Random(seed)
    for number in range(count):
        target = draw.choice(["rank 0", "rank 1", "rank 1", "launcher", "runner", "launch"])
        signals = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]
        if target.startswith("rank"):
            signals += [signal.SIGINT, signal.SIGUSR1]
        # the bare launcher answers a SIGTERM by ending its ranks, the bare runner by leaving them
        yield Kill(
            ("step", "save", "evaluation", "switch", "start")[number % 5],
            target,
            draw.choice(signals),
            draw.choice([None, None, None, "flip", "truncate", "remove"]),
            draw.randrange(6),
        )
