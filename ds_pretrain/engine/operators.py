"""What DeepSpeed's compiled operators leave behind where a process is killed.

While torch compiles or loads an operator it holds a lock file open, and takes one that exists for a process at work: a
leftover would make every later start wait forever. And the buffers through which ranks on CPUs reduce would stay in
shared memory, 69 MB a rank, until the machine is restarted.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil
from filelock import FileLock
from torch.utils.cpp_extension import get_default_build_root

_SHARED_MEMORY = Path("/dev/shm")


def clear_leftover_locks() -> None:
    """Removes the leftovers among this user's operator locks; to be called before DeepSpeed is started."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    locks = [*root.glob("*/lock"), *root.glob("*/*/lock")]
    if not locks:
        return
    # one process at a time: another's new lock must not be taken for the old one
    with FileLock(root / "ds_pretrain.lock"):
        held = _open_files()
        for lock in locks:
            if str(lock.resolve()) not in held:
                lock.unlink(missing_ok=True)


def unlink_shared_buffers(master_addr: str, master_port: str) -> None:
    """Takes away the names of this run's buffers; the ranks that have opened them keep them until they end.

    Args:
        master_addr, master_port: where the ranks met, which the names hold; every rank must have opened its own.
    """
    for path in _SHARED_MEMORY.glob(f"deepspeed_allreduce_buffer_{os.getuid()}_{master_addr}_{master_port}_*"):
        path.unlink(missing_ok=True)


def _open_files() -> set[str]:
    found: set[str] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            found.update(file.path for file in process.open_files())
    return found
