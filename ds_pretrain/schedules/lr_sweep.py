"""A learning-rate sweep on paper: which rates it tries, when it is over, and what its losses say. Pure.

A length is swept twice from the same weights. The *search* raises the rate exponentially from the first step and finds
where the loss falls steepest. The *climb* first trains at that rate for a while, the warm start, and then raises the
rate from there at the same pace, until the loss leaves its minimum: the edge of stability.

Why twice: weights just drawn tell nothing about the edge. Their first lesson is how often each token occurs, and a
model that was broken by its rate forgets everything but that; so a single sweep runs on over rates at which no model
learns, with a loss that looks as if it did. Only weights that know more than that have something to lose.
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


@dataclass(frozen=True)
class Finding:
    """What the sweeps of one length say.

    Args:
        steepest: rate around which the loss fell fastest in the search.
        edge: largest rate before the loss left its minimum in the climb.
        suggestion: the edge divided by ``safety_divisor``.
        bound: ``exact``; ``at least`` where the climb ended before its loss had left the minimum; ``at most`` where
            the loss left it before there was anything to climb from.
        search_ending, climb_ending: why each sweep stopped.
    """

    steepest: float
    edge: float
    suggestion: float
    bound: Literal["exact", "at least", "at most"]
    search_ending: Ending
    climb_ending: Ending


def search_rates(settings: LrFinder) -> tuple[float, ...]:
    """Learning rates of the search: ``steps`` of them from ``start_lr`` to ``end_lr``, in equal ratios."""
    pace = _log_pace(settings)
    return (*(settings.start_lr * math.exp(pace * step) for step in range(settings.steps - 1)), settings.end_lr)


def climb_rates(settings: LrFinder, steepest: float) -> tuple[float, ...]:
    """Learning rates of the climb: up to ``steepest``, there for the warm start, then on at the pace of the search.

    Args:
        settings: of the recipe.
        steepest: what the search found.

    Returns:
        ``warm_start_steps`` rates, the first quarter of them a linear ramp, and those above ``steepest`` to ``end_lr``.
    """
    warm = settings.warm_start_steps
    ramp = max(1, warm // 4)
    pace = _log_pace(settings)
    steps = math.floor(math.log(settings.end_lr / steepest) / pace + 1e-9)
    hold = (steepest * min(1.0, (step + 1) / ramp) for step in range(warm))
    return (*hold, *(steepest * math.exp(pace * (step + 1)) for step in range(steps)))


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


def search_ending(points: Sequence[SweepPoint], settings: LrFinder) -> Ending | None:
    """Why a search is over after its last point; None where it goes on."""
    ending = climb_ending(points, settings, settings.steps)
    if ending is not None:
        return ending
    values = smoothed([point.loss for point in points], settings.smoothing)
    lowest = min(values)
    has_fallen = lowest < values[0] - math.log(settings.divergence_factor)
    # two lengths of the average's memory without a new minimum: the steepest descent lies behind
    has_stalled = len(values) - 1 - values.index(lowest) >= 2 * _memory(settings)
    return "stalled" if has_fallen and has_stalled else None


def climb_ending(points: Sequence[SweepPoint], settings: LrFinder, steps: int) -> Ending | None:
    """Why a climb of ``steps`` steps is over after its last point; None where it goes on."""
    if points[-1].bad:
        return "not finite"
    values = smoothed([point.loss for point in points], settings.smoothing)
    if values[-1] > min(values) + math.log(settings.divergence_factor):
        return "diverged"
    return "end of the sweep" if len(points) == steps else None


def steepest_rate(points: Sequence[SweepPoint], settings: LrFinder) -> float:
    """Rate around which a search's loss fell fastest per decade.

    The slope is that of a straight line through the losses of two memories of the average, by least squares; the rate
    is the middle of them. A line lags behind nothing, as the smoothed loss does.

    Args:
        points: of a search.
        settings: those of the search.
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


def find_rates(search: Sequence[SweepPoint], climb: Sequence[SweepPoint], settings: LrFinder) -> Finding:
    """Steepest descent, edge of stability and suggestion of a length.

    The edge is the rate at which the climb's smoothed loss was lowest. That average lags smoothing / (1 - smoothing)
    steps behind, so at the default pace the losses themselves turned at about half that rate.

    Args:
        search, climb: the points of both sweeps.
        settings: those of the sweeps.
    """
    steepest = steepest_rate(search, settings)
    values = smoothed([point.loss for point in climb if not point.bad], settings.smoothing)
    lowest = values.index(min(values)) if values else 0
    edge = climb[lowest].lr
    ended = climb_ending(climb, settings, len(climb))
    assert ended is not None
    bound: Literal["exact", "at least", "at most"] = "exact"
    if ended == "end of the sweep":
        bound = "at least"
    elif lowest < settings.warm_start_steps:
        bound = "at most"
    ending = search_ending(search, settings)
    assert ending is not None
    return Finding(steepest, edge, edge / settings.safety_divisor, bound, ending, ended)


def _log_pace(settings: LrFinder) -> float:
    return math.log(settings.end_lr / settings.start_lr) / (settings.steps - 1)


def _memory(settings: LrFinder) -> int:
    """Steps that the smoothed loss remembers."""
    return math.ceil(1 / (1 - settings.smoothing) - 1e-9)
