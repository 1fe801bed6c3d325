"""The whole weights of a checkpoint, put together from what the ranks saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import Tensor

from ds_pretrain.engine.checkpoint import ENGINE_TAG
from ds_pretrain.engine.checkpoint_files import damage, read_manifest
from ds_pretrain.errors import CheckpointError


def whole_weights(folder: Path) -> dict[str, Tensor]:
    """The fp32 weights of a checkpoint, by parameter name.

    DeepSpeed unpickles its files: only open checkpoints that you trust.

    Args:
        folder: a checkpoint.

    Returns:
        Every parameter and buffer of the engine's module.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    problems = damage(folder)
    if problems:
        raise CheckpointError(f"checkpoint {folder} is damaged: {'; '.join(problems)}")
    return read_weights(folder)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The same of a checkpoint that has been verified."""
    zero_stage = read_manifest(folder)["zero_stage"]
    if zero_stage == 1:
        # what DeepSpeed 0.19.8 has for this leaves frozen weights out, and does not know what its bf16 optimizer saves
        return _at_zero_1(folder / ENGINE_TAG)
    if zero_stage == 0:
        return {name: weight.float() for name, weight in _module_states(folder / ENGINE_TAG)["module"].items()}
    with _silent():
        return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=ENGINE_TAG))


def _at_zero_1(engine: Path) -> dict[str, Tensor]:
    """Master weights from the slices that the ranks saved, in their order; what is not trained as the model has it."""
    module: Mapping[str, Tensor] = _module_states(engine)["module"]
    pieces: dict[str, list[Tensor]] = {}
    for path in sorted(engine.glob("*zero_pp_rank_*_optim_states.pt"), key=_rank):
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=False)["optimizer_state_dict"]
        groups = zip(state["param_slice_mappings"], state["single_partition_of_fp32_groups"], strict=True)
        for slices, flat in groups:
            for name, place in slices.items():
                pieces.setdefault(name, []).append(flat.detach().narrow(0, place.start, place.numel))
    trained = {name: torch.cat(parts).view_as(module[name]) for name, parts in pieces.items()}
    # each weight once: another name of a trained one, such as a tied head, would bring a rounded copy of it
    places = {module[name].data_ptr() for name in trained}
    for name, weight in module.items():
        if weight.data_ptr() not in places:
            places.add(weight.data_ptr())
            trained[name] = weight.float()
    return trained


def _module_states(engine: Path) -> dict[str, Any]:
    states: dict[str, Any] = torch.load(engine / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
    return states


def _rank(partition: Path) -> int:
    return int(partition.name.split("zero_pp_rank_")[1].split("_")[0])


@contextmanager
def _silent() -> Iterator[None]:
    """DeepSpeed prints its progress there."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield
