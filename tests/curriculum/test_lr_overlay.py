"""An overlay of peak learning rates, laid over the recipe that it was made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support import PUBLISHED, TINY

from ds_pretrain.config import load_recipe
from ds_pretrain.curriculum import Plan, build_plan
from ds_pretrain.curriculum.lr_overlay import peak_lr_overlay

STAGES = [
    {"fraction": 0, "seq_len": 16, "batch_size": 16, "lr_multiplier": 2.0, "grad_clip": 3.0, "warmup_steps": 1},
    {"fraction": 0.5, "seq_len": 32},
    {"fraction": 0.75, "seq_len": 16, "batch_size": 16, "peak_lr": 1.0},
]
PACING = {"kind": "linear", "start_seq_len": 16, "fraction": 0.5, "multiple": 16}


def laid_over(tmp_path: Path, base: Any, **curriculum: Any) -> tuple[Plan, Plan, dict[str, Any]]:
    """The plans without and with the overlay, whose rates are 0.001, 0.002, … by stage, and the overlay."""
    first, second = tmp_path / "recipe.yaml", tmp_path / "overlay.yaml"
    data = {**base, "curriculum": {**base["curriculum"], **curriculum}}
    first.write_text(yaml.safe_dump(data), encoding="utf-8")
    recipe = load_recipe([first])
    before = build_plan(recipe)
    peaks = [0.001 * number for number in range(1, len(before.stages) + 1)]
    overlay = peak_lr_overlay(recipe, before, peaks)
    second.write_text(yaml.safe_dump(overlay), encoding="utf-8")
    after = build_plan(load_recipe([first, second]))
    assert [stage.peak_lr for stage in after.stages] == peaks
    return before, after, overlay


def unchanged(plan: Plan) -> list[tuple[Any, ...]]:
    keys = (
        "start_step", "end_step", "seq_len", "batch_size", "micro_batch_size", "warmup_steps", "grad_clip",
        "trainable_layers",
    )  # fmt: skip
    return [tuple(getattr(stage, key) for key in keys) for stage in plan.stages]


@pytest.mark.parametrize(
    "curriculum",
    [{}, {"stages": STAGES}, {"pacing": PACING}, {"stages": [*STAGES, {"step": 99, "seq_len": 64}]}],
    ids=["one stage", "stages", "pacing", "a dropped stage"],
)
def test_only_the_rates_change(tmp_path: Path, curriculum: dict[str, Any]) -> None:
    before, after, _ = laid_over(tmp_path, TINY, **curriculum)
    assert unchanged(after) == unchanged(before)


def test_the_published_table_too(tmp_path: Path) -> None:
    before, after, overlay = laid_over(tmp_path, PUBLISHED)
    assert unchanged(after) == unchanged(before)
    assert overlay["curriculum"]["stages"][0] == {
        "step": 0, "seq_len": 64, "batch_size": 256, "warmup_steps": 500, "grad_clip": 5.0, "peak_lr": 0.001,
    }  # fmt: skip


def test_a_stage_keeps_its_own_words(tmp_path: Path) -> None:
    _, _, overlay = laid_over(tmp_path, TINY, stages=STAGES)
    assert overlay["curriculum"]["stages"] == [
        {"fraction": 0, "seq_len": 16, "batch_size": 16, "grad_clip": 3.0, "warmup_steps": 1, "peak_lr": 0.001},
        {"fraction": 0.5, "seq_len": 32, "peak_lr": 0.002},
        {"fraction": 0.75, "seq_len": 16, "batch_size": 16, "peak_lr": 0.003},
    ]


def test_every_key_of_every_stage_is_kept_even_where_the_plan_drops_one(tmp_path: Path) -> None:
    whole = {
        "fraction": 0, "seq_len": 16, "batch_size": 16, "micro_batch_size": 4, "warmup_steps": 1, "grad_clip": 3.0,
        "trainable_layers": 1,
    }  # fmt: skip
    stages = [whole, {"fraction": 0.5, "seq_len": 32}, {"step": 99, "seq_len": 64, "lr_multiplier": 0.5}]
    before, after, overlay = laid_over(tmp_path, TINY, stages=stages)
    assert len(before.stages) == 2
    assert unchanged(after) == unchanged(before)
    assert overlay["curriculum"]["stages"] == [
        {**whole, "peak_lr": 0.001},
        {"fraction": 0.5, "seq_len": 32, "peak_lr": 0.002},
        {"step": 99, "seq_len": 64, "lr_multiplier": 0.5},
    ]
