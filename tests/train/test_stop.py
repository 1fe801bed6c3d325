from __future__ import annotations

import signal
import subprocess
import sys

import pytest

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


REQUESTS = """
import os, signal, sys
from ds_pretrain.errors import Stopped
from ds_pretrain.train.stop import StopRequest
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
stop = StopRequest()
stop.listen()
number = int(sys.argv[1])
assert not stop.requested
try:
    with stop.at_once():
        os.kill(os.getpid(), number)
        raise AssertionError("went on")
except Stopped:
    os.kill(os.getpid(), signal.SIGTERM)  # no second one is raised while the first one's way is cleaned
assert stop.requested
try:
    with stop.at_once():
        raise AssertionError("began")
except Stopped:
    print("stopped")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_long_preparations_are_cut_short(number: signal.Signals) -> None:
    command = [sys.executable, "-c", REQUESTS, str(int(number))]
    assert subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout == "stopped\n"


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    code = (
        "import os, signal\nfrom ds_pretrain.train.stop import StopRequest\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nstop = StopRequest()\nstop.listen()\n"
        "os.kill(os.getpid(), signal.SIGHUP)\nassert not stop.requested"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
