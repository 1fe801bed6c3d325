"""Applies a stage to the live engine: batch, accumulation, clip and learning rate, without a restart.

DeepSpeed 0.19.8 keeps the clip and the accumulation in several places and its own setters reach only some of them,
so that each is named here, once. The end of an accumulation is set by ``train_batch``, not counted by the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepspeed import DeepSpeedEngine

from ds_pretrain.curriculum import StagePlan


def apply_stage(engine: DeepSpeedEngine, stage: StagePlan) -> None:
    """Makes the engine train by a stage; to be called again after a checkpoint is loaded.

    Args:
        engine: a live engine.
        stage: the stage that the next step belongs to.
    """
    engine.set_train_micro_batch_size(stage.micro_batch_size)
    engine.set_train_batch_size(stage.rows_per_step)
    assert engine.gradient_accumulation_steps() == stage.grad_accum_steps
    engine._config.gradient_clipping = stage.grad_clip
    optimizer = engine.optimizer
    if hasattr(optimizer, "gradient_accumulation_steps"):
        optimizer.gradient_accumulation_steps = stage.grad_accum_steps
    if hasattr(optimizer, "clip_grad"):
        optimizer.clip_grad = stage.grad_clip
    engine.tput_timer.batch_size = stage.rows_per_step


def applied_clip(engine: DeepSpeedEngine) -> float:
    """The limit that the engine really clips at."""
    return float(getattr(engine.optimizer, "clip_grad", engine._config.gradient_clipping))


@dataclass(frozen=True)
class Newcomers:
    """The groups that a stage is the first to train, whose rates have a warmup of their own.

    Args:
        stage: index of the stage; 0 means none, since nobody is new there.
        share: factor on their learning rate.
    """

    stage: int = 0
    share: float = 1.0


NO_NEWCOMERS = Newcomers()


def set_learning_rate(engine: DeepSpeedEngine, lr: float, newcomers: Newcomers = NO_NEWCOMERS) -> None:
    """Sets every group's learning rate: ``lr`` times the group's own multiplier, and a newcomer's share.

    Args:
        engine: a live engine.
        lr: planned learning rate of the step.
        newcomers: which groups are still warming up.
    """
    for group in engine.basic_optimizer.param_groups:
        group["lr"] = _group_rate(group, lr, newcomers)


def set_momentum(engine: DeepSpeedEngine, momentum: float | None) -> None:
    """Sets every group's momentum, or first beta; None leaves them as they are."""
    if momentum is None:
        return
    if getattr(engine.optimizer, "muon_beta", None) is not None:
        # ZeRO 3 orthogonalizes by itself, and keeps a copy of what the groups had when it was built
        engine.optimizer.muon_beta = momentum
    for group in engine.basic_optimizer.param_groups:
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        else:
            group["momentum"] = momentum


def applied_momentum(engine: DeepSpeedEngine) -> float:
    """Momentum, or first beta, of every group, which ``set_momentum`` has made one, as the optimizer has it."""
    found = {
        group["betas"][0] if "betas" in group else group["momentum"] for group in engine.basic_optimizer.param_groups
    }
    copied = getattr(engine.optimizer, "muon_beta", None)
    (momentum,) = found if copied is None else found | {copied}
    return float(momentum)


def learning_rates(engine: DeepSpeedEngine) -> Mapping[str, float]:
    """Learning rate of every group, by name, as the optimizer that takes the step has it."""
    return {group["name"]: group["lr"] for group in engine.basic_optimizer.param_groups}


def assert_learning_rate(engine: DeepSpeedEngine, lr: float, newcomers: Newcomers = NO_NEWCOMERS) -> None:
    """Stops where a group's learning rate is not what the schedule says."""
    for group in engine.basic_optimizer.param_groups:
        expected = _group_rate(group, lr, newcomers)
        assert group["lr"] == expected, f"group {group['name']}: lr {group['lr']}, planned {expected}"


def _group_rate(group: Mapping[str, Any], lr: float, newcomers: Newcomers) -> float:
    is_new = newcomers.stage > 0 and group["since_stage"] == newcomers.stage
    rate: float = lr * group["lr_multiplier"] * (newcomers.share if is_new else 1.0)
    return rate
