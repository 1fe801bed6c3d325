"""Reads what runs wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TIMING_KEYS = frozenset({"step_seconds", "data_seconds", "tokens_per_second", "mfu"})


def metrics(run: Path) -> list[dict[str, Any]]:
    """Every line of metrics.jsonl without its timing keys."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING_KEYS} for line in lines]


def steps(run: Path) -> list[dict[str, Any]]:
    """The step lines alone."""
    return [line for line in metrics(run) if "loss" in line]
