"""One optimizer step on the engine: every micro batch forward and backward, then the update.

The loss of a micro batch is a sum over its targets; it is divided by the targets of the whole step, over all micro
batches and ranks, so that the gradient is that of one large batch however it was cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from torch import Tensor

from ds_pretrain.data.loader import StepBatch
from ds_pretrain.engine.stage import NO_NEWCOMERS, Newcomers, assert_learning_rate
from ds_pretrain.errors import DataError


@dataclass(frozen=True)
class Requests:
    """What a rank asks of all ranks at the end of a step.

    Args:
        stop: save and leave.
        save: save a checkpoint.
        wait: leave the checkpoint in flight alone, which this rank still writes.
    """

    stop: bool = False
    save: bool = False
    wait: bool = False


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step came to, reduced over all ranks.

    Args:
        loss: mean over the step's target tokens, in nats.
        grad_norm: L2 norm of the whole gradient before the clip.
        loss_scale: fp16 loss scale that the step used; 1 in other precisions.
        skipped: whether the update was left out because the gradient was not finite.
        requests: what any rank asked for.
    """

    loss: float
    grad_norm: float
    loss_scale: float
    skipped: bool
    requests: Requests


def train_batch(
    engine: DeepSpeedEngine,
    batch: StepBatch,
    target_tokens: int,
    lr: float,
    requests: Requests,
    newcomers: Newcomers = NO_NEWCOMERS,
) -> StepResult:
    """Takes one optimizer step.

    Args:
        engine: a live engine to which the batch's stage and ``lr`` have been applied.
        batch: this rank's micro batches.
        target_tokens: targets of the step over all micro batches and ranks.
        lr: planned learning rate; asserted against every group before the update.
        requests: what this rank asks for.
        newcomers: groups whose rates are still warming up.

    Returns:
        Loss, gradient norm and flags, alike on every rank.

    Raises:
        DataError: on every rank, where any rank's batch has a problem; the step that was taken is of no use.
    """
    device = engine.device
    # the engine averages over ranks, and is told not to divide by the accumulation
    share = engine.dp_world_size / target_tokens
    total = torch.zeros((), dtype=torch.float32, device=device)
    last = len(batch.micro_batches) - 1
    for index, micro in enumerate(batch.micro_batches):
        engine.set_gradient_accumulation_boundary(index == last)
        part = micro.to(device)
        loss = engine(part.input_ids, part.targets, **part.options)
        # a loss that is not finite must not be applied, even where its gradient is finite: this makes it NaN
        engine.backward(loss * (share + 0.0 * loss.detach()), scale_wrt_gas=False)
        total += loss.detach()
    assert_learning_rate(engine, lr, newcomers)
    loss_scale = current_loss_scale(engine)
    grad_norm = _update(engine)
    # the one collective and the one read of this step, behind it
    asked = (requests.stop, requests.save, requests.wait, batch.problem is not None)
    reduced = torch.cat([total.unsqueeze(0), total.new_tensor([float(flag) for flag in asked])])
    dist.all_reduce(reduced)
    loss_sum, stops, saves, waits, problems = reduced.tolist()
    if problems > 0:
        raise _problem_of_any_rank(batch)
    return StepResult(
        loss=loss_sum / target_tokens,
        grad_norm=float(grad_norm),
        loss_scale=loss_scale,
        skipped=not engine.was_step_applied(),
        requests=Requests(stop=stops > 0, save=saves > 0, wait=waits > 0),
    )


def _problem_of_any_rank(batch: StepBatch) -> DataError:
    told: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(told, None if batch.problem is None else str(batch.problem))
    return DataError(next(message for message in told if message is not None))


def current_loss_scale(engine: DeepSpeedEngine) -> float:
    """The loss scale that the next backward pass will use; 1 outside fp16."""
    return float(engine.optimizer.cur_scale) if engine.fp16_enabled() else 1.0


def _update(engine: DeepSpeedEngine) -> Tensor | float:
    """Steps the optimizer; returns the gradient's norm before the clip, or inf where it was not finite."""
    if engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled():
        engine.step()
        norm = engine.get_global_grad_norm()
        return math.inf if norm is None else norm
    # ZeRO 0 in fp32 is plain DDP: DeepSpeed keeps no norm there and would apply a step that is not finite
    norm = torch.nn.utils.get_total_norm(
        [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    )
    if bool(torch.isfinite(norm)):
        engine.step()
    else:
        engine.zero_grad()
        engine._step_applied = False
        engine.skipped_steps += 1
        engine.global_steps += 1
    return norm
