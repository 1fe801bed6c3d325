"""A rank's process as others on its machine see it: whether it is one, which, and how it ended."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

import psutil


def is_deepspeed_rank(process: psutil.Process) -> bool:
    """Whether a process is a rank started by DeepSpeed's launcher, which gives it ``--local_rank=N``.

    Args:
        process: a process of the launcher's tree.

    Returns:
        True for a rank.

    Raises:
        psutil.Error: the process has ended.
    """
    return local_rank(process) is not None


def local_rank(process: psutil.Process) -> int | None:
    """The number of a rank on its machine, from its command line; None where the process is no rank.

    Raises:
        psutil.Error: the process has ended.
    """
    for argument in process.cmdline():
        name, _, number = argument.partition("=")
        if name == "--local_rank" and number.isdigit():
            return int(number)
    return None


def rank_name(process: psutil.Process) -> str:
    """How messages call a rank that is alive: by its number in the whole run."""
    with suppress(psutil.Error, KeyError):
        return f"rank {process.environ()['RANK']}"
    with suppress(psutil.Error):
        return f"local rank {local_rank(process)}"
    return f"the rank in process {process.pid}"


def has_ended(process: psutil.Process) -> bool:
    """Whether a process has ended, also where nobody has taken note of it yet (a zombie)."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def ending(process: psutil.Process) -> int | None:
    """How a process ended, as long as its parent has not asked, which is when the system forgets it.

    Returns:
        The exit code, or -n where signal n killed it, as ``subprocess`` has it; None where it cannot be told.
    """
    try:
        # the name, in parentheses, may hold anything; the last field is what wait() would give
        fields = (
            Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        state, status = fields[0], int(fields[-1])
    except (OSError, ValueError, IndexError):
        return None
    if state not in "ZX":
        return None
    return -(status & 0x7F) or status >> 8


def ending_in_words(code: int) -> str:
    """``was killed by SIGKILL``, or ``ended with exit code 1``.

    Args:
        code: as ``ending`` gives it.
    """
    if code >= 0:
        return f"ended with exit code {code}"
    hint = " (by the system, where memory ran out)" if code == -signal.SIGKILL else ""
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}{hint}"
    return f"was killed by signal {-code}"
