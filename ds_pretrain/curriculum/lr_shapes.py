"""Which stages of a plan the learning-rate finder treats as one: those that train alike but for their rates. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ds_pretrain.config import Recipe
from ds_pretrain.config.optimization import RISING_TYPES
from ds_pretrain.curriculum.plan import Plan, StagePlan

Shape = StagePlan
"""A stage without its place in the run, its rates, and how its batch is cut. Whatever else a stage may say counts."""

_NO_PART = {
    "index": 0,
    "start_step": 0,
    "end_step": 0,
    "start_tokens": 0,
    "end_tokens": 0,
    "start_cursor": 0,
    "stated_at": 0,
    "micro_batch_size": 0,
    "grad_accum_steps": 0,
    "lr_multiplier": 0.0,
    "formula_multiplier": 0.0,
    "peak_lr": 0.0,
    "min_lr": 0.0,
}


def stage_shape(recipe: Recipe, stage: StagePlan) -> Shape:
    """The shape of a stage, with the warmup of a short training.

    That is a quarter of its steps. Only the run's first stage can ask for less, by a shorter warmup of its own: later
    ones begin at weights that know something, where fresh ones need the longer warmup.
    """
    warmup = recipe.lr_finder.trial_steps // 4
    if stage.index == 0 and recipe.schedule.type not in RISING_TYPES:
        warmup = min(warmup, stage.warmup_steps)
    changes: dict[str, Any] = {**_NO_PART, "warmup_steps": warmup}
    return replace(stage, **changes)


def shapes(recipe: Recipe, plan: Plan) -> Mapping[Shape, StagePlan]:
    """Every distinct shape of a plan, in order, with the first stage that has it."""
    found: dict[Shape, StagePlan] = {}
    for stage in plan.stages:
        found.setdefault(stage_shape(recipe, stage), stage)
    return found


def shape_values(shape: Shape) -> dict[str, Any]:
    """What a shape says, by name."""
    return {field.name: getattr(shape, field.name) for field in fields(shape) if field.name not in _NO_PART}
