"""Builds the DeepSpeed engine, and tries every shape of the plan before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import deepspeed
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.config import DeepSpeedConfig
from torch import nn

from ds_pretrain.config import Optimizer
from ds_pretrain.curriculum import StagePlan
from ds_pretrain.data.inputs import InputFormat
from ds_pretrain.engine.optimizers import client_optimizer
from ds_pretrain.engine.ranks import share_timeout
from ds_pretrain.engine.rng import restore_rng, rng_state
from ds_pretrain.errors import Problem, RecipeError, TrainingError
from ds_pretrain.model.groups import ParameterGroup

Engine = DeepSpeedEngine


def check_accepted(deepspeed_json: Mapping[str, Any]) -> None:
    """Has DeepSpeed read its configuration before anything is built.

    Args:
        deepspeed_json: DeepSpeed's configuration of a stage.

    Raises:
        RecipeError: it refuses what ``deepspeed.extra`` added.
    """
    try:
        DeepSpeedConfig(deepcopy(dict(deepspeed_json)))
    except Exception as error:  # whatever the part of its configuration that refuses happens to raise
        reason = " ".join(str(error).split())
        raise RecipeError([Problem("deepspeed.extra", f"DeepSpeed refuses it: {reason}")]) from error


def build_engine(
    module: nn.Module,
    groups: Sequence[ParameterGroup],
    deepspeed_json: Mapping[str, Any],
    optimizer: Optimizer | None = None,
) -> DeepSpeedEngine:
    """A DeepSpeed engine over a module that returns its own summed loss.

    Args:
        module: the model with its loss.
        groups: parameter groups with names and multipliers.
        deepspeed_json: DeepSpeed's configuration of the first stage.
        optimizer: the recipe's section, of which an optimizer is built where the configuration names none.

    Returns:
        The engine, in training mode.
    """
    # copies: DeepSpeed puts its flat partitions in place of a group's parameters
    copies = [dict(group) for group in groups]
    given: dict[str, Any] = {"model_parameters": copies}
    if "optimizer" not in deepspeed_json:
        assert optimizer is not None
        given = {"optimizer": client_optimizer(optimizer, copies)}
    engine, *_ = deepspeed.initialize(model=module, config=dict(deepspeed_json), **given)
    share_timeout()
    names = [group.get("name") for group in engine.basic_optimizer.param_groups]
    assert names == [group["name"] for group in groups], f"DeepSpeed changed the parameter groups: {names}"
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is not None and scaler.dynamic:
        # at its minimum it would raise a bare Exception; a skip there is a bad step, which the guards count
        scaler.raise_error_at_min_scale = False
    return engine


def try_shapes(engine: DeepSpeedEngine, stages: Sequence[StagePlan], input_format: InputFormat) -> None:
    """One forward and backward pass at every shape of the plan, the largest first; nothing is learned from it.

    Memory then runs out in the first minute or never, and an allocator meets its largest blocks first. The loss is
    multiplied by zero, so that the gradients it leaves behind are zeros.

    Args:
        engine: a live engine before its first step.
        stages: the stages of the plan.
        input_format: what the model is fed.

    Raises:
        TrainingError: a shape does not fit into the device's memory.
    """
    shapes = sorted({(s.seq_len, s.micro_batch_size, s.blocks_per_row) for s in stages}, reverse=True)
    before = rng_state()
    for seq_len, micro_batch_size, blocks in shapes:
        batch = input_format.blank(micro_batch_size * blocks, seq_len).to(engine.device)
        engine.set_gradient_accumulation_boundary(False)
        try:
            engine.backward(engine(batch.input_ids, batch.targets, **batch.options) * 0.0, scale_wrt_gas=False)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"micro_batch_size {micro_batch_size} x seq_len {seq_len * blocks} does not fit into the device's "
                "memory; lower train.max_tokens_per_micro_batch or train.micro_batch_size, raise deepspeed.zero_stage, "
                "or set model.gradient_checkpointing"
            ) from error
    restore_rng(before)
