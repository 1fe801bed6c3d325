from __future__ import annotations

import subprocess
import sys

# asked over and over, down to the last instant of the interpreter
LEAVING = """
import os, subprocess
from ds_pretrain.train.stop import StopRequest, ignore_requests
StopRequest().listen()
ignore_requests()
asking = f"kill -TERM {os.getpid()}; echo; while kill -TERM {os.getpid()} 2>/dev/null; do :; done"
subprocess.Popen(["sh", "-c", asking], stdout=subprocess.PIPE).stdout.readline()
"""


def test_a_late_request_does_not_kill_a_process_that_leaves() -> None:
    assert subprocess.run([sys.executable, "-c", LEAVING], check=False, timeout=60).returncode == 0
