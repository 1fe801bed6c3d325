"""What there is to tell of the parameter groups before a step is taken: one row a group, as JSON values."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum import Plan, StagePlan
from ds_pretrain.curriculum.unfreezing import is_trained, trained_since
from ds_pretrain.errors import RecipeError
from ds_pretrain.model.groups import GroupPlan, plan_groups
from ds_pretrain.model.layers import check_trained_layers, layer_depths, num_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def group_rows(model: PreTrainedModel, recipe: Recipe, plan: Plan, find_layers: bool = True) -> list[dict[str, Any]]:
    """Describes the groups that a recipe makes of a model.

    Args:
        model: the recipe's model, on any device.
        recipe: a checked recipe.
        plan: its resolved stages.
        find_layers: whether to look for the layers, which takes seconds on deep models; without it every group is said
            to be of ``all``. Needed where ``recipe.divides_parameters``.

    Returns:
        For every group, highest multiplier first: name, layers (as text, e.g. ``embeddings, 0-5``, numbered as in the
        model; None where the model does not tell them), parameters (how many numbers), multiplier, peak_lrs (one a
        stage; 0 where it is frozen), trained_since (for every stage, the stages since which its parameters have been
        trained without a break, each of which makes a group of its own; empty where the stage freezes all of it),
        weight_decay and parameter_names.

    Raises:
        RecipeError: as ``plan_groups``, or a stage trains more layers than there are.
    """
    sizes = {name: math.prod(getattr(part, "ds_shape", part.shape)) for name, part in model.named_parameters()}
    groups = plan_groups(model, recipe.optimizer, recipe.param_groups)
    check_trained_layers(model, plan)
    depths, layers = _depths(model, plan) if find_layers else ({}, 0)

    def row(group: GroupPlan) -> dict[str, Any]:
        inside = {depths[name] for name in group.parameters} if depths else {0}
        since = [_trained_since(plan, stage, inside) if group.lr_multiplier else [] for stage in plan.stages]
        return {
            "name": group.name,
            "layers": "all" if not find_layers else _span(inside, layers) if depths else None,
            "parameters": sum(sizes[name] for name in group.parameters),
            "multiplier": group.lr_multiplier,
            "peak_lrs": [
                stage.peak_lr * group.lr_multiplier if trained else 0.0
                for stage, trained in zip(plan.stages, since, strict=True)
            ],
            "trained_since": since,
            "weight_decay": group.weight_decay,
            "parameter_names": list(group.parameters),
        }

    return [row(group) for group in groups]


def _depths(model: PreTrainedModel, plan: Plan) -> tuple[Mapping[str, int], int]:
    """Depth of every parameter and number of layers; nothing where they cannot be told and no stage asks."""
    try:
        return layer_depths(model), num_layers(model)
    except RecipeError:
        if any(stage.trainable_layers is not None for stage in plan.stages):
            raise
        return {}, 0  # patterns need no layers


def _trained_since(plan: Plan, stage: StagePlan, depths: Collection[int]) -> list[int]:
    return sorted({trained_since(plan, stage.index, depth) for depth in depths if is_trained(stage, depth)})


def _span(depths: Collection[int], layers: int) -> str:
    """Depths as a reader of the model counts: ``embeddings, 0-5, head``."""
    inside = sorted(layers - depth for depth in depths if 0 < depth <= layers)
    ranges = ["embeddings"] if layers + 1 in depths else []
    for _, found in groupby(enumerate(inside), key=lambda pair: pair[1] - pair[0]):
        run = [index for _, index in found]
        ranges.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join([*ranges, "head"] if 0 in depths else ranges)
