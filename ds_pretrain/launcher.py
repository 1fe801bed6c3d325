"""``ds-pretrain launch``: starts the deepspeed launcher and looks after its processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from ds_pretrain.rank_process import is_deepspeed_rank
from ds_pretrain.supervise import run_supervised

_RANK_MODULE = "ds_pretrain.train.command"


def launch_run(files: Sequence[Path], overrides: Sequence[str], flags: Sequence[str], grace_seconds: float) -> int:
    """Trains a checked recipe under the deepspeed launcher.

    Args:
        files: recipe files, later ones over earlier ones.
        overrides: ``key.path=value``.
        flags: for the deepspeed launcher, e.g. ``--num_gpus 2``.
        grace_seconds: how long the ranks may take to save when this process is told to stop.

    Returns:
        0 where the run finished or was stopped and saved, else the launcher's exit code.
    """
    command = [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--quiet"),
        *flags,
        *("--module", _RANK_MODULE),
        *(part for file in files for part in ("--config", str(file))),
        *overrides,
    ]
    return run_supervised(
        command, grace_seconds=grace_seconds, is_rank=is_deepspeed_rank, announce=partial(print, flush=True)
    )


def world_size(flags: Sequence[str]) -> int:
    """Ranks that the flags ask for; 1 where they leave it to the launcher, and the ranks check again."""
    counts = {"--num_gpus": 1, "--num_nodes": 1}
    for name, value in pairwise(flags):
        if name in counts and value.isdigit():
            counts[name] = int(value)
    return counts["--num_gpus"] * counts["--num_nodes"]
