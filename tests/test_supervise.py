"""Stopping a launcher's tree of processes, with real processes that are arranged as DeepSpeed's are."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ds_pretrain.rank_process import has_ended

BOUND_SECONDS = 30.0

# `deepspeed`: starts the launcher and takes on its exit code, but 0 where a signal ended the launcher.
RUNNER = """
    import subprocess, sys
    code = subprocess.call([sys.executable, "launcher.py", *sys.argv[1:]])
    sys.exit(max(code, 0))
"""

# `deepspeed.launcher.launch`: on TERM it ends the ranks at once and exits with 1.
LAUNCHER = """
    import os, signal, subprocess, sys, time
    ranks = [subprocess.Popen([sys.executable, sys.argv[1], f"--local_rank={n}"]) for n in range(2)]
    def end(number, frame):
        [rank.kill() for rank in ranks]
        os._exit(1)
    signal.signal(signal.SIGTERM, end)
    while None in (codes := [rank.poll() for rank in ranks]) or any(codes):
        if any(codes):
            end(None, None)
        time.sleep(0.05)
"""

# A rank saves on TERM and leaves with 0. Its child, as a data worker forked from it, shows the same command line.
RANK = """
    import os, pathlib, signal, sys, time
    name = sys.argv[1].split("=")[1]
    def save(number, frame):
        with open(f"saved_{name}", "a") as file:
            file.write(f"TERM {number}\\n")
        os.kill(worker, signal.SIGKILL)
        sys.exit(0)
    worker = os.fork()
    if worker == 0:
        signal.signal(signal.SIGTERM, lambda *_: pathlib.Path(f"worker_asked_{name}").touch())
        while True: time.sleep(0.05)
    signal.signal(signal.SIGTERM, save)
    pathlib.Path(f"ready_{name}").touch()
    while True: time.sleep(0.05)
"""

STUBBORN_RANK = """
    import pathlib, signal, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pathlib.Path("ready_" + sys.argv[1].split("=")[1]).touch()
    while True: time.sleep(0.05)
"""

# Is killed, as by the system where memory runs out, while the other one hangs and does not hear the launcher.
DYING_RANK = """
    import os, pathlib, signal, sys, time
    name = sys.argv[1].split("=")[1]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pathlib.Path("ready_" + name).touch()
    while not (name == "1" and pathlib.Path("die").exists()): time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
"""

# `deepspeed.launcher.launch` where a rank does not leave: long patience.
PATIENT = """
    import subprocess, sys, time
    ranks = [subprocess.Popen([sys.executable, sys.argv[1], f"--local_rank={n}"]) for n in range(2)]
    while not any(code := [rank.poll() for rank in ranks]):
        time.sleep(1)
    ranks[0].terminate()
    ranks[0].wait()
    sys.exit(max(map(abs, filter(None, code))))
"""

# Saves for several times as long as the supervisor takes to look again.
SLOW_RANK = """
    import pathlib, signal, sys, time
    name = sys.argv[1].split("=")[1]
    def save(number, frame):
        time.sleep(0.5)
        pathlib.Path(f"saved_{name}").touch()
        sys.exit(0)
    signal.signal(signal.SIGTERM, save)
    pathlib.Path(f"ready_{name}").touch()
    while True: time.sleep(0.05)
"""

FAILING_RANK = """
    import pathlib, signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    pathlib.Path("ready_" + sys.argv[1].split("=")[1]).touch()
    while True: time.sleep(0.05)
"""

# `ds-pretrain launch`, without its checks.
SUPERVISOR = """
    import os, sys
    from pathlib import Path
    from ds_pretrain import supervise
    from ds_pretrain.rank_process import is_deepspeed_rank
    supervise.BEREAVED_SECONDS = float(sys.argv[2])
    def announce(line):
        with open("said", "a") as file:
            file.write(line + "\\n")
    code = supervise.run_supervised(
        [sys.executable, *sys.argv[3:]], grace_seconds=float(sys.argv[1]), is_rank=is_deepspeed_rank,
        announce=announce,
    )
    sys.exit(code)
"""


class Launch:
    """A supervised launcher in a folder of its own, and every process that was ever seen below it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        scripts = {
            "runner": RUNNER,
            "launcher": LAUNCHER,
            "rank": RANK,
            "slow": SLOW_RANK,
            "stubborn": STUBBORN_RANK,
            "failing": FAILING_RANK,
            "dying": DYING_RANK,
            "patient": PATIENT,
            "supervisor": SUPERVISOR,
        }
        for name, source in scripts.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(source))
        self.seen: set[psutil.Process] = set()
        self.commands: dict[psutil.Process, list[str]] = {}

    def start(self, *command: str, grace: float = BOUND_SECONDS, bereaved: float = BOUND_SECONDS) -> None:
        root = Path(__file__).resolve().parents[1]
        self.process = subprocess.Popen(
            [sys.executable, "supervisor.py", str(grace), str(bereaved), *command],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(root)},
        )

    def start_ranks(self, script: str, grace: float = BOUND_SECONDS) -> None:
        self.start("runner.py", script, grace=grace)
        self.until(lambda: all((self.folder / f"ready_{n}").exists() for n in range(2)))
        self.look()

    def look(self) -> None:
        """Remember every process that is there now."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                self.commands[process] = process.cmdline()
                self.seen.add(process)

    def find(self, script: str) -> psutil.Process:
        return next(process for process in self.seen if script in self.commands[process])

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + BOUND_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            assert self.process.poll() is None, "ended too early"
            time.sleep(0.02)

    def end(self) -> int:
        return self.process.wait(BOUND_SECONDS)

    def files(self, pattern: str) -> list[str]:
        return sorted(path.name for path in self.folder.glob(pattern))

    @property
    def said(self) -> str:
        path = self.folder / "said"
        return path.read_text() if path.exists() else ""

    def left_over(self) -> list[psutil.Process]:
        return [process for process in self.seen if not has_ended(process)]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    launch = Launch(tmp_path)
    yield launch
    for process in launch.left_over():
        process.kill()
    if launch.process.poll() is None:
        launch.process.kill()
        launch.process.wait()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_stop_lets_every_rank_save_and_leaves_nothing(launch: Launch, stop: signal.Signals) -> None:
    launch.start_ranks("rank.py")
    assert len(launch.seen) == 6  # runner, launcher, two ranks, a worker of each

    launch.process.send_signal(stop)

    assert launch.end() == 0
    assert launch.files("saved_*") == ["saved_0", "saved_1"]
    assert [(launch.folder / name).read_text() for name in launch.files("saved_*")] == ["TERM 15\n"] * 2
    assert launch.files("worker_asked_*") == []
    assert stop.name in launch.said
    assert "every rank left by itself" in launch.said
    assert launch.left_over() == []


def test_a_rank_that_does_not_leave_is_killed_after_the_grace(launch: Launch) -> None:
    launch.start_ranks("stubborn.py", grace=0.3)

    launch.process.terminate()

    assert launch.end() == 137
    assert "2 rank(s) still there after 0.3 s" in launch.said
    assert launch.left_over() == []


def test_a_second_ctrl_c_kills_at_once(launch: Launch) -> None:
    launch.start_ranks("stubborn.py")

    launch.process.send_signal(signal.SIGINT)
    launch.until(lambda: "Ctrl-C again" in launch.said)
    launch.process.send_signal(signal.SIGINT)

    assert launch.end() == 137
    assert "second Ctrl-C" in launch.said
    assert launch.left_over() == []


def test_a_second_request_that_is_no_ctrl_c_does_not_cut_the_saving_short(launch: Launch) -> None:
    launch.start_ranks("slow.py")

    launch.process.send_signal(signal.SIGUSR1)
    launch.until(lambda: "SIGUSR1" in launch.said)
    launch.process.terminate()

    assert launch.end() == 0
    assert launch.files("saved_*") == ["saved_0", "saved_1"]


def test_a_stop_on_which_a_rank_fails_is_not_clean(launch: Launch) -> None:
    launch.start_ranks("failing.py")

    launch.process.terminate()

    assert launch.end() != 0
    assert "every rank left by itself" not in launch.said
    assert launch.left_over() == []


def test_a_stop_before_any_rank_runs(launch: Launch) -> None:
    (launch.folder / "starts.py").write_text("import pathlib, time\npathlib.Path('up').touch()\ntime.sleep(60)")
    launch.start("starts.py")
    launch.until((launch.folder / "up").exists)
    launch.look()

    launch.process.terminate()

    assert launch.end() == 128 + signal.SIGTERM
    assert "no rank is running" in launch.said
    assert launch.left_over() == []


def test_a_killed_runner_leaves_no_orphans(launch: Launch) -> None:
    launch.start_ranks("rank.py")

    launch.find("runner.py").kill()

    assert launch.end() == 128 + signal.SIGKILL
    assert launch.files("saved_*") == ["saved_0", "saved_1"]
    assert launch.left_over() == []


def test_a_killed_launcher_is_a_failure_though_the_runner_says_0(launch: Launch) -> None:
    launch.start_ranks("rank.py")

    launch.find("launcher.py").kill()

    assert launch.end() == 1
    assert launch.files("saved_*") == ["saved_0", "saved_1"]
    assert launch.left_over() == []


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(3)", 3),
        ("sys.exit(255)", 255),
        ("os.kill(os.getpid(), 15)", 143),  # this process by SIGTERM
        ("sys.exit(-9)", 137),  # a rank by SIGKILL, as the launcher passes it on
    ],
)
def test_exit_codes_of_a_launcher_that_ends_by_itself(launch: Launch, ending: str, code: int) -> None:
    (launch.folder / "ends.py").write_text(f"import os, sys\n{ending}")
    launch.start("ends.py")
    assert launch.end() == code


def test_what_a_finished_launcher_leaves_behind_is_ended(launch: Launch) -> None:
    (launch.folder / "leaves.py").write_text(
        "import pathlib, subprocess\n"
        "child = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "pathlib.Path('child').write_text(str(child.pid))"
    )
    launch.start("leaves.py")
    assert launch.end() == 0
    assert not psutil.pid_exists(int((launch.folder / "child").read_text()))


def test_a_killed_rank_is_named_and_those_that_hang_with_it_are_ended(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "8")  # as the second of several machines
    launch.start("patient.py", "dying.py", bereaved=0.5)
    launch.until(lambda: all((launch.folder / f"ready_{n}").exists() for n in range(2)))
    launch.look()

    (launch.folder / "die").touch()

    assert launch.end() == 128 + signal.SIGKILL
    assert re.search(r"rank 8 \(process \d+\) was killed by SIGKILL", launch.said), launch.said
    assert "ranks still there 0.5 s after one has died" in launch.said
    assert launch.left_over() == []


def test_a_killed_supervisor_takes_the_runner_with_it(launch: Launch) -> None:
    launch.start_ranks("rank.py")

    launch.process.kill()
    launch.process.wait(BOUND_SECONDS)

    # the ranks of this test do not watch it, as those of a run do
    deadline = time.monotonic() + BOUND_SECONDS
    while not has_ended(launch.find("runner.py")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
