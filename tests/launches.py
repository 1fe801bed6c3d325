"""Ranks for tests: started by the real deepspeed launcher, or forked, which takes a fraction of the time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
# a limit for what hangs, not for what a busy machine delays
LAUNCH_SECONDS = 1200

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


def launch(num_ranks: int, script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script on ranks of the real launcher."""
    return subprocess.run(
        deepspeed_command(num_ranks, script, *arguments),
        cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=LAUNCH_SECONDS, check=False,
    )  # fmt: skip


class RankServer:
    """Runs scripts on forked ranks (see ``rank_server.py``), one job at a time.

    Args:
        folder: for what the ranks print.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._jobs = 0
        self._server: subprocess.Popen[str] | None = None
        self._answers: IO[str] | None = None

    def run(self, num_ranks: int, script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a script to its end; what all ranks printed, and the exit code of the first that failed."""
        if self._server is None or self._answers is None:
            self._server, self._answers = self._start()
        self._jobs += 1
        output, errors = (self._folder / f"{self._jobs}.{name}" for name in ("out", "err"))
        command = [str(script), *arguments]
        job = {"ranks": num_ranks, "command": command, "output": str(output), "errors": str(errors)}
        limit = threading.Timer(LAUNCH_SECONDS, os.killpg, (self._server.pid, signal.SIGKILL))
        limit.start()
        try:
            assert self._server.stdin is not None
            self._server.stdin.write(f"{json.dumps(job)}\n")
            answer = self._answers.readline()
        finally:
            limit.cancel()
        texts = [path.read_text(encoding="utf-8") if path.exists() else "" for path in (output, errors)]
        assert answer, f"the server of ranks has ended\n{texts[0]}{texts[1]}"
        return subprocess.CompletedProcess(command, int(answer), *texts)

    def close(self) -> None:
        """Ends the server."""
        if self._server is not None and self._answers is not None:
            self._server.communicate()
            self._answers.close()

    @staticmethod
    def _start() -> tuple[subprocess.Popen[str], IO[str]]:
        answers, answer = os.pipe()
        server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/rank_server.py"), str(answer)],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, bufsize=1, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[answer],
        )  # fmt: skip
        os.close(answer)
        return server, os.fdopen(answers, encoding="utf-8")
