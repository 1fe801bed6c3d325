"""Ranks that outlive what started them, with real processes that are called as DeepSpeed's are."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ds_pretrain.lifeline import is_left_behind, lifeline
from ds_pretrain.rank_process import ending, ending_in_words, has_ended, local_rank

BOUND_SECONDS = 30.0
ROOT = Path(__file__).resolve().parents[1]

# The chain, each with the command line of DeepSpeed's: the runner, the launcher, two ranks.
CHAIN = """
    import subprocess, sys, time
    child = sys.argv[2:]
    if sys.argv[1] == "deepspeed.launcher.launch":
        for n in range(2):
            subprocess.Popen([*child, f"--local_rank={n}"])
    elif child:
        subprocess.Popen(child)
    while True: time.sleep(0.05)
"""

RANK = """
    import os, pathlib, signal, sys, time
    name = sys.argv[-1].split("=")[1]
    os.environ["LOCAL_RANK"] = name
    from ds_pretrain.lifeline import watch_launcher
    def save(number, frame):
        pathlib.Path(f"saved_{name}").touch()
        if "hang" not in sys.argv: sys.exit(0)
    signal.signal(signal.SIGTERM, save)
    if "agree" in sys.argv and name == "0":  # half a look behind the other
        while not pathlib.Path("ready_1").exists(): time.sleep(0.01)
        time.sleep(0.5)
    watch_launcher(0.3)
    pathlib.Path(f"ready_{name}").touch()
    while True:
        if "agree" in sys.argv and pathlib.Path("saved_1").exists(): save(0, None)
        time.sleep(0.05)
"""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Chain:
    """Runner, launcher and two ranks in a folder of their own."""

    def __init__(self, folder: Path, *arguments: str, supervised: bool = False, runner: bool = True) -> None:
        (folder / "chain.py").write_text(textwrap.dedent(CHAIN))
        (folder / "rank.py").write_text(textwrap.dedent(RANK))
        script = [sys.executable, "chain.py"]
        rank = [sys.executable, "rank.py", *arguments]
        launcher = [*script, "deepspeed.launcher.launch", *rank]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({"DS_PRETRAIN_SUPERVISED": "1"} if supervised else {})
        self.folder = folder
        self.top = subprocess.Popen(
            [*script, "deepspeed.launcher.runner" if runner else "a-shell", *launcher],
            cwd=folder,
            env=environment,
            stderr=(folder / "errors").open("w"),
        )
        until(lambda: len(self._below()) == 3)
        self.launcher, *self.ranks = self._below()

    def _below(self) -> list[psutil.Process]:
        return psutil.Process(self.top.pid).children(recursive=True)

    def ready(self) -> bool:
        return all((self.folder / f"ready_{n}").exists() for n in range(2))

    def saved(self) -> bool:
        return all((self.folder / f"saved_{n}").exists() for n in range(2))

    def end(self) -> None:
        self.top.kill()
        self.top.wait()
        for process in (self.launcher, *self.ranks):
            if not has_ended(process):
                process.kill()


# "agree": the other rank notices first, and all leave with it; why is said even so
@pytest.mark.parametrize(("killed", "arguments"), [("runner", []), ("launcher", []), ("launcher", ["agree"])])
def test_ranks_save_and_leave_where_their_launcher_or_its_runner_is_killed(
    tmp_path: Path, killed: str, arguments: list[str]
) -> None:
    chain = Chain(tmp_path, *arguments)
    try:
        until(chain.ready)
        assert not any(map(has_ended, chain.ranks))
        if killed == "runner":
            chain.top.kill()
        else:
            chain.launcher.kill()
        until(lambda: all(map(has_ended, chain.ranks)))
        assert chain.saved()
        assert (tmp_path / "errors").read_text().count("the launcher has ended: saving and leaving") == 1
    finally:
        chain.end()


def test_a_rank_that_does_not_leave_ends_after_the_grace(tmp_path: Path) -> None:
    chain = Chain(tmp_path, "hang")
    try:
        until(chain.ready)
        chain.launcher.kill()
        until(lambda: all(map(has_ended, chain.ranks)))
        assert chain.saved()
    finally:
        chain.end()


def test_a_supervised_rank_without_a_runner_has_come_too_late(tmp_path: Path) -> None:
    chain = Chain(tmp_path, supervised=True, runner=False)
    try:
        until(lambda: all(map(has_ended, chain.ranks)))
        assert chain.saved()
    finally:
        chain.end()


LEFT_BEHIND = """
import subprocess, sys
command = [sys.executable, "-c", "import time; time.sleep(60)"]
print(subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session="leads" in sys.argv).pid)
"""


@pytest.mark.parametrize("leads", [False, True])
def test_a_launcher_that_was_left_behind_before_its_ranks_came_is_known(leads: bool) -> None:
    """Its parent, which leads a session as a runner does, is gone; a service that leads its own was never left."""
    arguments = [sys.executable, "-c", LEFT_BEHIND, *(["leads"] if leads else [])]
    starter = subprocess.run(arguments, start_new_session=True, stdout=subprocess.PIPE, text=True, check=True)
    launcher = psutil.Process(int(starter.stdout))
    try:
        parent = launcher.parent()
        if parent is None or not (parent.pid == 1 or parent.name() == "systemd"):
            pytest.skip("another process takes over orphans here")
        assert is_left_behind(launcher.pid) == (not leads)
        assert not is_left_behind(os.getpid())
    finally:
        launcher.kill()


class Named:
    """Stands for a process of which only the command line matters."""

    def __init__(self, *command: str) -> None:
        self.command = command

    def cmdline(self) -> list[str]:
        return list(self.command)


LAUNCHER = Named("python", "-u", "-m", "deepspeed.launcher.launch", "--node_rank=1")
SHELL = Named("bash")


@pytest.mark.parametrize(
    ("above", "watched"),
    [
        ([SHELL], 0),  # started by hand
        ([LAUNCHER, Named("python", "/opt/bin/deepspeed", "--num_gpus", "2"), SHELL], 2),
        ([LAUNCHER, Named("bash", "-c", "cd /x; python"), Named("sshd: root@notty"), Named("sshd: /usr/sbin/sshd")], 3),
        # a terminal's session ends when its user logs out, and what nohup started in it goes on
        ([LAUNCHER, SHELL, Named("sshd: root@pts/0"), Named("sshd: /usr/sbin/sshd")], 1),
    ],
)
def test_what_a_rank_hangs_by(above: list[psutil.Process], watched: int) -> None:
    assert lifeline(above) == above[:watched]


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", -9, "was killed by SIGKILL (by the system, where memory ran out)"),
        ("import sys; sys.exit(3)", 3, "ended with exit code 3"),
    ],
)
def test_how_a_process_ended_before_its_parent_asked(code: str, status: int, words: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", code, "--local_rank=7"])
    rank = psutil.Process(process.pid)
    until(lambda: has_ended(rank))
    assert ending(rank) == status
    assert ending_in_words(status) == words
    process.wait()
    assert ending(rank) is None
    with pytest.raises(psutil.Error):
        local_rank(rank)
