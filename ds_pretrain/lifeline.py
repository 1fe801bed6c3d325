"""What a rank hangs by: where its launcher is killed, nobody would end it, so it takes that for a request to stop.

Above a rank stand DeepSpeed's launcher, and above that its runner, or on other machines an ssh server that ends when
the runner's connection does. A signal to the runner kills only the runner, and one that cannot be caught only what it
is sent to; the ranks would train on, unseen, and in the way of the next start.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import PurePath

import psutil

from ds_pretrain.rank_process import has_ended

POLL_SECONDS = 1.0

# set by `ds-pretrain launch`, below which there is always a runner
SUPERVISED = "DS_PRETRAIN_SUPERVISED"


def watch_launcher(grace_seconds: float) -> None:
    """Lets this process get a SIGTERM when what started it has ended, and end if it is still there after a while.

    Does nothing for a process that DeepSpeed's launcher has not started.

    Args:
        grace_seconds: how long it may take to save and leave: a rank may hang in a collective, deaf to signals.
    """
    try:
        above = psutil.Process().parents()
    except psutil.Error:  # where the system hides the processes of other users
        return
    watched = lifeline(above)
    if not watched:
        return
    lost = not any(map(_is_runner, above)) and (SUPERVISED in os.environ or is_left_behind(above[0].pid))
    threading.Thread(target=_watch, args=(watched, lost, grace_seconds), daemon=True).start()


def lifeline(above: list[psutil.Process]) -> list[psutil.Process]:
    """The processes without which a rank is an orphan.

    Args:
        above: the rank's parent, the parent's parent, and so on.

    Returns:
        The launcher and those above it up to the runner, or to the ssh server of a connection without a terminal;
        the launcher alone where there is neither; nothing where no launcher has started the rank.
    """
    if not above or "deepspeed.launcher.launch" not in _command(above[0]):
        return []
    for index, process in enumerate(above):
        if _is_runner(process) or _is_ssh_connection(process):
            return above[: index + 1]
    return above[:1]


def is_left_behind(launcher: int) -> bool:
    """Whether a launcher's runner had been killed before there was a rank to watch it, so that the system took it over.

    What the system's first process has started itself is in that one's session, or leads one of its own.

    Args:
        launcher: its process id.
    """
    try:
        parent = psutil.Process(launcher).parent()
        if parent is None or not (parent.pid == 1 or parent.name() == "systemd"):
            return False
        return os.getsid(launcher) not in (launcher, os.getsid(parent.pid))
    except (psutil.Error, OSError):
        return False


def _watch(watched: list[psutil.Process], lost: bool, grace_seconds: float) -> None:
    while not lost and not any(map(has_ended, watched)):
        time.sleep(POLL_SECONDS)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print("ds_pretrain: the launcher has ended: saving and leaving", file=sys.stderr, flush=True)
    else:  # a request to one rank is one to all: the rank that says why is to notice before all have left
        time.sleep(2 * POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_seconds)
    os._exit(1)


def _is_runner(process: psutil.Process) -> bool:
    command = _command(process)
    return "deepspeed.launcher.runner" in command or any(PurePath(word).name == "deepspeed" for word in command[:2])


def _is_ssh_connection(process: psutil.Process) -> bool:
    # a terminal's session may end without those in the background of it
    return any(word.startswith("sshd") and word.endswith("@notty") for word in _command(process)[:1])


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
