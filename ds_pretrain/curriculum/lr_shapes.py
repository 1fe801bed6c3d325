"""Which stages of a plan the learning-rate finder treats as one: those that train alike but for their rates. Pure."""

from __future__ import annotations

import math
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


def measured_shapes(recipe: Recipe, plan: Plan) -> Mapping[Shape, StagePlan]:
    """Those of a plan's shapes that are trained with; all of them, but of a pacing function's many only some.

    These are its first and last length, and between them lengths at least a factor of 2 apart; the rates of the
    others lie between.
    """
    found = shapes(recipe, plan)
    if recipe.curriculum.pacing is None:
        return found
    chosen: dict[Shape, StagePlan] = {}
    last = plan.stages[-1].seq_len
    for shape, stage in found.items():
        lengths = [each.seq_len for each in chosen]
        apart = all(_ratio(shape.seq_len, each) >= 2 for each in (*lengths, last))
        if not chosen or apart or (shape.seq_len == last and last not in lengths):
            chosen[shape] = stage
    return chosen


def rate_between(rates: Mapping[int, float], seq_len: int) -> float:
    """The rate of a length from those of others: on a straight line between its neighbours, over log(length).

    Args:
        rates: by length; log(rate) is what lies on the line.
        seq_len: tokens, not below the least length and not above the largest.
    """
    below = max(length for length in rates if length <= seq_len)
    above = min(length for length in rates if length >= seq_len)
    if below == above:
        return rates[below]
    share = math.log(seq_len / below) / math.log(above / below)
    return math.exp((1 - share) * math.log(rates[below]) + share * math.log(rates[above]))


def _ratio(first: int, second: int) -> float:
    return max(first, second) / min(first, second)


def shape_values(shape: Shape) -> dict[str, Any]:
    """What a shape says, by name."""
    return {field.name: getattr(shape, field.name) for field in fields(shape) if field.name not in _NO_PART}
