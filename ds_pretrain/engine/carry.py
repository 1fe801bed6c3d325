"""Carries a live engine's state over to another engine on the same module, by parameter name.

Needed where the set of trained parameters changes: DeepSpeed lays out master weights and optimizer state in flat
partitions of that set, so that another set needs another engine. Each parameter's master weights and moments are put
together from their partitions, one parameter at a time, and wait in the host memory of one rank: what a rank holds is
its share of the optimizer's state. Step counts belong to a parameter group and are carried by the group's name.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from ds_pretrain.engine.ranks import Ranks
from ds_pretrain.model.groups import ParameterGroup

_WEIGHT = "fp32"
_COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")


@dataclass(frozen=True)
class GroupState:
    """What the optimizer remembers of a group as a whole.

    Args:
        moments: dtype of each state that has a value per parameter element, by name, e.g. ``exp_avg``.
        scalars: the other states, e.g. ``step``.
        settings: values that the optimizer keeps among the group's settings and changes by itself.
    """

    moments: Mapping[str, torch.dtype]
    scalars: Mapping[str, Any]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class CarriedState:
    """The state of an engine, apart from any engine.

    Args:
        groups: by group name.
        parameters: on this rank's host memory, every ``world_size``-th parameter's master weights and moments, by name.
        names: every trained parameter, in the module's order.
        counters: the engine's own counts.
        loss_scaler: DeepSpeed's scaler, which goes on counting; None where there is none.
    """

    groups: Mapping[str, GroupState]
    parameters: Mapping[str, Mapping[str, Tensor]]
    names: tuple[str, ...]
    counters: Mapping[str, int]
    loss_scaler: object | None


def collect_state(engine: DeepSpeedEngine, groups: Sequence[ParameterGroup], ranks: Ranks) -> CarriedState:
    """Takes the state out of an engine between two steps. Every rank takes part.

    Args:
        engine: a live engine at ZeRO stage 1, 2 or 3.
        groups: the parameter groups that it was built with.
        ranks: this process among those of the run.

    Returns:
        The state; the engine is unchanged.
    """
    states = {group["name"]: _group_state(engine, index) for index, group in enumerate(groups)}
    group_of = {id(parameter): group["name"] for group in groups for parameter in group["params"]}
    link_moments(engine)
    names, kept = [], {}
    for owner, (name, parameter) in _owned(engine.module, set(group_of), ranks):
        names.append(name)
        values = {_WEIGHT: safe_get_full_fp32_param(parameter)}
        for moment in states[group_of[id(parameter)]].moments:
            values[moment] = safe_get_full_optimizer_state(parameter, moment)
        if owner == ranks.rank:
            kept[name] = {key: value.cpu() for key, value in values.items()}
    return CarriedState(
        groups=states,
        parameters=kept,
        names=tuple(names),
        counters={key: getattr(engine, key) for key in _COUNTERS},
        loss_scaler=getattr(engine.optimizer, "loss_scaler", None),
    )


def put_state(engine: DeepSpeedEngine, groups: Sequence[ParameterGroup], state: CarriedState, ranks: Ranks) -> None:
    """Gives the state to an engine that has not taken a step. Every rank takes part.

    What the state does not know, a group of newly trained parameters, is left as new.

    Args:
        engine: the new engine, at ZeRO stage 1, 2 or 3.
        groups: the parameter groups that it was built with.
        state: what ``collect_state`` took out of the one before.
        ranks: this process among those of the run.
    """
    optimizer = engine.optimizer
    for index, group in enumerate(groups):
        known = state.groups.get(group["name"])
        if known is None:
            continue
        for flat in partitions(engine, index):
            place = optimizer.optimizer.state[flat]
            place.update({key: torch.zeros_like(flat.data, dtype=dtype) for key, dtype in known.moments.items()})
            place.update({key: _copied(value) for key, value in known.scalars.items()})
        engine.basic_optimizer.param_groups[index].update(known.settings)
    link_moments(engine)
    owner_of = {name: index % ranks.world_size for index, name in enumerate(state.names)}
    parameters = dict(engine.module.named_parameters())
    for group in groups:
        trained = {id(parameter) for parameter in group["params"]}
        moments = state.groups[group["name"]].moments if group["name"] in state.groups else {}
        for name in (name for name in state.names if id(parameters[name]) in trained):
            parameter = parameters[name]
            for key in (_WEIGHT, *moments):
                mine = state.parameters[name][key] if name in state.parameters else None
                value = shared(mine, parameter, owner_of[name], engine.device)
                if key == _WEIGHT:
                    safe_set_full_fp32_param(parameter, value)
                else:
                    safe_set_full_optimizer_state(parameter, value, key)
    for key, count in state.counters.items():
        setattr(engine, key, count)
    if state.loss_scaler is not None:
        optimizer.loss_scaler = state.loss_scaler


def release(engine: DeepSpeedEngine) -> None:
    """Takes an engine off its module and frees what it holds, so that another engine can be built on the module.

    Args:
        engine: the live engine; not to be used afterwards.
    """
    engine.module_forward_pre_hook.remove()
    engine.module_forward_post_hook.remove()
    engine.destroy()
    # its finalizer would do so again, whenever that runs, and take the parameters from the engine that has them by then
    engine.destroy = lambda: None
    for name in ("optimizer", "basic_optimizer", "module"):
        setattr(engine, name, None)
    gc.collect()


def own_storage(module: nn.Module) -> None:
    """Gives every parameter that is not trained memory of its own, and none a gradient.

    The last engine laid parameters out in flat buffers; a single view of one would keep all of it alive.
    """
    for parameter in module.parameters():
        parameter.grad = None
        if not parameter.requires_grad:
            holder = getattr(parameter, "ds_tensor", parameter)
            holder.data = holder.data.clone()


def _owned(module: nn.Module, trained: set[int], ranks: Ranks) -> Iterator[tuple[int, tuple[str, nn.Parameter]]]:
    """The trained parameters with the rank that keeps each, in turns."""
    found = (item for item in module.named_parameters() if id(item[1]) in trained)
    for index, item in enumerate(found):
        yield index % ranks.world_size, item


def _group_state(engine: DeepSpeedEngine, index: int) -> GroupState:
    flat = partitions(engine, index)[0]
    state = engine.optimizer.optimizer.state.get(flat, {})
    moments = {
        key: value.dtype for key, value in state.items() if isinstance(value, Tensor) and value.shape == flat.shape
    }
    scalars = {key: _copied(value) for key, value in state.items() if key not in moments}
    group = engine.basic_optimizer.param_groups[index]
    return GroupState(moments, scalars, {key: group[key] for key in ("step",) if key in group})


def link_moments(engine: DeepSpeedEngine) -> None:
    """Has every parameter know its part of the moments, in all groups.

    DeepSpeed 0.19.8 does so once, at ZeRO 1 and 2 after the first group's first step, when the others have none yet.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def partitions(engine: DeepSpeedEngine, index: int) -> list[nn.Parameter]:
    """This rank's flat master weights of a group: one tensor, or under ZeRO 3 one a sub-group."""
    optimizer = engine.optimizer
    if not hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return list(engine.basic_optimizer.param_groups[index]["params"])
    return [
        flat
        for number, flat in enumerate(optimizer.fp32_partitioned_groups_flat)
        if optimizer.sub_group_to_group_id[number] == index
    ]


def shared(value: Tensor | None, parameter: nn.Parameter, owner: int, device: torch.device) -> Tensor:
    """A parameter's value on every rank, from the one that keeps it."""
    shape = getattr(parameter, "ds_shape", parameter.shape)
    whole = torch.empty(shape, dtype=torch.float32, device=device)
    if value is not None:
        whole.copy_(value.reshape(shape))
    dist.broadcast(whole, src=owner)
    return whole


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
