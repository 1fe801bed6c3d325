"""A recipe overlay that gives every stage the peak learning rate found for it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum.plan import Plan, StagePlan


def peak_lr_overlay(recipe: Recipe, plan: Plan, peaks: Sequence[float]) -> dict[str, Any]:
    """The overlay as plain data: ``curriculum.stages``, each with its own ``peak_lr``.

    A later recipe file replaces a list as a whole, so every stage is stated again with all its own keys, those that
    the plan dropped too. A pacing function becomes the stages that it stands for, at their steps.

    Args:
        recipe: the recipe that the plan was made from.
        plan: its stages.
        peaks: peak learning rate of every stage of the plan.

    Returns:
        Values that YAML and JSON hold.
    """
    found = {stage.stated_at: peak for stage, peak in zip(plan.stages, peaks, strict=True)}
    if not recipe.curriculum.stages:
        stages = [{**_restated(stage), "peak_lr": peak} for stage, peak in zip(plan.stages, peaks, strict=True)]
    else:
        stages = []
        for index, stage in enumerate(recipe.curriculum.stages):
            stated = stage.model_dump(mode="json", exclude_none=True)
            if index in found:
                stated.pop("lr_multiplier", None)
                stated["peak_lr"] = found[index]
            stages.append(stated)
    return {"curriculum": {"stages": stages}}


def _restated(stage: StagePlan) -> dict[str, Any]:
    keys = ("seq_len", "batch_size", "warmup_steps", "grad_clip")
    return {"step": stage.start_step, **{key: getattr(stage, key) for key in keys}}
