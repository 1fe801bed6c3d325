"""DeepSpeed's own dynamic loss scaler at work: overflow, skip, halving and growth."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

from launches import Many
from records import steps

from ds_pretrain.config import load_recipe
from ds_pretrain.curriculum import build_plan
from ds_pretrain.schedules import LearningRateSchedule

SCALER = [
    "deepspeed.fp16.initial_scale_power=24",
    "deepspeed.fp16.loss_scale_window=3",
    "deepspeed.fp16.hysteresis=1",
]


def test_overflow_skips_and_halves_and_growth_follows(train_many: Many, base: Path, tmp_path: Path) -> None:
    # ZeRO 0 is raised to 1, where DeepSpeed's fp16 gradients are right
    train_many(
        1,
        [
            [f"run.output_dir={tmp_path}", f"run.name=zero{zero}", f"deepspeed.zero_stage={zero}", "precision=fp16",
             "curriculum.total_steps=30", *SCALER]
            for zero in (0, 2)
        ],
        allow_fp16=True,
    )  # fmt: skip
    recipe = load_recipe([base], ["curriculum.total_steps=30"])
    plan = build_plan(recipe)
    schedule = LearningRateSchedule(plan, recipe.schedule)
    for zero in (0, 2):
        lines = steps(tmp_path / f"zero{zero}")
        assert len(lines) == 30
        assert lines[0]["loss_scale"] == 2.0**24
        assert lines[0]["skipped"]
        grown = 0
        for line, following in pairwise(lines):
            ratio = following["loss_scale"] / line["loss_scale"]
            assert ratio == 0.5 if line["skipped"] else ratio in (1.0, 2.0)
            grown += ratio == 2.0
        assert grown > 0
        applied = [line for line in lines if not line["skipped"]]
        assert 0 < len(applied) < 30
        # tokens and data go on over a skipped step, and the rate is that of the tokens
        for line in lines:
            before = line["step"] - 1
            assert line["tokens"] == plan.tokens_before(line["step"])
            assert line["lr"] == schedule.lr(before, plan.tokens_before(before))
        assert applied[-1]["loss"] < lines[0]["loss"] - 0.1
        # the scaler at work is no bad step
        events = [json.loads(text) for text in (tmp_path / f"zero{zero}/events.jsonl").read_text().splitlines()]
        assert "bad_step" not in {event["event"] for event in events}
    assert json.loads((tmp_path / "zero0/plan.json").read_text())["stages"][0]["deepspeed_config"][
        "zero_optimization"
    ] == {"stage": 1}
