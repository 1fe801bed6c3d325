from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ds_pretrain.engine.operators import clear_leftover_locks

HOLD = """
import sys
from torch.utils.file_baton import FileBaton
baton = FileBaton(sys.argv[1])
assert baton.try_acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_only_locks_that_nobody_holds_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for name in ("killed", "working"):
        (tmp_path / "py_cpu" / name).mkdir(parents=True)
    left, held = (tmp_path / "py_cpu" / name / "lock" for name in ("killed", "working"))
    left.touch()
    command = [sys.executable, "-c", HOLD, str(held)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        clear_leftover_locks()
        assert not left.exists()
        assert held.exists()
        holder.kill()
    # now it is a leftover too
    clear_leftover_locks()
    assert not held.exists()
