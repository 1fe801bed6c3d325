"""Tells of a rank that is gone: what the others see is an error from the depths of the network."""

from __future__ import annotations

import os
import re

import psutil
import torch.distributed as dist

from ds_pretrain.rank_process import has_ended, local_rank

_ADDRESS = re.compile(r"\[[0-9a-fA-F:.]+\]:\d+")


def is_lost_contact(error: BaseException) -> bool:
    """Whether an error comes from a connection between ranks that broke or waited in vain."""
    # gloo's errors have no type of their own, but each begins with its place in gloo's sources
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))


def lost_contact(error: BaseException, rank: int) -> str | None:
    """What this rank has to say of a lost connection.

    Args:
        error: one that ``is_lost_contact``.
        rank: this process's rank.

    Returns:
        A sentence; None where another rank of this machine says it.
    """
    here = int(os.environ.get("LOCAL_RANK", "0"))
    size = int(os.environ.get("LOCAL_SIZE", "1"))
    alive = _local_ranks_alive() | {here}
    if min(alive) != here:
        return None
    first = rank - here  # the launcher numbers a machine's ranks one after another
    gone = [first + number for number in range(size) if number not in alive]
    if gone:
        names = ", ".join(f"rank {number}" for number in gone)
        return f"{names} of this machine ended unexpectedly (killed, or by its own error), so that all ranks must end"
    reason = str(error).splitlines()[0]
    address = _ADDRESS.search(reason)
    peer = f", last heard of at {address.group()}" if address else ""
    return f"lost contact with a rank on another machine{peer} ({reason[reason.rfind('] ') + 2 :][:200]})"


def _local_ranks_alive() -> set[int]:
    """The ranks below this one's launcher that have not ended, by their numbers on this machine."""
    found = set()
    try:
        for process in psutil.Process(os.getppid()).children():
            number = None if has_ended(process) else local_rank(process)
            if number is not None:
                found.add(number)
    except psutil.Error:
        pass
    return found
