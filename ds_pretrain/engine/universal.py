"""Loads a checkpoint into an engine of other ranks, or another ZeRO stage: DeepSpeed's universal checkpoint.

DeepSpeed's converter takes the ranks' flat partitions apart into one file for each parameter and state. They are put
in by parameter name, as where trained layers change, and not by DeepSpeed 0.19.8's own loader, which at ZeRO 3 gives
every parameter group the settings and the step count of the first one, reads only what was saved at ZeRO 3 there,
leaves frozen weights as they were built, and breaks where a rank holds nothing of a group.
"""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.checkpoint import ds_to_universal
from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param
from torch import Tensor

from ds_pretrain.engine.carry import CarriedState, GroupState, put_state, shared
from ds_pretrain.engine.checkpoint import ENGINE_TAG
from ds_pretrain.engine.checkpoint_files import read_manifest
from ds_pretrain.engine.consolidate import read_weights
from ds_pretrain.engine.ranks import Ranks, barrier, broadcast_object
from ds_pretrain.errors import CheckpointError
from ds_pretrain.model.groups import ParameterGroup

# what the converter knows of an optimizer's state
_MOMENTS = ("exp_avg", "exp_avg_sq")
_COUNTERS = ("global_steps", "global_samples", "skipped_steps")


def load_elsewhere(engine: DeepSpeedEngine, groups: Sequence[ParameterGroup], checkpoint: Path, ranks: Ranks) -> None:
    """Loads what other ranks saved into an engine that has not taken a step. Every rank takes part.

    The generators of random numbers are left alone: they belonged to the ranks that were.

    Args:
        engine: the new engine, at ZeRO stage 1, 2 or 3, with an Adam.
        groups: the parameter groups that it was built with.
        checkpoint: a verified one, of ZeRO stage 1, 2 or 3; it is only read, the converted copy beside it is removed.
        ranks: this process among those of the run.

    Raises:
        CheckpointError: on every rank, where it cannot be converted.
    """
    if read_manifest(checkpoint)["step"] == 0:  # no more than weights: the converter misses the optimizer's state
        _put_trained(engine, checkpoint, ranks)
        _refresh_weights(engine, ranks)
        _put_frozen(engine, checkpoint, ranks)
        return
    converted = checkpoint.with_name(f".{checkpoint.name}.universal")
    try:
        problem = broadcast_object(_convert(checkpoint, converted) if ranks.is_main else None, ranks)
        if problem is not None:
            raise CheckpointError(f"{checkpoint} cannot be converted for {ranks.world_size} rank(s): {problem}")
        put_state(engine, groups, _converted_state(converted, engine, groups, ranks), ranks)
        _refresh_weights(engine, ranks)
        _put_frozen(engine, checkpoint, ranks)
    finally:
        barrier()
        if ranks.is_main:
            shutil.rmtree(converted, ignore_errors=True)


class _Files(Mapping[str, Tensor]):
    """A parameter's converted states, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, key: str) -> Tensor:
        value = _read(self._folder / f"{key}.pt")
        tensor: Tensor = value["param"] if isinstance(value, dict) else value
        return tensor

    def __iter__(self) -> Iterator[str]:
        return (path.stem for path in self._folder.glob("*.pt"))

    def __len__(self) -> int:
        return len(list(self._folder.glob("*.pt")))


def _convert(checkpoint: Path, converted: Path) -> str | None:
    """What went wrong, in a line."""
    shutil.rmtree(converted, ignore_errors=True)
    arguments = Namespace(
        input_folder=str(checkpoint / ENGINE_TAG),
        output_folder=str(converted),
        # in this process: more of them would be forked from one with threads, and hold more at once
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            ds_to_universal.main(arguments)
        (checkpoint.parent / "latest_universal").unlink(missing_ok=True)
    except Exception as error:  # the other ranks wait for an answer
        return f"{type(error).__name__}: {error}"
    return None


def _converted_state(
    converted: Path, engine: DeepSpeedEngine, groups: Sequence[ParameterGroup], ranks: Ranks
) -> CarriedState:
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    shared = _read(converted / "zero" / "optimizer_state.pt")
    model = _read(next(iter(sorted(converted.glob("*model_states.pt")))))
    steps = _steps_at_zero_3(shared, model)
    settings = {group["name"]: group for group in shared["param_groups"]}
    states, trained = {}, []
    for group in groups:
        members = [names[id(parameter)] for parameter in group["params"]]
        trained += members
        step = steps[members[0]] if steps else _read(converted / "zero" / members[0] / "step.pt")
        own = settings[group["name"]]
        states[group["name"]] = GroupState(
            dict.fromkeys(_MOMENTS, torch.float32), {"step": step}, {key: own[key] for key in ("step",) if key in own}
        )
    order = [name for name in names.values() if name in set(trained)]
    mine = order[ranks.rank :: ranks.world_size]
    return CarriedState(
        groups=states,
        parameters={name: _Files(converted / "zero" / name) for name in mine},
        names=tuple(order),
        counters={key: model[key] for key in _COUNTERS},
        loss_scaler=shared.get("loss_scaler"),
    )


def _steps_at_zero_3(shared: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Step counts by parameter name, from where the converter leaves them at ZeRO 3; empty at other stages."""
    if "optimizer_state_dict" not in shared:
        return {}
    state = shared["optimizer_state_dict"]["state"]
    return {name: state[index]["step"] for index, names in enumerate(model["param_shapes"]) for name in names}


def _refresh_weights(engine: DeepSpeedEngine, ranks: Ranks) -> None:
    """Has the weights that the model computes with follow the master weights, as they would after the next step."""
    if hasattr(engine.optimizer, "update_lp_params"):
        engine.optimizer.update_lp_params()
        return
    for parameter in engine.module.parameters():
        if parameter.requires_grad:
            value = safe_get_full_fp32_param(parameter)
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
                if ranks.is_main:
                    parameter.copy_(value)


def _put_trained(engine: DeepSpeedEngine, checkpoint: Path, ranks: Ranks) -> None:
    weights = read_weights(checkpoint) if ranks.is_main else {}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            safe_set_full_fp32_param(parameter, shared(weights.get(name), parameter, 0, engine.device))


def _put_frozen(engine: DeepSpeedEngine, checkpoint: Path, ranks: Ranks) -> None:
    frozen = [(name, parameter) for name, parameter in engine.module.named_parameters() if not parameter.requires_grad]
    if not frozen:
        return
    weights = read_weights(checkpoint) if ranks.is_main else {}
    for name, parameter in frozen:
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
            if ranks.is_main:
                parameter.copy_(weights[name])
            if not hasattr(parameter, "ds_id"):
                torch.distributed.broadcast(parameter, src=0)


def _read(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=False)
