"""A learning-rate sweep on paper: which rates it tries, when it is over, and where its loss falls steepest. Pure.

The rate rises exponentially from the first step on (Smith: Cyclical Learning Rates, WACV 2017). A sweep brackets only:
its loss follows rates that each had one step. It cannot tell where training gives out, since weights just drawn have
nothing to lose: their first lesson is how often each token occurs, and a model broken by its rate still knows that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ds_pretrain.config import LrFinder

Ending = Literal["diverged", "not finite", "stalled", "end of the sweep"]


@dataclass(frozen=True)
class SweepPoint:
    """One optimizer step of a sweep.

    Args:
        lr: learning rate of the step.
        loss: its loss in nats per token, before the update, reduced over all ranks.
        bad: whether loss or gradient was not finite (an overflow that only lowers the loss scale is not bad).
    """

    lr: float
    loss: float
    bad: bool = False


def sweep_rates(settings: LrFinder) -> tuple[float, ...]:
    """Learning rates of a sweep: ``steps`` of them from ``start_lr`` to ``end_lr``, in equal ratios."""
    pace = _log_pace(settings)
    return (*(settings.start_lr * math.exp(pace * step) for step in range(settings.steps - 1)), settings.end_lr)


def smoothed(losses: Sequence[float], smoothing: float) -> list[float]:
    """Exponential moving average without the bias of its first value.

    s_k = (1 - b) x sum over i <= k of b^(k - i) x loss_i, divided by 1 - b^(k + 1): the correction of Adam's moments
    (Kingma and Ba, 2015).

    Args:
        losses: in nats, in the order of steps.
        smoothing: b, the share of the past.
    """
    average, values = 0.0, []
    for count, loss in enumerate(losses, 1):
        average = smoothing * average + (1 - smoothing) * loss
        values.append(average / (1 - smoothing**count))
    return values


def sweep_ending(points: Sequence[SweepPoint], settings: LrFinder) -> Ending | None:
    """Why a sweep is over after its last point; None where it goes on."""
    if points[-1].bad:
        return "not finite"
    values = smoothed([point.loss for point in points], settings.smoothing)
    lowest = min(values)
    if values[-1] > lowest + math.log(settings.divergence_factor):
        return "diverged"
    has_fallen = lowest < values[0] - math.log(settings.divergence_factor)
    # two lengths of the average's memory without a new minimum: the steepest descent lies behind
    has_stalled = len(values) - 1 - values.index(lowest) >= 2 * _memory(settings)
    if has_fallen and has_stalled:
        return "stalled"
    return "end of the sweep" if len(points) == settings.steps else None


def steepest_rate(points: Sequence[SweepPoint], settings: LrFinder) -> float:
    """Rate around which a sweep's loss fell fastest per decade.

    The slope is that of a straight line through the losses of two memories of the average, by least squares; the rate
    is the middle of them. A line lags behind nothing, as the smoothed loss does.

    Args:
        points: of a sweep.
        settings: those of the sweep.
    """
    losses = [point.loss for point in points if not point.bad]
    width = min(2 * _memory(settings) + 1, len(losses))
    if width < 2:
        return points[0].lr
    centre = (width - 1) / 2
    slopes = [
        sum((offset - centre) * loss for offset, loss in enumerate(losses[first : first + width]))
        for first in range(len(losses) - width + 1)
    ]
    return points[slopes.index(min(slopes)) + width // 2].lr


def _log_pace(settings: LrFinder) -> float:
    return math.log(settings.end_lr / settings.start_lr) / (settings.steps - 1)


def _memory(settings: LrFinder) -> int:
    """Steps that the smoothed loss remembers."""
    return math.ceil(1 / (1 - settings.smoothing) - 1e-9)
