"""Runs the ``deepspeed`` launcher as something that can be stopped: ranks first, and nothing left behind.

DeepSpeed starts a chain: the runner (``deepspeed``), below it ``deepspeed.launcher.launch``, below that one
process a rank. A signal to the runner kills the runner alone, and the ranks train on as orphans; a signal to
the launcher ends the ranks one after another, each with 30 s before it is killed, and makes the exit code 1.
So the chain runs in a session of its own, out of reach of a terminal's Ctrl-C. A request to stop comes to
this process, which passes it to the ranks only and all at once: they save together and leave with 0, upon
which the launcher and the runner end with 0 by themselves. This process also adopts orphans of the chain
(``PR_SET_CHILD_SUBREAPER``), so that whatever dies in between, every process is still found below it. Where it is
killed itself, the system kills the runner (``PR_SET_PDEATHSIG``); the ranks watch that, and save and leave.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import cast

import psutil

from ds_pretrain.lifeline import SUPERVISED
from ds_pretrain.rank_process import ending, ending_in_words, has_ended, rank_name

POLL_SECONDS = 0.1
LOOK_SECONDS = 2.0
# Once the last rank has left, the launcher sees it within a second, and two interpreters shut down.
LAUNCHER_SECONDS = 30.0
TERMINATE_SECONDS = 5.0
# What ranks get to tell of the loss when one has died: they may hang in a collective with it, deaf to signals, and
# the launcher gives them 30 s each, one after another.
BEREAVED_SECONDS = 15.0

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PRCTL = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


def run_supervised(
    command: Sequence[str],
    *,
    grace_seconds: float,
    is_rank: Callable[[psutil.Process], bool],
    env: Mapping[str, str] | None = None,
    announce: Callable[[str], None],
) -> int:
    """Run a launcher to its end, or stop it cleanly on SIGTERM, SIGINT, SIGUSR1 or SIGHUP.

    On the first such signal every rank gets one SIGTERM, also a rank that is only just being started. What
    has not left after ``grace_seconds`` is killed; a second Ctrl-C does so at once. Whichever way it ends, no
    process of the tree is left. Must be called from the main thread.

    Args:
        command: the launcher and its arguments.
        grace_seconds: how long the ranks may take to save and leave.
        is_rank: tells a rank of the tree, and may raise psutil.Error; of nested matches only the topmost is
            one, since a process that a rank forks shows the same command line.
        env: the environment of the command; this process's own unless given.
        announce: shows one line to the user.

    Returns:
        The launcher's exit code where it ended by itself, 128 + n where signal n ended it (or a rank, as the
        launcher reports it), 1 where it ended with 0 before its ranks. A rank that dies takes the others with it,
        and is named. After a stop: 0 where every rank left by itself and the launcher ended with 0; the stop
        signal's 128 + n where no rank ran on this machine, 143 where a rank had not begun to train; 137 where
        something had to be killed.

    Raises:
        OSError: the command could not be started.
    """
    with _stop_requests() as requests, _adopting_orphans():
        tree = _Tree(command, env, is_rank)
        try:
            return _Supervision(tree, requests, grace_seconds, announce).run()
        finally:
            tree.end(TERMINATE_SECONDS)


class _Tree:
    """The launcher and every process below it, orphans included."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str] | None, is_rank: Callable[[psutil.Process], bool]
    ) -> None:
        self._is_rank = is_rank
        self._foreign = set(psutil.Process().children())
        # Nothing in the tree reads the terminal, and out of its session nothing could.
        self.runner = subprocess.Popen(
            command,
            env={**(os.environ if env is None else env), SUPERVISED: "1"},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_prepare_runner,  # noqa: PLW1509  no thread is running yet
        )

    def processes(self) -> list[psutil.Process]:
        """Every process of the tree that is alive, parents before their children."""
        alive: list[psutil.Process] = []
        for child in psutil.Process().children():
            if child in self._foreign:
                continue
            for process in (child, *_below(child)):
                if not has_ended(process):
                    alive.append(process)
                elif process is child and child.pid != self.runner.pid:
                    with suppress(ChildProcessError):  # an adopted orphan; nobody else reaps it
                        os.waitpid(child.pid, os.WNOHANG)
        return alive

    def ranks(self) -> list[psutil.Process]:
        """The topmost processes that are ranks."""
        matches = []
        for process in self.processes():
            with suppress(psutil.Error):
                if self._is_rank(process):
                    matches.append(process)
        pids = {process.pid for process in matches}
        return [process for process in matches if _parent_pid(process) not in pids]

    def end(self, patience: float) -> None:
        """Terminate whatever is alive, and kill what is still there after a number of seconds."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.terminate()
        self._wait_empty(patience)
        self.kill()

    def kill(self) -> None:
        """Kill whatever is alive until nothing is, or only what the kernel itself cannot end just now."""
        deadline = time.monotonic() + LAUNCHER_SECONDS
        while (self.runner.poll() is None or self.processes()) and time.monotonic() < deadline:
            for process in self.processes():
                with suppress(psutil.Error):
                    process.kill()
            self._wait_empty(POLL_SECONDS)

    def _wait_empty(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (self.runner.poll() is None or self.processes()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 5)


class _Supervision:
    """The course of one run: wait; on a request or when ranks are left over, let them go; then end the rest."""

    def __init__(self, tree: _Tree, requests: list[int], grace_seconds: float, announce: Callable[[str], None]) -> None:
        self._tree = tree
        self._requests = requests
        self._grace = grace_seconds
        self._announce_line = announce
        self._names: dict[psutil.Process, str] = {}  # of every rank seen so far
        self._failure: int | None = None  # how the first rank that died did, as subprocess has it
        self._bereaved_until = math.inf
        self._next_look = 0.0

    def run(self) -> int:
        runner = self._tree.runner
        while runner.poll() is None and not self._requests and time.monotonic() < self._bereaved_until:
            self._look_after_ranks()
            time.sleep(POLL_SECONDS)
        if runner.returncode is None:
            if self._requests:
                return self._stop(signal.Signals(self._requests[0]))
            self._announce(f"ranks still there {BEREAVED_SECONDS:g} s after one has died: ending them")
            self._tree.kill()
            return _exit_code(cast("int", self._failure))
        code = _exit_code(runner.returncode)
        if self._tree.ranks():
            # DeepSpeed's runner ends with 0 also where its launcher was killed under the ranks.
            self._announce(f"the launcher ended with {code} before its ranks; stopping them")
            self._dismiss_ranks()
            return code or 1
        return code

    def _look_after_ranks(self) -> None:
        """Take note of new ranks, and of one that has died: the launcher ends the others, but does not say why."""
        if time.monotonic() >= self._next_look:
            for rank in self._tree.ranks():
                self._names.setdefault(rank, rank_name(rank))
            # that goes through all processes of the machine, whereas to ask after those known costs nothing
            self._next_look = time.monotonic() + (LOOK_SECONDS if self._names else POLL_SECONDS)
        for rank in [rank for rank in self._names if self._failure is None and has_ended(rank)]:
            code = ending(rank)
            if code:
                self._failure = code
                self._bereaved_until = time.monotonic() + BEREAVED_SECONDS
                if code < 0:
                    self._announce(
                        f"{self._names[rank]} (process {rank.pid}) {ending_in_words(code)}; ending the others"
                    )

    def _stop(self, request: signal.Signals) -> int:
        hint = "; Ctrl-C again to stop without saving" if request == signal.SIGINT else ""
        self._announce(f"{request.name}: asking the ranks to save and leave, at most {self._grace:g} s{hint}")
        ranks, all_left = self._dismiss_ranks()
        if not all_left:
            return 128 + signal.SIGKILL
        if not (ranks or self._names):
            self._announce("no rank is running on this machine: ending the launcher")
            # Not the launcher's own exit code: ended this way it says nothing about training. It is given
            # time, because on other machines it may have ranks to end.
            self._tree.end(LAUNCHER_SECONDS)
            return 128 + request
        try:
            code = _exit_code(self._tree.runner.wait(LAUNCHER_SECONDS))
        except subprocess.TimeoutExpired:
            self._announce(f"the launcher is still there {LAUNCHER_SECONDS:g} s after its ranks; ending it")
            return 128 + signal.SIGKILL
        if code == 0:
            self._announce("stopped: every rank left by itself")
        elif code == 128 + signal.SIGTERM:  # a rank that trains takes a SIGTERM as a request
            self._announce("stopped before the ranks had begun to train: there was nothing to save")
        else:
            self._announce(f"stopped, but the launcher ended with {code}: a rank failed on its way out")
        return code

    def _dismiss_ranks(self) -> tuple[int, bool]:
        """Ask every rank once to leave and wait; returns how many there were and whether all have left."""
        asked: set[psutil.Process] = set()
        deadline = time.monotonic() + self._grace
        # Looked for twice: a rank is out of sight for an instant while its dead parent's place is taken.
        while ranks := self._tree.ranks() or self._tree.ranks():
            for rank in set(ranks) - asked:
                with suppress(psutil.Error):
                    rank.terminate()
            asked.update(ranks)
            if self._requests.count(signal.SIGINT) > 1:
                self._announce(f"second Ctrl-C: killing {len(ranks)} rank(s)")
                self._tree.kill()
                return len(asked), False
            if time.monotonic() >= deadline:
                self._announce(f"{len(ranks)} rank(s) still there after {self._grace:g} s: killing them")
                self._tree.end(TERMINATE_SECONDS)
                return len(asked), False
            time.sleep(POLL_SECONDS)
        return len(asked), True

    def _announce(self, line: str) -> None:
        with suppress(OSError):  # the terminal may be what has gone
            self._announce_line(line)


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect stop signals, in the order they come, instead of dying of them."""
    requests: list[int] = []

    def take(number: int, frame: FrameType | None) -> None:
        requests.append(number)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in before.items():
        # Under nohup a hangup is ignored, and stays so.
        if not (number == signal.SIGHUP and handler == signal.SIG_IGN):
            signal.signal(number, take)
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Make orphans below this process its children, where the system is Linux."""
    if _PRCTL is None:
        yield
        return
    _PRCTL(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        _PRCTL(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _prepare_runner() -> None:
    """Let USR1 pass over the runner and those it starts, and let it die with this process.

    SLURM sends USR1 to every process of a job step: DeepSpeed's runner and launcher would die of it under the ranks,
    which take it as a request to stop.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _exit_code(code: int) -> int:
    """A shell's view of an exit code: 128 + n for death by signal n.

    The launcher passes the code of a rank killed by signal n on as -n, which the system makes 256 - n.
    """
    if code < 0:
        return 128 - code
    if 256 - signal.SIGTERM <= code <= 256 - signal.SIGINT:
        return 128 + 256 - code
    return code


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _parent_pid(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None
