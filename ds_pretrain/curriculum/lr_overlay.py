"""A recipe overlay that gives every stage the peak learning rate found for its length and batch. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum.plan import Plan, StagePlan

Shape = tuple[int, int]
"""Sequence length in tokens and batch size in sequences: what a learning rate is found for."""


def shapes(plan: Plan) -> dict[Shape, StagePlan]:
    """Every distinct shape of a plan, in order, with the first stage that has it."""
    found: dict[Shape, StagePlan] = {}
    for stage in plan.stages:
        found.setdefault((stage.seq_len, stage.batch_size), stage)
    return found


def peak_lr_overlay(recipe: Recipe, plan: Plan, suggestions: Mapping[Shape, float]) -> dict[str, Any]:
    """The overlay as plain data: ``curriculum.stages``, each with its own ``peak_lr``.

    A later recipe file replaces a list as a whole, so every stage is stated again with all its own keys. A pacing
    function becomes the stages that it stands for, at their steps; so does a list of which the plan dropped stages.

    Args:
        recipe: the recipe that the plan was made from.
        plan: its stages.
        suggestions: peak learning rate by shape, for every shape of the plan.

    Returns:
        Values that YAML and JSON hold.
    """
    stated = recipe.curriculum.stages or ()
    if len(stated) == len(plan.stages):
        own = [stage.model_dump(mode="json", exclude_none=True) for stage in stated]
    else:
        own = [_restated(stage) for stage in plan.stages]
    for entry, stage in zip(own, plan.stages, strict=True):
        entry.pop("lr_multiplier", None)
        entry["peak_lr"] = suggestions[stage.seq_len, stage.batch_size]
    return {"curriculum": {"stages": own}}


def _restated(stage: StagePlan) -> dict[str, Any]:
    keys = ("seq_len", "batch_size", "warmup_steps", "grad_clip", "trainable_layers")
    values = {"step": stage.start_step, **{key: getattr(stage, key) for key in keys}}
    return {key: value for key, value in values.items() if value is not None}
