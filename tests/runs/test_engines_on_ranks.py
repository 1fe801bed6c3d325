"""Optimizers and unfreezing on two ranks, over all ZeRO stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launches import ROOT, RankServer
from optimizer_subjects import EVERY_CASE, may_differ


@pytest.fixture(scope="module")
def results(rank_server: RankServer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("ranks") / "results.json"
    done = rank_server.run(2, ROOT / "tests/runs/on_ranks.py", str(path))
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
