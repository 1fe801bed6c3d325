"""What the benchmarks of whole runs share: a variant of the quickstart recipe, under the real launcher."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "ds_configs/quickstart.yaml"
PRETRAIN = ROOT / "launch/pretrain.py"
# Not the code measured, but what would drown it. Threads that spin while they wait make a step several times longer
# where another program wants the cores. And glibc's allocator gives large blocks back to the system, or keeps them, by
# what a process freed before, so that two processes with the same loop can differ by 4% for as long as they live.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
START_SECONDS = 240.0  # the corpus may have to be prepared first


def write_variant(
    folder: Path, stages: Sequence[Mapping[str, Any]], total_steps: int, max_tokens_per_micro_batch: int
) -> Path:
    """Writes a recipe that, over the quickstart's, has other stages and neither evaluates nor saves on the way.

    Args:
        folder: where the recipe and the run called ``ours`` are to be.
        stages: as in ``curriculum.stages``.
        total_steps: steps of the run.
        max_tokens_per_micro_batch: tokens of a micro batch, at most.

    Returns:
        The recipe to lay over ``ds_configs/quickstart.yaml``.
    """
    path = folder / "variant.yaml"
    recipe = {
        "run": {"name": "ours", "output_dir": str(folder)},
        "data": {"cache_dir": str(ROOT / "data/cache")},
        "curriculum": {"total_steps": total_steps, "stages": [dict(stage) for stage in stages]},
        "schedule": {"scope": "stage", "warmup": {"steps": 4}},
        "train": {"max_tokens_per_micro_batch": max_tokens_per_micro_batch},
        "checkpoint": {"every_steps": None},
        "evaluation": {"every_steps": None, "batches": 1},
    }
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def step_lines(metrics: Path) -> list[dict[str, Any]]:
    """The lines of steps in a ``metrics.jsonl``, as far as it is written."""
    text = metrics.read_text(encoding="utf-8") if metrics.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if "val_loss" not in line]


class Launch:
    """A script under the ``deepspeed`` launcher that can be paused; a context manager that ends it.

    Threads per rank are the cores over the ranks, or what the environment's OMP_NUM_THREADS says.

    Args:
        num_ranks: ranks on this machine.
        script: what every rank runs.
        arguments: the script's own.
        output: file for what it prints.
    """

    def __init__(self, num_ranks: int, script: Path, arguments: Sequence[str], output: Path) -> None:
        flags = ["--num_gpus", str(num_ranks), "--master_port", str(_free_port())]
        command = [sys.executable, "-m", "deepspeed.launcher.runner", *flags, str(script), *arguments]
        self._output = output
        with output.open("wb") as target:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, stdout=target, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> Launch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._tree():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Stops every process of it where it stands."""
        for process in self._tree():
            process.suspend()

    def resume(self) -> None:
        """Lets them go on."""
        for process in self._tree():
            process.resume()

    def check(self) -> None:
        """Raises where it has ended, with what it printed."""
        if self._process.poll() is not None:
            raise RuntimeError(f"a run ended early:\n{self._output.read_text(encoding='utf-8')}")

    def wait(self) -> None:
        """Waits for a good end."""
        if self._process.wait() != 0:
            self.check()

    def _tree(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        return []


def deadline() -> float:
    """When a run that starts now has to be under way."""
    return time.monotonic() + START_SECONDS


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
