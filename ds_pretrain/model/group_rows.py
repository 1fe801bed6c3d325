"""What there is to tell of the parameter groups before a step is taken: one row a group, as JSON values."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum import Plan
from ds_pretrain.errors import RecipeError
from ds_pretrain.model.groups import plan_groups
from ds_pretrain.model.layers import layer_depths, num_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def group_rows(model: PreTrainedModel, recipe: Recipe, plan: Plan) -> list[dict[str, Any]]:
    """Describes the groups that a recipe makes of a model.

    Args:
        model: the recipe's model, on any device.
        recipe: a checked recipe.
        plan: its resolved stages.

    Returns:
        For every group, highest multiplier first: name, layers (as text, e.g. ``embeddings, 0-5``, numbered as in the
        model; None where the model does not tell them), parameters (how many numbers), multiplier, peak_lrs (one a
        stage), weight_decay and parameter_names.

    Raises:
        RecipeError: as ``plan_groups``.
    """
    sizes = {name: math.prod(getattr(part, "ds_shape", part.shape)) for name, part in model.named_parameters()}
    groups = plan_groups(model, recipe.optimizer, recipe.param_groups)
    try:
        depths, layers = layer_depths(model), num_layers(model)
    except RecipeError:  # patterns need no layers
        depths, layers = {}, 0
    return [
        {
            "name": group.name,
            "layers": _span({depths[name] for name in group.parameters}, layers) if depths else None,
            "parameters": sum(sizes[name] for name in group.parameters),
            "multiplier": group.lr_multiplier,
            "peak_lrs": [stage.peak_lr * group.lr_multiplier for stage in plan.stages],
            "weight_decay": group.weight_decay,
            "parameter_names": list(group.parameters),
        }
        for group in groups
    ]


def _span(depths: Collection[int], layers: int) -> str:
    """Depths as a reader of the model counts: ``embeddings, 0-5, head``."""
    inside = sorted(layers - depth for depth in depths if 0 < depth <= layers)
    ranges = ["embeddings"] if layers + 1 in depths else []
    for _, found in groupby(enumerate(inside), key=lambda pair: pair[1] - pair[0]):
        run = [index for _, index in found]
        ranges.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join([*ranges, "head"] if 0 in depths else ranges)


def is_plain(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the groups, if there are any, differ in nothing but weight decay."""
    return len({row["multiplier"] for row in rows}) <= 1
