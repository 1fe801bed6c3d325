"""Short trainings, each at a peak rate of its own: which rates to try next, and what their losses say. Pure.

A *trial* is a whole short training: a warmup, then a cosine down to a tenth of the peak. All trials of a stage begin
at the same weights and see the same rows. Their peaks are rungs of one ladder, 1e-3 times powers of 2, which is
climbed up until no rate trains any more, and down until a lower rate is clearly worse. So the best rate was trained at,
and the edge lies between two that were: neither is predicted from a sweep.

The lowest rate that does not train gets a second trial, over other rows: near the edge, whether a training comes
through is a matter of luck. A rate trains if one of its trials does; its loss is that of the better one. The edge lies
between the highest rate that trains and the next one, where a line through what the two learned falls below that share.

A trial *trains* if it learns what a broken model does not. A model that was broken by its rate still knows how often
each token occurs; so the baseline is the loss of knowing only that (or the first loss, for weights that knew more),
and a trial trains if it gets at least half as far below it as the best one. Not less: at rates far too high some
trials still learn up to 0.48 of that, by luck.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ds_pretrain.config import LrFinder
from ds_pretrain.schedules.lr_sweep import SweepPoint

Bound = Literal["exact", "at least", "at most"]
RUNG = 2.0
ANCHOR = 1e-3
# where the best rate of a short training lay, on the models measured, by the rate of a sweep's steepest descent
FROM_STEEPEST = 4.0
# share of the best trial's learning that is training
TRAINS = 0.5
# of the best trial's learning, that a lower rate has to lack to be worse by more than chance
CLEARLY = 0.1
# nats below the loss of knowing frequencies from which on a trial has certainly learned more than them
MARGIN = 0.1
# trials of a rung that decides where the edge is
_TRIES = 2
# the suggestion is never more than the highest rate that trains over this
MIN_DIVISOR = 2.0
FLOOR = 0.1


@dataclass(frozen=True)
class Trial:
    """A short training.

    Args:
        peak_lr: rate at the end of its warmup.
        points: its steps.
        loss: what it came to, in nats per token; infinite where a number was not finite.
    """

    peak_lr: float
    points: tuple[SweepPoint, ...]
    loss: float


@dataclass(frozen=True)
class Baselines:
    """Losses in nats per token, of the same text as the trials' losses, that are not training.

    Args:
        first: of the weights that every trial begins with.
        frequencies: of knowing only how often each token occurs.
    """

    first: float
    frequencies: float


@dataclass(frozen=True)
class Finding:
    """What the trials of a stage say.

    Args:
        edge: rate up to which runs train, found between two rates that were trained at.
        edge_bound: ``at least`` where no rate was tried that does not train, ``at most`` where none does.
        highest_stable: the highest rate tried that trains, or the lowest one tried where none does.
        best: rate of the lowest loss.
        best_bound: ``at most`` where the loss was still falling at the lowest rate tried, ``at least`` at the highest.
        suggestion: peak rate to train with.
        divisor: edge over suggestion.
        baseline: loss in nats per token that a trial must get below to have learned anything.
        knows_frequencies: whether that is the loss of knowing how often each token occurs; where no trial got below
            it, the first loss takes its place, and the edge is worth less.
    """

    edge: float
    edge_bound: Bound
    highest_stable: float
    best: float
    best_bound: Bound
    suggestion: float
    divisor: float
    baseline: float
    knows_frequencies: bool


def last_steps(steps: int) -> int:
    """How many steps at its end tell what a trial came to, where there is no validation text."""
    return max(1, steps // 8)


def trial_rates(peak_lr: float, steps: int, warmup_steps: int) -> tuple[float, ...]:
    """Learning rates of a trial: a linear warmup, then half a cosine from the peak down to a tenth of it.

    Args:
        peak_lr: rate of the last step of the warmup and the first one after.
        steps: of the trial.
        warmup_steps: of them, the warmup.
    """
    rest = steps - warmup_steps
    warmup = ((step + 1) / warmup_steps for step in range(warmup_steps))
    cosine = (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * step / rest)) for step in range(rest))
    return tuple(peak_lr * factor for factor in (*warmup, *cosine))


def first_peak(steepest: float, settings: LrFinder) -> float:
    """The rung to begin at: four times the sweep's steepest descent, within the range of rates.

    Args:
        steepest: rate around which a sweep's loss fell fastest.
        settings: of the recipe.
    """
    lowest = math.ceil(_height(settings.start_lr) - 1e-6)
    highest = math.floor(_height(settings.end_lr) + 1e-6)
    return _rung(max(min(round(_height(FROM_STEEPEST * steepest)), highest), lowest))


def next_peak(trials: Sequence[Trial], baselines: Baselines, settings: LrFinder) -> float | None:
    """The peak rate to try next, which may be that of a trial before; None where the trials are enough.

    Args:
        trials: so far, at least one, in any order: rungs without a gap.
        baselines: what is not training.
        settings: range of rates, number of trials, and whether the best rate is asked for.
    """
    if len(trials) >= settings.max_trials:
        return None
    ladder = _ladder(trials)
    learned, _, knows_frequencies = _learned(ladder, baselines)
    up, down = ladder[-1].peak_lr * RUNG, ladder[0].peak_lr / RUNG
    trains = _trains(learned)
    # down first: what trains is measured by the best
    # while no trial knows frequencies all of them may be broken, and which of those ends lowest is chance
    wants_lower = not knows_frequencies or (
        settings.safety_divisor == "auto" and learned[0] > (1.0 - CLEARLY) * max(learned)
    )
    goes_up = trains[-1] and up <= settings.end_lr
    if wants_lower and down >= settings.start_lr and not (len(trials) == 1 and goes_up):
        return down
    return up if goes_up else _doubtful(ladder, trains, trials)


def judge(trials: Sequence[Trial], baselines: Baselines, settings: LrFinder) -> Finding:
    """Edge, best rate and suggestion, from all trials of a stage.

    The suggestion is the best rate, but never more than half of the highest rate that trains; with a number as
    ``safety_divisor`` it is the edge divided by that.

    Args:
        trials: at least one, in any order: rungs without a gap.
        baselines: what is not training.
        settings: of the recipe.
    """
    ladder = _ladder(trials)
    learned, baseline, knows_frequencies = _learned(ladder, baselines)
    highest, bound = _highest(ladder, _trains(learned))
    edge = _edge(trials, highest, baseline, TRAINS * max(learned)) if bound == "exact" else highest
    best = _best(ladder)
    best_bound: Bound = "at most" if best is ladder[0] else "at least" if best is ladder[-1] else "exact"
    divisor = settings.safety_divisor
    suggestion = min(best.peak_lr, highest / MIN_DIVISOR) if divisor == "auto" else edge / divisor
    return Finding(
        edge, bound, highest, best.peak_lr, best_bound, suggestion, edge / suggestion, baseline, knows_frequencies
    )  # fmt: skip


def _rung(height: int) -> float:
    return ANCHOR * RUNG**height


def _height(rate: float) -> float:
    """Rungs above 1e-3."""
    return math.log(rate / ANCHOR, RUNG)


def _ladder(trials: Sequence[Trial]) -> list[Trial]:
    """The better trial of every rung, from the lowest rate up."""
    better: dict[float, Trial] = {}
    for trial in sorted(trials, key=lambda trial: trial.loss):
        better.setdefault(trial.peak_lr, trial)
    return [better[peak] for peak in sorted(better)]


def _doubtful(ladder: Sequence[Trial], trains: Sequence[bool], trials: Sequence[Trial]) -> float | None:
    """The rung above the highest one that trains, unless it was tried twice or its numbers broke; None without one."""
    if not any(trains):
        return None
    above = len(trains) - trains[::-1].index(True)
    if above == len(ladder) or not math.isfinite(ladder[above].loss):
        return None
    peak = ladder[above].peak_lr
    return peak if repetitions(trials, peak) < _TRIES else None


def repetitions(trials: Sequence[Trial], peak_lr: float) -> int:
    """How many of the trials were at a rate."""
    return sum(trial.peak_lr == peak_lr for trial in trials)


def _best(ladder: Sequence[Trial]) -> Trial:
    return min(ladder, key=lambda trial: trial.loss)


def _highest(ladder: Sequence[Trial], trains: Sequence[bool]) -> tuple[float, Bound]:
    training = [trial.peak_lr for trial, does in zip(ladder, trains, strict=True) if does]
    if not training:
        return ladder[0].peak_lr, "at most"
    return training[-1], "at least" if training[-1] == ladder[-1].peak_lr else "exact"


def _edge(trials: Sequence[Trial], highest: float, baseline: float, needed: float) -> float:
    """Where, by the logarithm of the rate, what trials learn falls below what is needed to train.

    Args:
        trials: some at the highest rate that trains, some a rung above it.
        highest: that rate.
        baseline: loss that is not training; nobody learns less than nothing.
        needed: nats below it that are.
    """
    below, above = (
        statistics.fmean(max(0.0, baseline - trial.loss) for trial in trials if trial.peak_lr == rate)
        for rate in (highest, highest * RUNG)
    )
    below = max(below, needed)  # one of two trials may have trained, and their mean not
    return float(highest * RUNG ** ((below - needed) / (below - above)))


def _learned(ladder: Sequence[Trial], baselines: Baselines) -> tuple[list[float], float, bool]:
    """Nats that every trial got below the baseline, never negative; the baseline; whether it is of frequencies."""
    knows = _best(ladder).loss < baselines.frequencies - MARGIN
    baseline = min(baselines.first, baselines.frequencies) if knows else baselines.first
    return [max(0.0, baseline - trial.loss) for trial in ladder], baseline, knows


def _trains(learned: Sequence[float]) -> list[bool]:
    return [amount > 0 and amount >= TRAINS * max(learned) for amount in learned]
