"""Guards: from the history of reduced losses to what a step was. Pure, so that all ranks decide alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class GuardState:
    """What the guards remember between steps; saved in checkpoints.

    Args:
        stage: stage that ``lowest_loss`` belongs to.
        lowest_loss: lowest finite loss of the stage so far, in nats; None before the first.
        consecutive_bad_steps: bad steps since the last good one.
    """

    stage: int = 0
    lowest_loss: float | None = None
    consecutive_bad_steps: int = 0


def loss_ratio(state: GuardState, stage: int, loss: float) -> float | None:
    """Loss over the lowest loss before it in this stage (Li, Zhang, He, NeurIPS 2022: above 1.2 is unstable).

    Args:
        state: the guards before the step.
        stage: stage of the step.
        loss: the step's loss in nats.

    Returns:
        The ratio, 1 for a new lowest loss and for the first of a stage; None where the loss is not finite.
    """
    if not math.isfinite(loss):
        return None
    if state.stage != stage or state.lowest_loss is None:
        return 1.0
    return max(1.0, loss / state.lowest_loss)


def is_bad_step(loss: float, skipped: bool, loss_scale: float, min_loss_scale: float | None) -> bool:
    """Whether a step was bad: a loss that is no number, or an overflow that is not the loss scaler at work.

    Args:
        loss: the step's loss in nats, reduced over all ranks.
        skipped: whether the engine left the update out.
        loss_scale: the scale that the step used.
        min_loss_scale: the fp16 scaler's minimum; None outside dynamic fp16, where every skip is bad.
    """
    if not math.isfinite(loss):
        return True
    return skipped and (min_loss_scale is None or loss_scale <= min_loss_scale)


def after_step(state: GuardState, stage: int, loss: float, bad: bool) -> GuardState:
    """The guards after a step.

    Args:
        state: the guards before it.
        stage: stage of the step.
        loss: the step's loss in nats.
        bad: what ``is_bad_step`` said.
    """
    if state.stage != stage:
        state = replace(state, stage=stage, lowest_loss=None)
    if bad:
        return replace(state, consecutive_bad_steps=state.consecutive_bad_steps + 1)
    lowest = state.lowest_loss
    if math.isfinite(loss):
        lowest = loss if lowest is None else min(lowest, loss)
    return replace(state, lowest_loss=lowest, consecutive_bad_steps=0)
