from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PRINTING = """
import sys
from pathlib import Path
from ds_pretrain.observe.terminal import outlive_readers
outlive_readers()
print("first", flush=True)
sys.stdin.readline()
for _ in range(3):
    print("second", flush=True)
    print("third", file=sys.stderr)
Path(sys.argv[1]).write_text("saved")
"""


def start(target: Path, output: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PRINTING, str(target)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)


def test_a_process_outlives_the_reader_of_its_output(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    process = start(tmp_path / "end", writing)
    os.close(writing)
    assert os.read(reading, 6) == b"first\n"
    os.close(reading)
    process.communicate(b"\n")
    assert process.returncode == 0
    assert (tmp_path / "end").read_text() == "saved"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_process_outlives_a_full_disk_below_its_output(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        process = start(tmp_path / "end", full.fileno())
    process.communicate(b"\n")
    assert process.returncode == 0
    assert (tmp_path / "end").read_text() == "saved"


def test_what_can_be_written_is_written_at_once_and_in_order(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", PRINTING, str(tmp_path / "end")],
        input=b"\n", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True,
    )  # fmt: skip
    assert process.stdout.decode().split() == ["first", *["second", "third"] * 3]
