"""Checks across the fields that decide learning rates, each a pure function of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ds_pretrain.config.messages import shown
from ds_pretrain.config.optimization import OPTIMIZER_KEYS, SCHEDULE_KEYS
from ds_pretrain.config.schema import Recipe
from ds_pretrain.errors import Problem


def warmup(recipe: Recipe) -> Sequence[Problem]:
    """A warmup's length is stated once at most."""
    given = [key for key in ("tokens", "steps", "fraction") if getattr(recipe.schedule.warmup, key) is not None]
    if len(given) > 1:
        return [Problem("schedule.warmup", f"states {' and '.join(given)}; allowed: one of tokens, steps, fraction")]
    return ()


def optimizer(recipe: Recipe) -> Sequence[Problem]:
    """A key of the optimizer belongs to its type, and DeepSpeed is set up as the type needs it."""
    found, settings = recipe.optimizer, recipe.deepspeed
    problems = [
        Problem(
            f"optimizer.{key}",
            f"does nothing for type {found.type}; allowed with type {', '.join(types)}; leave it out",
        )
        for key, types in OPTIMIZER_KEYS.items()
        if found.type not in types and getattr(found, key) != type(found).model_fields[key].get_default()
    ]
    if found.type == "schedule_free_adamw":
        problems.append(
            Problem(
                "optimizer.type",
                "found schedule_free_adamw, which does not fit DeepSpeed: the averaged weights that it evaluates are "
                "in the optimizer alone, so that the model that is evaluated, saved and exported would hold others; "
                "for a run without a fixed end give adamw with schedule.type wsd, whose checkpoints before the decay "
                "can be continued",
            )
        )
    if found.type == "lamb" and (settings.zero_stage != 0 or recipe.precision != "fp32"):
        problems.append(
            Problem(
                "optimizer.type",
                "found lamb, which scales the step of each weight matrix by its norm, and ZeRO joins them to one; "
                "give deepspeed.zero_stage=0 precision=fp32, or another type",
            )
        )
    unfreezes = any(stage.trainable_layers is not None for stage in recipe.curriculum.stages or ())
    if found.type == "lamb" and unfreezes:
        problems.append(
            Problem(
                "optimizer.type",
                "found lamb, which needs ZeRO 0, where trainable_layers of a stage need ZeRO 1 or more; "
                "give another type, or leave trainable_layers out",
            )
        )
    if found.type == "muon" and unfreezes:
        problems.append(
            Problem(
                "optimizer.type",
                "found muon, whose momentum DeepSpeed keeps where it cannot be carried over to another set of trained "
                "layers; give another type, or leave trainable_layers out",
            )
        )
    return problems


def schedule(recipe: Recipe) -> Sequence[Problem]:
    """A key of the schedule belongs to its type, and what a type needs is there."""
    found = recipe.schedule
    problems = [
        Problem(
            f"schedule.{key}",
            f"found {shown(getattr(found, key))}, which does nothing for type {found.type}; "
            f"allowed with type {', '.join(types)}; leave it out",
        )
        for key, types in SCHEDULE_KEYS.items()
        if found.type not in types and getattr(found, key) != type(found).model_fields[key].get_default()
    ]
    if (
        found.type == "exponential"
        and found.k is not None
        and (found.gamma is not None or found.decay_every is not None)
    ):
        problems.append(Problem("schedule.k", "excludes gamma and decay_every; give one of the two forms"))
    if found.type == "custom" and (found.function is None or "." not in found.function):
        problems.append(
            Problem("schedule.function", f"found {shown(found.function)}; type custom needs package.module.function")
        )
    if found.type == "one_cycle" and not found.cycle_momentum:
        problems += [
            Problem(
                f"schedule.{key}",
                f"found {getattr(found, key):g}, which does nothing with cycle_momentum false; leave it out",
            )
            for key in ("base_momentum", "max_momentum")
            if getattr(found, key) != type(found).model_fields[key].get_default()
        ]
    if found.type == "one_cycle" and found.cycle_momentum and found.base_momentum > found.max_momentum:
        problems.append(
            Problem(
                "schedule.base_momentum",
                f"found {found.base_momentum:g}; allowed: up to schedule.max_momentum, {found.max_momentum:g}",
            )
        )
    if found.type == "one_cycle" and found.three_phase and found.pct_start >= 0.5:
        problems.append(
            Problem("schedule.pct_start", f"found {found.pct_start:g}; allowed with three_phase: less than 0.5")
        )
    if found.type == "plateau":
        validated = bool(recipe.data.validation) or recipe.data.validation_fraction is not None
        if not validated or recipe.evaluation.every_steps is None:
            problems.append(
                Problem(
                    "schedule.type",
                    "found plateau, which follows the validation loss; give data.validation (or "
                    "data.validation_fraction) and evaluation.every_steps",
                )
            )
    return problems


def param_groups(recipe: Recipe) -> Sequence[Problem]:
    """Factors are given where they are used."""
    settings = recipe.param_groups
    uses = {
        "backbone_multiplier": "two_group",
        "decay": "layerwise",
        "layers_per_group": "layerwise",
        "table": "patterns",
    }
    problems = [
        Problem(f"param_groups.{key}", f"does nothing without param_groups.kind; give kind: {kind}, or leave it out")
        for key, kind in uses.items()
        if key in settings.model_fields_set and "kind" not in settings.model_fields_set
    ]
    problems += [
        Problem(
            f"param_groups.{key}",
            f"found {shown(getattr(settings, key))}, which does nothing for kind {settings.kind}; "
            f"allowed with kind {kind}; leave it out",
        )
        for key, kind in uses.items()
        if "kind" in settings.model_fields_set
        and kind != settings.kind
        and getattr(settings, key) != type(settings).model_fields[key].get_default()
    ]
    if settings.kind == "patterns" and "table" not in settings.model_fields_set:
        problems.append(Problem("param_groups.table", "is required for kind patterns, e.g. {'*.wte.*': 0.1}"))
    return problems


def lr_sweep(recipe: Recipe) -> Sequence[Problem]:
    """The learning-rate sweep goes up."""
    start, end = recipe.lr_finder.start_lr, recipe.lr_finder.end_lr
    if 2 * start <= end:
        return ()
    return [Problem("lr_finder.end_lr", f"found {end:g}; allowed: at least twice lr_finder.start_lr, {start:g}")]


CHECKS: tuple[Callable[[Recipe], Sequence[Problem]], ...] = (warmup, optimizer, schedule, param_groups, lr_sweep)
