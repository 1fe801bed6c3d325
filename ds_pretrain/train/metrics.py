"""The line that a step leaves in metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ds_pretrain.curriculum import StagePlan
from ds_pretrain.engine.step import StepResult


@dataclass(frozen=True)
class StepTimes:
    """Wall-clock seconds of a step.

    Args:
        step: the whole step, waiting for data included.
        data: waiting for data.
    """

    step: float
    data: float


def step_record(
    step: int,
    stage: StagePlan,
    result: StepResult,
    lr: float,
    lr_groups: Mapping[str, float],
    momentum: float | None,
    grad_clip: float,
    loss_ratio: float | None,
    times: StepTimes,
    peak_tokens_per_second: float | None,
    cursors: Sequence[int],
    epoch_positions: Mapping[str, int],
) -> dict[str, object]:
    """Everything a step line holds.

    Args:
        step: steps done after this one.
        stage: the stage it belonged to.
        result: what the engine came to.
        lr: planned learning rate.
        lr_groups: learning rate of every group, by name, as the optimizer had it.
        momentum: momentum, or first beta, where the schedule moves it; None where the optimizer keeps its own.
        grad_clip: the limit that the engine clipped at.
        loss_ratio: loss over the stage's lowest before it.
        times: seconds of the step.
        peak_tokens_per_second: peak FLOP/s of all ranks over FLOPs per token; None where not known.
        cursors: positions of every source that are consumed, or left out by rollbacks, after this step.
        epoch_positions: length of an epoch of every source, by name, in positions.

    Returns:
        The record, in the order of the file.
    """
    tokens_per_second = stage.tokens_per_step / times.step
    return {
        "step": step,
        "tokens": stage.tokens_before(step),
        "stage": stage.index,
        "seq_len": stage.seq_len,
        "batch_size": stage.batch_size,
        "micro_batch_size": stage.micro_batch_size,
        "grad_accum_steps": stage.grad_accum_steps,
        "lr": lr,
        "lr_groups": dict(lr_groups),
        "momentum": momentum,
        "loss": result.loss,
        "loss_ratio": loss_ratio,
        "grad_norm": result.grad_norm,
        "grad_clip": grad_clip,
        "loss_scale": result.loss_scale,
        "skipped": result.skipped,
        "tokens_per_second": tokens_per_second,
        "mfu": None if peak_tokens_per_second is None else tokens_per_second / peak_tokens_per_second,
        "step_seconds": times.step,
        "data_seconds": times.data,
        "epoch": sum(cursors) / sum(epoch_positions.values()),
        "epochs": {
            name: cursor / length for cursor, (name, length) in zip(cursors, epoch_positions.items(), strict=True)
        },
    }
