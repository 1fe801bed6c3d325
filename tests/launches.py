"""Real launches of the deepspeed launcher."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
# a limit for what hangs, not for what a busy machine delays
LAUNCH_SECONDS = 900

Many = Callable[..., subprocess.CompletedProcess[str]]


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def deepspeed_command(num_ranks: int, script: Path, *arguments: str) -> list[str]:
    """The real launcher, on a port of its own."""
    flags = ["--num_gpus", str(num_ranks), "--master_port", str(free_port())]
    return [sys.executable, "-m", "deepspeed.launcher.runner", *flags, str(script), *arguments]
