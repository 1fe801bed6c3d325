"""Two hosts with a cable between them: the real launcher over ssh and pdsh, and what it is worth when it is pulled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hosts import NAMES, Hosts, missing, until
from launches import LAUNCH_SECONDS, ROOT
from records import steps

from ds_pretrain.rank_process import local_rank

TIMEOUT_SECONDS = 60


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    reason = missing()
    if reason is not None:
        assert not os.environ.get("DS_PRETRAIN_MANY_NODES"), reason  # .ci/run may not do without
        pytest.skip(reason)
    # each host takes the other's lock for a leftover: what is compiled at first use has to be there
    load = "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as builder; builder().load(verbose=False)"
    subprocess.run([sys.executable, "-c", load], check=True, capture_output=True)
    with Hosts(tmp_path) as made:
        yield made


def start(hosts: Hosts, base: Path, folder: Path, output: Path) -> subprocess.Popen[bytes]:
    (folder / "hostfile").write_text("".join(f"{name} slots=1\n" for name in NAMES), encoding="utf-8")
    # what ssh does not bring along; another ninja than the one that compiled the operators would compile them again
    kept = [f"{name}={os.environ[name]}" for name in ("PATH", "TORCH_EXTENSIONS_DIR") if name in os.environ]
    variables = ["GLOO_SOCKET_IFNAME=eth0", "OMP_NUM_THREADS=1", *kept]
    (folder / ".deepspeed_env").write_text("\n".join(variables), encoding="utf-8")
    overrides = [
        f"run.output_dir={folder}",
        "curriculum.total_steps=100000",
        "checkpoint.every_steps=4",
        f"deepspeed.communication_timeout_seconds={TIMEOUT_SECONDS}",
    ]
    flags = ["--hostfile", str(folder / "hostfile"), "--master_addr", NAMES[0], "--master_port", "29500"]
    script = [str(ROOT / "launch/pretrain.py"), "--config", str(base), *overrides]
    return hosts.start(0, [sys.executable, "-m", "deepspeed.launcher.runner", *flags, *script], folder, output)


def ranks(hosts: Hosts, number: int) -> list[psutil.Process]:
    found = []
    for process in hosts.processes(number):
        with suppress(psutil.Error):
            if local_rank(process) is not None:
                found.append(process)
    return found


def test_a_run_on_two_hosts_survives_a_pulled_cable(hosts: Hosts, base: Path, tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "first.txt"

    def done() -> int:
        assert job.poll() is None, output.read_text(encoding="utf-8")
        with suppress(OSError, ValueError, IndexError):  # not there yet, or its last line half written
            return int(steps(run)[-1]["step"])
        return 0

    job = start(hosts, base, tmp_path, output)
    until(lambda: done() >= 10, 2 * LAUNCH_SECONDS)  # in the third stage
    hosts.cut()
    assert job.wait(LAUNCH_SECONDS) != 0
    text = output.read_text(encoding="utf-8")
    # each host tells, and the second one over a connection that is gone
    assert "node-a: ds_pretrain: lost contact with a rank on another machine" in text, text
    assert "start it again: a run continues from its newest checkpoint" in text
    assert "Traceback" not in text
    until(lambda: not ranks(hosts, 0) and not ranks(hosts, 1), LAUNCH_SECONDS)
    saved = max(int(path.name.removeprefix("step_")) for path in run.glob("checkpoints/step_*"))
    assert saved >= 8

    hosts.mend()
    output = tmp_path / "second.txt"
    job = start(hosts, base, tmp_path, output)
    until(lambda: (run / "events.jsonl").read_text(encoding="utf-8").count('"event": "resume"') == 1, LAUNCH_SECONDS)
    until(lambda: done() >= saved + 3, LAUNCH_SECONDS)
    (rank,) = ranks(hosts, 1)
    rank.send_signal(signal.SIGUSR1)
    assert job.wait(LAUNCH_SECONDS) == 0, output.read_text(encoding="utf-8")
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    (resumed,) = [event["step"] for event in events if event["event"] == "resume"]
    assert resumed == saved
    numbers = [line["step"] for line in steps(run)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert {line["stage"] for line in steps(run)} == {0, 1, 2}
    assert (run / f"checkpoints/step_{numbers[-1]:08d}/manifest.json").is_file()
    assert f"stopped; saved at step {numbers[-1]}" in output.read_text(encoding="utf-8")
