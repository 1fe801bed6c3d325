"""The loss histories of healthy runs, recorded: the guards must leave every one of them alone.

``noisy_*``: benchmarks/false_rollbacks.py --record, batches of 64 tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_pretrain.config import Safety
from ds_pretrain.guards import GuardState, StepFacts, Verdict, after_step

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))


def replay(run: dict[str, Any], safety: Safety, factor: float = 1.0, broken_at: int | None = None) -> list[Verdict]:
    """The verdicts up to the first rollback; losses from ``broken_at`` on are multiplied by ``factor``."""
    state, verdicts = GuardState(), []
    for index, stage in enumerate(run["stages"]):
        for step in range(stage["start_step"], stage["end_step"]):
            grace = step < stage["start_step"] + stage["warmup_steps"]
            loss = run["loss"][step] * (factor if broken_at is not None and step >= broken_at else 1.0)
            state, verdict = after_step(
                state, StepFacts(step + 1, index, grace, loss, run["grad_norm"][step], False), safety
            )
            verdicts.append(verdict)
            if verdict.rollback is not None:
                return verdicts
    return verdicts


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_healthy_runs_are_left_alone(path: Path) -> None:
    run = json.loads(path.read_text(encoding="utf-8"))
    assert len(run["loss"]) == run["stages"][-1]["end_step"] >= 200
    verdicts = replay(run, Safety())
    assert len(verdicts) == len(run["loss"])
    assert not any(verdict.spike for verdict in verdicts)
    assert not any(notice.kind == "drift" for verdict in verdicts for notice in verdict.notices)
    # stricter settings than the defaults, too
    assert len(replay(run, Safety(spike_sigma=8.0, spike_factor=1.7))) == len(run["loss"])


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_the_same_runs_broken_are_not(path: Path) -> None:
    run = json.loads(path.read_text(encoding="utf-8"))
    broken_at = len(run["loss"]) // 2
    verdicts = replay(run, Safety(spike_patience=50), factor=2.5, broken_at=broken_at)
    assert verdicts[-1].rollback is not None
    assert broken_at < len(verdicts) <= broken_at + 100


def test_there_are_histories() -> None:
    assert len(HISTORIES) >= 6
