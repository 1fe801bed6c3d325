"""Optimizers and unfreezing on two ranks of one launch, over all ZeRO stages."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from launches import LAUNCH_SECONDS, ROOT, deepspeed_command
from optimizer_subjects import EVERY_CASE, may_differ


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("ranks") / "results.json"
    command = deepspeed_command(2, ROOT / "tests/runs/on_ranks.py", str(path))
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=LAUNCH_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("kind", "zero"), EVERY_CASE)
def test_three_steps_equal_those_of_the_library(results: Any, kind: str, zero: int) -> None:
    far = results["library"][f"{kind}-{zero}"]
    assert len(far) == 20
    assert sum(far.values()) <= may_differ(kind), far


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_what_stays_trained_is_kept_to_the_bit(results: Any, zero: int) -> None:
    first, second = results["unfreezing"][str(zero)]
    assert all("layers.1" in name or "norm" in name for name in first["stay"])
    assert len(first["stay"]) == 10
    assert len(second["stay"]) == 19
    for change in (first, second):
        assert change["to_the_bit"]
        assert change["not_zero"]
    assert any("since_stage_1" in name for name in first["groups"])
    assert any("since_stage_2" in name for name in second["groups"])
