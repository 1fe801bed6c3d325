"""The whole weights of a checkpoint, put together from what the ranks saved."""

from __future__ import annotations

from collections.abc import Iterator
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
    if read_manifest(folder)["zero_stage"] == 0:
        saved = torch.load(folder / ENGINE_TAG / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
        return {name: weight.float() for name, weight in saved["module"].items()}
    with _silent():
        return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=ENGINE_TAG))


@contextmanager
def _silent() -> Iterator[None]:
    """DeepSpeed prints its progress there."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield
