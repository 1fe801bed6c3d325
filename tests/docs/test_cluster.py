"""The SLURM script over two nodes' worth of real ranks; only SLURM itself is stood in for, on this one machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from launches import LAUNCH_SECONDS, ROOT, free_port
from records import metrics
from support import TINY
from texts import write_texts

from ds_pretrain.data.prepare import prepare

SCONTROL = """\
#!/bin/sh
[ "$1 $2" = "show hostnames" ] && echo "$3" | tr ',' '\\n' || echo "$@" >>scontrol.log
"""
# A task a node. As SLURM does, a signal goes to every process of the step, not only to the tasks.
SRUN = """\
#!{python}
import os, signal, subprocess, sys
import psutil

command = sys.argv[sys.argv.index("bash"):]
tasks = [
    subprocess.Popen(command, env={{**os.environ, "SLURM_NODEID": str(node)}})
    for node in range(int(os.environ["SLURM_JOB_NUM_NODES"]))
]

def forward(number, frame):
    for process in psutil.Process().children(recursive=True):
        process.send_signal(number)

signal.signal(signal.SIGUSR1, forward)
sys.exit(max(task.wait() for task in tasks))
"""


def executable(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with a recipe far longer than the test, its corpus, and stand-ins for SLURM's commands."""
    texts = write_texts(tmp_path / "texts", 50_000)
    prepare([str(texts)], tmp_path / "mine", tokenizer="train:400", workers=1)
    recipe = {
        **TINY,
        "run": {"name": "cluster"},
        "data": {"train": "mine", "max_seq_len": 64},
        "curriculum": {"total_steps": 100_000, "batch_size": 8},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (tmp_path / "bin").mkdir()
    executable(tmp_path / "bin/scontrol", SCONTROL)
    executable(tmp_path / "bin/srun", SRUN.format(python=sys.executable))
    return tmp_path


def wait_for_steps(path: Path, job: subprocess.Popen[bytes]) -> None:
    """Until two steps stand in metrics.jsonl."""
    deadline = time.monotonic() + LAUNCH_SECONDS
    while not path.is_file() or path.read_text(encoding="utf-8").count("\n") < 2:
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_slurm_script_trains_on_two_nodes_and_is_queued_again_when_time_is_up(clone: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{clone / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VENV": str(Path(sys.executable).parents[1]),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "localhost,node-2",
        "MASTER_PORT": str(free_port()),
    }
    script = ["bash", str(ROOT / "launch/slurm.sbatch"), "recipe.yaml", "optimizer.lr=2e-3"]
    with (clone / "output").open("w", encoding="utf-8") as output:
        job = subprocess.Popen(script, cwd=clone, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_for_steps(clone / "runs/cluster/metrics.jsonl", job)
            job.send_signal(signal.SIGUSR1)
            code = job.wait(LAUNCH_SECONDS)
        finally:
            if job.poll() is None:
                job.terminate()
                job.wait(LAUNCH_SECONDS)
    text = (clone / "output").read_text(encoding="utf-8")
    assert code == 0, text
    assert "cluster: 2 ranks" in text
    assert "on 2 x cpu" in text
    saved = metrics(clone / "runs/cluster")[-1]["step"]
    assert (clone / f"runs/cluster/checkpoints/step_{saved:08d}").is_dir()
    assert text.count("stopped: every rank left by itself") == 2
    assert (clone / "scontrol.log").read_text(encoding="utf-8") == "requeue 7\n"
    assert not list(clone.glob("*.hostfile"))


# `ds-pretrain launch` of a run whose save takes longer than the time that is left: it does not leave by itself.
SLOW_LAUNCH = """\
#!{python}
import pathlib, signal, time
signal.signal(signal.SIGUSR1, lambda *_: pathlib.Path("asked").touch())
pathlib.Path("training").touch()
while not pathlib.Path("saved").exists():
    time.sleep(0.05)
"""


@pytest.fixture
def slow_job(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts the script with a stand-in for ``ds-pretrain`` that saves for as long as there is no file ``saved``."""
    (tmp_path / "bin").mkdir()
    executable(tmp_path / "bin/scontrol", SCONTROL)
    executable(tmp_path / "bin/srun", SRUN.format(python=sys.executable))
    executable(tmp_path / "bin/ds-pretrain", SLOW_LAUNCH.format(python=sys.executable))
    jobs: list[subprocess.Popen[bytes]] = []

    def start(**variables: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "VENV": str(tmp_path),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_NODELIST": "localhost",
            **variables,
        }
        jobs.append(
            subprocess.Popen(["bash", ROOT / "launch/slurm.sbatch", "recipe.yaml"], cwd=tmp_path, env=environment)
        )
        until((tmp_path / "training").exists)
        return jobs[-1]

    yield start
    (tmp_path / "saved").touch()
    for job in jobs:
        job.wait(LAUNCH_SECONDS)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LAUNCH_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def requeues(folder: Path) -> int:
    log = folder / "scontrol.log"
    return log.read_text(encoding="utf-8").count("requeue 7\n") if log.exists() else 0


def test_a_save_that_outlasts_the_time_limit_does_not_lose_the_requeue(
    slow_job: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    job = slow_job(SLURM_JOB_END_TIME=str(int(time.time()) + 12))
    job.send_signal(signal.SIGUSR1)
    until(lambda: (tmp_path / "asked").exists() and requeues(tmp_path) == 1)
    assert job.poll() is None  # and the save goes on for as long as SLURM lets it
    (tmp_path / "saved").touch()
    assert job.wait(LAUNCH_SECONDS) == 0
    assert requeues(tmp_path) == 1


def test_the_time_limits_own_signal_still_requeues(
    slow_job: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    job = slow_job(SLURM_JOB_END_TIME=str(int(time.time()) + 10_000))
    job.send_signal(signal.SIGUSR1)
    until((tmp_path / "asked").exists)
    assert requeues(tmp_path) == 0
    job.terminate()
    until(lambda: requeues(tmp_path) == 1)


def test_a_stop_for_good_is_not_requeued(slow_job: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    job = slow_job()
    job.terminate()
    until((tmp_path / "asked").exists)
    (tmp_path / "saved").touch()
    assert job.wait(LAUNCH_SECONDS) == 0
    assert requeues(tmp_path) == 0
