from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from ds_pretrain.curriculum.skips import Skip
from ds_pretrain.guards import Rollback, RollbackHistory


def back(from_step: int, target: int, factor: float = 0.5) -> Rollback:
    return Rollback(from_step, target, factor, "a test")


def test_an_empty_history_changes_nothing() -> None:
    history = RollbackHistory()
    assert (history.lr_factor, history.skips) == (1.0, ())
    assert not history.rejects(1000, 0)


def test_factors_multiply_and_the_data_of_what_was_taken_back_is_skipped() -> None:
    history = RollbackHistory().then(back(150, 100)).then(back(220, 200, 0.2))
    assert (history.count, history.lr_factor) == (2, 0.1)
    assert history.skips == (Skip(100, 50), Skip(200, 20))


def test_what_was_saved_after_the_target_is_rejected_until_the_run_has_gone_back() -> None:
    history = RollbackHistory((back(150, 100), back(220, 200)))
    assert history.rejects(120, known=0)
    assert not history.rejects(100, known=0)
    assert not history.rejects(120, known=1)
    assert history.rejects(210, known=1)
    assert not history.rejects(210, known=2)


def test_it_survives_json() -> None:
    history = RollbackHistory((back(150, 100), back(220, 200, 0.3)))
    saved = json.loads(json.dumps(history.to_json()))
    assert saved["count"] == 2
    assert RollbackHistory.from_json(saved) == history


@pytest.mark.parametrize(
    "changes",
    [
        {"from_step": 100},
        {"from_step": "150"},
        {"target_step": -1},
        {"target_step": True},
        {"lr_factor": 0},
        {"lr_factor": 2.0},
        {"lr_factor": float("nan")},
        {"lr_factor": None},
        {"reason": None},
        {"other": 1},
    ],
)
def test_what_no_run_could_have_had_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        RollbackHistory.from_json({"rollbacks": [asdict(back(150, 100)) | changes]})
