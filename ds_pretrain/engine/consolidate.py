"""The whole weights of a checkpoint, put together from what the ranks saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

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
    zero_stage = read_manifest(folder)["zero_stage"]
    whole: dict[str, Tensor] = {}
    if zero_stage < 3:
        # DeepSpeed 0.19.8 leaves frozen weights out of what it puts together at ZeRO 1; the module has them
        saved = torch.load(folder / ENGINE_TAG / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
        whole = {name: weight.float() for name, weight in saved["module"].items()}
    partitions = sorted((folder / ENGINE_TAG).glob("bf16_zero_pp_rank_*_optim_states.pt"), key=_rank)
    if partitions:
        whole |= _bf16_master_weights(partitions, whole)
    elif zero_stage > 0:
        with _silent():
            whole |= get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=ENGINE_TAG)
    return whole


def _bf16_master_weights(partitions: Sequence[Path], module: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The fp32 weights behind a bf16 model at ZeRO 1, which DeepSpeed 0.19.8 saves but cannot put together itself.

    Args:
        partitions: what each rank saved, in the order of the ranks; each says which slice of a weight it holds where.
        module: the weights as the model has them, for their shapes.
    """
    pieces: dict[str, list[Tensor]] = {}
    for path in partitions:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=False)["optimizer_state_dict"]
        groups = zip(state["param_slice_mappings"], state["single_partition_of_fp32_groups"], strict=True)
        for slices, flat in groups:
            for name, place in slices.items():
                pieces.setdefault(name, []).append(flat.detach().narrow(0, place.start, place.numel))
    return {name: torch.cat(parts).view_as(module[name]) for name, parts in pieces.items()}


def _rank(partition: Path) -> int:
    return int(partition.name.removeprefix("bf16_zero_pp_rank_").split("_")[0])


@contextmanager
def _silent() -> Iterator[None]:
    """DeepSpeed prints its progress there."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield
