"""Reduce on plateau: the one schedule with a memory. Pure: (state, validation loss) to the next state.

The rules are those of torch's ReduceLROnPlateau in mode ``min``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ds_pretrain.config import Schedule

_SMALLEST_CHANGE = 1e-8


@dataclass(frozen=True)
class PlateauState:
    """What is remembered from one evaluation to the next; saved in checkpoints.

    Args:
        factor: on the planned learning rate.
        best: lowest validation loss so far, in nats; None before the first.
        bad_evaluations: evaluations without a better one since.
        cooldown: evaluations still to pass before bad ones count again.
    """

    factor: float = 1.0
    best: float | None = None
    bad_evaluations: int = 0
    cooldown: int = 0


def after_evaluation(state: PlateauState, val_loss: float, schedule: Schedule) -> PlateauState:
    """The state after an evaluation.

    Args:
        state: the one before it.
        val_loss: validation loss at full length in nats, reduced over all ranks.
        schedule: ``factor``, ``patience``, ``threshold``, ``threshold_mode``, ``cooldown`` and ``min_lr_ratio``.

    Returns:
        The next state; its factor is smaller where the loss has not become better for more than ``patience``
        evaluations.
    """
    if _is_better(val_loss, state.best, schedule):
        state = replace(state, best=val_loss, bad_evaluations=0)
    else:
        state = replace(state, bad_evaluations=state.bad_evaluations + 1)
    if state.cooldown > 0:
        state = replace(state, cooldown=state.cooldown - 1, bad_evaluations=0)
    if state.bad_evaluations <= schedule.patience:
        return state
    reduced = max(state.factor * schedule.factor, schedule.min_lr_ratio)
    factor = reduced if state.factor - reduced > _SMALLEST_CHANGE else state.factor
    return replace(state, factor=factor, bad_evaluations=0, cooldown=schedule.cooldown)


def _is_better(val_loss: float, best: float | None, schedule: Schedule) -> bool:
    if best is None:
        return val_loss < math.inf
    if schedule.threshold_mode == "rel":
        return val_loss < best * (1.0 - schedule.threshold)
    return val_loss < best - schedule.threshold
