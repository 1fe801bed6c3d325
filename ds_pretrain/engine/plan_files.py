"""plan.json and the DeepSpeed JSON of every stage, as ``ds-pretrain plan`` prints them and a run keeps them."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum import Plan, StagePlan
from ds_pretrain.engine.deepspeed_json import Precision, stage_json, zero_stage_warnings
from ds_pretrain.schedules import LearningRateSchedule
from ds_pretrain.schedules.plan_warnings import plan_warnings

# where a stage begins in the stream, or stands in the recipe, is no part of the published plan
_INTERNAL = {"start_cursor", "positions_per_step", "blocks_per_row", "stated_at", "data_weights"}


def plan_document(
    plan: Plan, recipe: Recipe, precision: Precision, assumed: dict[str, str] | None = None
) -> dict[str, Any]:
    """The plan as one JSON document.

    Args:
        plan: the resolved stages.
        recipe: the recipe they came from.
        precision: what ``precision: auto`` came to, or is assumed to come to.
        assumed: what could not be known without a device: key and reason.

    Returns:
        total_steps, total_tokens, world_size, data_parallel_size, precision, assumed, warnings and stages, each
        with ``max_lr``, the highest rate that its steps reach, and its DeepSpeed JSON as ``deepspeed_config`` and,
        where there are several, its sources' shares of the tokens as ``data_shares``.
    """
    schedule = LearningRateSchedule(plan, recipe.schedule)
    return {
        "total_steps": plan.total_steps,
        "total_tokens": plan.total_tokens,
        "world_size": plan.world_size,
        "data_parallel_size": plan.data_parallel_size,
        "precision": precision,
        "assumed": assumed or {},
        "warnings": [*plan.warnings, *zero_stage_warnings(recipe, precision), *plan_warnings(recipe, plan)],
        "stages": [_stage_document(stage, recipe, precision, schedule.highest(stage)) for stage in plan.stages],
    }


def write_plan_files(document: dict[str, Any], folder: Path) -> None:
    """Writes ``plan.json`` and ``deepspeed/stage_00.json`` … into ``folder``.

    Args:
        document: what ``plan_document`` gave.
        folder: run folder; created where missing.
    """
    (folder / "deepspeed").mkdir(parents=True, exist_ok=True)
    _write_json(folder / "plan.json", document)
    for stage in document["stages"]:
        _write_json(folder / "deepspeed" / f"stage_{stage['index']:02d}.json", stage["deepspeed_config"])


def _stage_document(stage: StagePlan, recipe: Recipe, precision: Precision, max_lr: float) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for field in fields(stage):
        if field.name not in _INTERNAL:
            document[field.name] = getattr(stage, field.name)
        if field.name == "peak_lr":
            # what a step of the stage really comes to, where a curve over the run has fallen, or has yet to rise
            document["max_lr"] = max_lr
    if len(stage.data_weights) > 1:
        total = sum(stage.data_weights)
        pairs = zip(recipe.data.train, stage.data_weights, strict=True)
        document["data_shares"] = {source.label: weight / total for source, weight in pairs}
    return document | {"deepspeed_config": stage_json(recipe, stage, precision)}


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
