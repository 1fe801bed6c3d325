"""Trains runs on one number of ranks after another: ``python tests/runs/worlds.py JOBS.json``.

A job is either {"ranks": N, "runs": [[files, overrides], …], "fault": …} or {"cut": [run, copy, step]}, which copies a
run's folder as a kill just after the save of a step would have left it. A fault, one of ``faults.py``, comes in every
run of its job; the other ranks are killed after the one that is killed by it. The ranks are forked from this process
instead of started by the launcher, so that what they import is imported once for all of them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from faults import install

from ds_pretrain.config import load_recipe
from ds_pretrain.engine.checkpoint_files import list_checkpoints
from ds_pretrain.engine.ranks import start_ranks, stop_ranks
from ds_pretrain.train.run import train_recipe


def cut(run: Path, copy: Path, step: int) -> None:
    shutil.copytree(run, copy)
    for saved, folder in list_checkpoints(copy / "checkpoints"):
        if saved > step:
            shutil.rmtree(folder)


def train(rank: int, job: dict[str, Any], port: int) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job["ranks"]), LOCAL_SIZE=str(job["ranks"]),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    ranks = start_ranks(600.0)
    for files, overrides in job["runs"]:
        install(job.get("fault"), ranks)
        train_recipe(load_recipe([Path(file) for file in files], overrides), ranks, overrides)
    stop_ranks()


def forked(rank: int, job: dict[str, Any], port: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        train(rank, job, port)
        code = 0
    except BaseException:  # what is left by _exit() says nothing of it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    for job in json.loads(Path(sys.argv[-1]).read_text(encoding="utf-8")):
        if "cut" in job:
            run, copy, step = job["cut"]
            cut(Path(run), Path(copy), step)
            continue
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        sys.stdout.flush()
        children = {forked(rank, job, port) for rank in range(job["ranks"])}
        failed = False
        while children:
            child, status = os.wait()
            children.remove(child)
            if status and not failed:
                failed = True
                for other in children:  # they would wait for it
                    os.kill(other, signal.SIGKILL)
        if failed != (job.get("fault", {}).get("kind") == "torn"):
            sys.exit(1)


if __name__ == "__main__":
    main()
