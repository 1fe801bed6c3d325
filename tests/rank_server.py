"""Starts ranks by forking them, so that torch, DeepSpeed and transformers are imported once for all of a test session.

``python tests/rank_server.py N`` reads a job a line from standard input, {"ranks": …, "command": [script, argument, …],
"output": file, "errors": file}, and answers each, to file descriptor N, with the exit code of the ranks. Every rank is
a process of its own, which runs the script in the environment that the launcher would have given it; where one fails,
the others are killed. What is about the launcher itself is tested under the launcher.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import deepspeed.module_inject.auto_ep_layer  # noqa: F401
import functorch.compile  # noqa: F401
import torch
import transformers.models.auto.modeling_auto
import transformers.models.bert.modeling_bert
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama  # noqa: F401
from launches import free_port

import ds_pretrain.train.lr_finder
import ds_pretrain.train.run  # noqa: F401

_PR_SET_PDEATHSIG = 1


def rank_main(rank: int, job: dict[str, Any], port: int) -> int:
    """Runs a job's script as one of its ranks; its exit code."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, job["output"], os.O_WRONLY | os.O_APPEND | os.O_CREAT),
        (2, job["errors"], os.O_WRONLY | os.O_APPEND | os.O_CREAT),
    ):
        opened = os.open(path, flags)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job["ranks"]), LOCAL_SIZE=str(job["ranks"]),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    sys.argv = list(job["command"])
    sys.path[0] = str(Path(sys.argv[0]).parent)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def fork_rank(rank: int, job: dict[str, Any], port: int) -> int:
    """Process id of a new rank."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = rank_main(rank, job, port)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def run(job: dict[str, Any]) -> int:
    """Runs a job to its end; the exit code of the first rank that failed, or 0."""
    port, code = free_port(), 0
    ranks = {fork_rank(rank, job, port) for rank in range(job["ranks"])}
    while ranks:
        ended, status = os.wait()
        ranks.discard(ended)
        if status and not code:
            code = os.waitstatus_to_exitcode(status)
            for other in ranks:  # they would wait for it
                os.kill(other, signal.SIGKILL)
    return code


def main() -> None:
    assert not torch.distributed.is_initialized()
    gc.collect()
    gc.freeze()  # what is shared with the ranks stays so
    answers = int(sys.argv[1])
    for line in sys.stdin:
        os.write(answers, b"%d\n" % run(json.loads(line)))


if __name__ == "__main__":
    main()
