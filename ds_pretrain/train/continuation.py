"""What a recipe changes in a run that it is to continue, and whether that would change what was trained already.

Keys are of four kinds. Some change nothing in what is learned. Some say how the work is laid onto the devices: only
rounding depends on them. Those that make the plan may change what is still to come: the stages that have begun, and
the learning rates of the steps done, must come out as they were. All others define the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from ds_pretrain.config import Recipe, dump_recipe, parse_recipe
from ds_pretrain.curriculum import Plan, StagePlan, build_plan, plan_problems
from ds_pretrain.data.order import RowOrder
from ds_pretrain.data.rows import shuffle_block
from ds_pretrain.errors import RecipeError
from ds_pretrain.schedules import LearningRateSchedule

_FREE = (
    "run.output_dir",
    "tracking.",
    "checkpoint.",
    "evaluation.",
    "data.validation",
    "safety.",
    "lr_finder.",
    "data.prefetch_steps",
    "data.cache_dir",
    "deepspeed.communication_timeout_seconds",
)
_EVALUATION = ("evaluation.", "data.validation")
_LAYOUT = (
    "train.",
    "model.gradient_checkpointing",
    "model.attn_implementation",
    "model.compile",
    "model.max_logits_bytes",
    "deepspeed.zero_stage",
    "deepspeed.overlap_comm",
    "deepspeed.reduce_bucket_size",
    "deepspeed.allgather_bucket_size",
)
_PLAN = ("curriculum.", "schedule.", "optimizer.lr")
_STAGE_FIELDS = (
    "start_step",
    "seq_len",
    "batch_size",
    "lr_multiplier",
    "peak_lr",
    "min_lr",
    "warmup_steps",
    "grad_clip",
    "trainable_layers",
    "data_weights",
)
# learning rates that are compared; more would take seconds on long runs, and the shapes are smooth
_SAMPLES = 2000


@dataclass(frozen=True)
class Changes:
    """What differs from the recipe that the checkpoint was trained by, a line each with both values.

    Args:
        allowed: what may change.
        refused: what may not.
    """

    allowed: tuple[str, ...]
    refused: tuple[str, ...]


def recipe_document(recipe: Recipe) -> dict[str, Any]:
    """A whole recipe as plain JSON values, as ``config.yaml`` and every checkpoint hold it."""
    return yaml.safe_load(dump_recipe(recipe))  # type: ignore[no-any-return]


def changeable(recipe: Recipe) -> tuple[str, ...]:
    """The keys that may change on resume: how a run is evaluated too, unless its learning rate follows that."""
    follows = recipe.schedule.type == "plateau"
    return tuple(key for key in (*_FREE, *_LAYOUT) if not (follows and key in _EVALUATION))


def recipe_changes(
    saved: Mapping[str, Any],
    saved_world_size: int,
    recipe: Recipe,
    plan: Plan,
    positions: int,
    step: int,
    rollbacks: int = 0,
) -> Changes:
    """Compares a recipe with the one of a checkpoint.

    Args:
        saved: the checkpoint's recipe, as ``recipe_document`` gives it.
        saved_world_size: ranks that saved it.
        recipe: the recipe that is to continue it.
        plan: its plan for the ranks at hand.
        positions: positions of one epoch of the training corpus.
        step: optimizer steps done.
        rollbacks: how often the run went back; what it then read lies beyond the plan's end, which is fixed since.

    Returns:
        Every change, in the order of the keys.
    """
    before = _known(saved)
    old = dict(_leaves(saved if before is None else recipe_document(before)))
    new = dict(_leaves(recipe_document(recipe)))
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    free = changeable(recipe)
    planned = [key for key in changed if _is_planned(key, recipe)]
    trained: list[str] = []
    if planned or saved_world_size != plan.world_size:
        if before is None or plan_problems(before, saved_world_size, positions):
            trained = [f"{key}: cannot be compared, for the run's own recipe is of another version" for key in planned]
        else:
            was = build_plan(before, saved_world_size, positions)
            trained = _trained_changes(before, was, recipe, plan, step)
            if rollbacks and _positions(was) != _positions(plan):
                trained.append(
                    f"positions that the plan reads: {_positions(was)} in the run, {_positions(plan)} now, but what "
                    f"the run read after {rollbacks} rollback(s) begins where they end"
                )
    allowed: list[str] = []
    refused: list[str] = []
    for key in changed:
        line = f"{key}: {old.get(key)!r} in the run, {new.get(key)!r} now"
        may = (
            key.startswith(free) or (key in planned and not trained) or (key == "data.train" and _moved(before, recipe))
        )
        (allowed if may else refused).append(line)
    return Changes(tuple(allowed), (*refused, *trained))


def _trained_changes(before: Recipe, old: Plan, after: Recipe, new: Plan, step: int) -> list[str]:
    """What another plan would have done otherwise in the steps that are done, or in the stage that they end in."""
    if step > new.total_steps:
        return [f"the run has done {step} steps, and now ends after {new.total_steps}"]
    lines = []
    for was in (stage for stage in old.stages if stage.start_step < step):
        name = f"stage {was.index}, begun at step {was.start_step}"
        if was.index >= len(new.stages):
            lines.append(f"{name}: is gone now")
            continue
        now = new.stages[was.index]
        lines += [
            f"{name}: {field} {getattr(was, field)!r} in the run, {getattr(now, field)!r} now"
            for field in _STAGE_FIELDS
            if getattr(was, field) != getattr(now, field)
        ]
        if was.end_step != now.end_step and not _same_rows(was, now, step):
            lines.append(
                f"{name}: ends at step {was.end_step} in the run, {now.end_step} now, which would shuffle its rows anew"
            )
    return lines or _rate_changes(before, old, after, new, step)


def _same_rows(was: StagePlan, now: StagePlan, step: int) -> bool:
    """Whether a stage with another end has done the same rows so far, and none of those that are to come."""
    if step > now.end_step or was.end_step <= step or len(was.data_weights) > 1:  # a mixture's blocks follow the end
        return False
    last = step - was.start_step - 1
    return shuffle_block(last, was.num_steps) == shuffle_block(last, now.num_steps)


def _rate_changes(before: Recipe, old: Plan, after: Recipe, new: Plan, step: int) -> list[str]:
    rates = [LearningRateSchedule(old, before.schedule), LearningRateSchedule(new, after.schedule)]
    for done in sorted({*range(0, step, max(1, step // _SAMPLES)), step - 1} - {-1}):
        tokens = old.tokens_before(done)
        was, now = (schedule.lr(done, tokens) for schedule in rates)
        if not math.isclose(was, now, rel_tol=1e-9):
            return [f"learning rate of step {done + 1}, which is done: {was:g} in the run, {now:g} now"]
        was_momentum, now_momentum = (schedule.momentum(done, tokens) for schedule in rates)
        if was_momentum != now_momentum:
            return [f"momentum of step {done + 1}, which is done: {was_momentum} in the run, {now_momentum} now"]
    return []


def _positions(plan: Plan) -> int | tuple[int, ...]:
    """How far the plan reads, in every source."""
    (cursors,) = RowOrder(plan.stages, 0).cursors_after(range(plan.total_steps - 1, plan.total_steps))
    return cursors if len(cursors) > 1 else cursors[0]


def _is_planned(key: str, recipe: Recipe) -> bool:
    if recipe.schedule.type == "plateau" and key.startswith("schedule."):
        return False  # its rate follows what was seen, which no plan tells
    return key == "optimizer.lr" or key.startswith(_PLAN[:2])


def _moved(before: Recipe | None, after: Recipe) -> bool:
    """Whether the training text lies elsewhere and is called the same; its checksum tells whether it is the same."""
    if before is None:
        return False
    was, now = ([(source.label, source.text, source.weight) for source in one.data.train] for one in (before, after))
    return was == now


def _known(saved: Mapping[str, Any]) -> Recipe | None:
    """The saved recipe with the defaults of keys that have been added since; None where some were taken away."""
    try:
        return parse_recipe(dict(saved))
    except RecipeError:
        return None


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
