"""Parameter groups of the optimizer: who shares a learning rate and a weight decay, under names that metrics show.

A parameter's name decides its group: first its label and multiplier by ``param_groups.kind``, then whether it decays.
Parameters with the same label and decay share a group, since many groups make ZeRO slow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypedDict

from torch import nn

from ds_pretrain.config import Optimizer, ParamGroups
from ds_pretrain.errors import Problem, RecipeError
from ds_pretrain.model.layers import layer_depths, num_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ParameterGroup(TypedDict):
    """A group as torch optimizers take it; ``name``, ``lr_multiplier`` and ``since_stage`` are ours and stay in it."""

    name: str
    params: list[nn.Parameter]
    weight_decay: float
    lr_multiplier: float
    since_stage: int


@dataclass(frozen=True)
class GroupPlan:
    """A group before it holds parameters.

    Args:
        name: stable over stages and runs, e.g. ``layer_11.decay``; ``….frozen`` where the multiplier is 0.
        lr_multiplier: factor on the learning rate; 0 freezes.
        weight_decay: coefficient of the weight decay.
        parameters: names, in the model's order.
    """

    name: str
    lr_multiplier: float
    weight_decay: float
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class _Rate:
    label: str
    multiplier: float


def plan_groups(model: PreTrainedModel, optimizer: Optimizer, settings: ParamGroups) -> tuple[GroupPlan, ...]:
    """Divides all parameters of a model, trained or not, into groups.

    The multiplier is 1 for kind ``none``. ``two_group``: 1 for the head, ``backbone_multiplier`` for the rest.
    ``layerwise``: decay^depth with head 0, top layer 1, bottom layer N, embeddings N + 1 (after Howard and Ruder,
    ULMFiT, 2018, section 3.1); ``layers_per_group`` neighbours, counted from the top, share decay^(mean depth),
    the geometric mean of their own multipliers. ``patterns``: that of the first pattern which matches, else 1.

    Biases and norms (anything with fewer than two dimensions) never decay, embeddings by choice, nor does what
    ``no_decay`` names; a head that is tied to the embedding is an embedding. With ``muon``, the matrices of the layers
    are groups of that name, and the multipliers of all others are times ``adam_multiplier``.

    Args:
        model: a transformers model, on any device, partitioned or not; nothing of it is changed.
        optimizer: the recipe's ``optimizer`` section.
        settings: the recipe's ``param_groups`` section.

    Returns:
        The groups that have parameters, highest multiplier first, each parameter in exactly one. With one multiplier
        for all they are called ``decay`` and ``no_decay``.

    Raises:
        RecipeError: a pattern decides nothing, the layers cannot be found, or nothing is left to train.
    """
    rates = _rates(model, settings)
    if not any(rate.multiplier for rate in rates.values()):
        raise RecipeError(
            [Problem("param_groups", "freezes every parameter; allowed: at least one multiplier above 0")]
        )
    one_rate = len({rate.multiplier for rate in rates.values()}) == 1
    decaying = _decaying(model, optimizer, settings.no_decay)
    members: dict[tuple[_Rate, str], list[str]] = {}
    matrices = _layer_matrices(model) & decaying if optimizer.type == "muon" else frozenset()
    for name, rate in rates.items():
        kind = "decay" if name in decaying else "no_decay"
        kind = "frozen" if rate.multiplier == 0 else "muon" if name in matrices else kind
        members.setdefault((_Rate("", rate.multiplier) if one_rate else rate, kind), []).append(name)
    return tuple(
        GroupPlan(
            name=f"{rate.label}.{kind}" if rate.label else kind,
            lr_multiplier=rate.multiplier * (optimizer.adam_multiplier if matrices and kind != "muon" else 1.0),
            weight_decay=optimizer.weight_decay if kind in ("decay", "muon") else 0.0,
            parameters=tuple(names),
        )
        for (rate, kind), names in sorted(
            members.items(), key=lambda item: (-item[0][0].multiplier, item[0][0].label, item[0][1])
        )
    )


def parameter_groups(
    model: PreTrainedModel, optimizer: Optimizer, settings: ParamGroups, since_stage: Mapping[str, int] | None = None
) -> list[ParameterGroup]:
    """The groups of ``plan_groups`` with their parameters; those with multiplier 0 are frozen.

    Args:
        model: a transformers model; what does not require a gradient is in no group.
        optimizer: the recipe's ``optimizer`` section.
        settings: the recipe's ``param_groups`` section.
        since_stage: index of the stage since which a parameter is trained, by name; the first stage unless named.
            What is trained since another stage has step counts and rates of its own, and so a group.

    Returns:
        The groups that have parameters to train, each of these in exactly one.

    Raises:
        RecipeError: as ``plan_groups``.
    """
    parameters = dict(model.named_parameters())
    groups: list[ParameterGroup] = []
    for plan in plan_groups(model, optimizer, settings):
        members: dict[int, list[nn.Parameter]] = {}
        for name in plan.parameters:
            if plan.lr_multiplier == 0:
                parameters[name].requires_grad_(False)
            if parameters[name].requires_grad:
                members.setdefault((since_stage or {}).get(name, 0), []).append(parameters[name])
        for stage, trained in sorted(members.items()):
            groups.append(
                {
                    "name": f"{plan.name}.since_stage_{stage}" if stage else plan.name,
                    "params": trained,
                    "weight_decay": plan.weight_decay,
                    "lr_multiplier": plan.lr_multiplier,
                    "since_stage": stage,
                }
            )
    return groups


def _rates(model: PreTrainedModel, settings: ParamGroups) -> Mapping[str, _Rate]:
    names = [name for name, _ in model.named_parameters()]
    if settings.kind == "none":
        return dict.fromkeys(names, _Rate("", 1.0))
    if settings.kind == "patterns":
        return _by_pattern(names, settings.table)
    if settings.kind == "two_group":
        head, backbone = _Rate("head", 1.0), _Rate("backbone", settings.backbone_multiplier)
        return {name: backbone if depth else head for name, depth in layer_depths(model).items()}
    layers = num_layers(model)
    by_depth = [_layer_rate(depth, layers, settings) for depth in range(layers + 2)]
    return {name: by_depth[depth] for name, depth in layer_depths(model).items()}


def _by_pattern(names: Sequence[str], table: Mapping[str, float]) -> Mapping[str, _Rate]:
    first = {name: _first_match(name, table) for name in names}
    problems = [_undecided("param_groups.table", pattern, names) for pattern in table if pattern not in first.values()]
    if problems:
        raise RecipeError(problems)
    multipliers = {name: 1.0 if pattern is None else table[pattern] for name, pattern in first.items()}
    return {name: _Rate(f"x{repr(value).removesuffix('.0')}", value) for name, value in multipliers.items()}


def _layer_rate(depth: int, layers: int, settings: ParamGroups) -> _Rate:
    if depth == 0:
        return _Rate("head", 1.0)
    if depth == layers + 1:
        return _Rate("embeddings", settings.decay**depth)
    top = depth - (depth - 1) % settings.layers_per_group
    bottom = min(top + settings.layers_per_group - 1, layers)
    # numbered from the bottom, as in the model, with leading zeros so that dashboards sort them
    digits = len(str(layers - 1))
    first, last = f"{layers - bottom:0{digits}d}", f"{layers - top:0{digits}d}"
    label = f"layer_{first}" if first == last else f"layers_{first}-{last}"
    return _Rate(label, settings.decay ** ((top + bottom) / 2))


def _decaying(model: PreTrainedModel, optimizer: Optimizer, no_decay: Iterable[str]) -> frozenset[str]:
    """Names of the parameters that decay."""
    embeddings = {
        id(parameter)
        for part in model.modules()
        if isinstance(part, nn.Embedding)
        for parameter in part.parameters(recurse=False)
    }
    names = [name for name, _ in model.named_parameters()]
    idle = [pattern for pattern in no_decay if not any(fnmatchcase(name, pattern) for name in names)]
    if idle:
        raise RecipeError([_undecided("param_groups.no_decay", pattern, names) for pattern in idle])
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        # ZeRO 3 leaves a flat partition behind and keeps the shape beside it
        if len(getattr(parameter, "ds_shape", parameter.shape)) >= 2
        and not name.endswith("bias")
        and (optimizer.decay_embeddings or id(parameter) not in embeddings)
        and _first_match(name, no_decay) is None
    )


def _layer_matrices(model: PreTrainedModel) -> frozenset[str]:
    """Names of the weight matrices inside the layers."""
    depths, layers = layer_depths(model), num_layers(model)
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if len(getattr(parameter, "ds_shape", parameter.shape)) == 2 and 0 < depths[name] <= layers
    )


def _first_match(name: str, patterns: Iterable[str]) -> str | None:
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


def _undecided(path: str, pattern: str, names: Sequence[str]) -> Problem:
    if any(fnmatchcase(name, pattern) for name in names):
        reason = "an earlier pattern has matched already; put it before that one"
    else:
        reason = f"no whole name matches it; names are like {names[0]!r}, and * stands for any text"
    return Problem(path, f"found pattern {pattern!r}, which decides nothing: {reason}")
