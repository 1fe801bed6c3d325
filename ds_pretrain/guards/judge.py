"""What a step was, and whether the run has to go back: (state, reduced values) to (state, verdict).

A step is *bad* where its loss is no number, or its gradient overflowed at the loss scaler's minimum; its update was
left out. A loss beyond a multiple of its running average is a *spike*, and away until it is near the average again.
A running average far above its lowest is a *drift*: a divergence too slow to ever be a spike. Each stage's warmup is
a grace, in which spikes and drifts are seen, so that no checkpoint counts as good meanwhile, but not acted upon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ds_pretrain.config import Safety
from ds_pretrain.guards.state import BadRow, Damping, GuardState, Incident, RunningAverage

# steps that an average has to have seen before anything is judged by it
_SETTLED = 10
# of the way from the average up to a spike: what is no longer near the average
_NEAR = 0.3
# the same for a running average, whose noise is small, above its lowest
_NEAR_LOWEST = 0.05
# the loss leaves so often before the run goes back
_REPEATED = 3


@dataclass(frozen=True)
class StepFacts:
    """What a step came to, reduced over all ranks.

    Args:
        step: steps done, this one included.
        stage: its stage.
        grace: whether it lies in the stage's warmup.
        loss: in nats.
        grad_norm: L2 norm before the clip.
        bad: what ``is_bad_step`` says.
    """

    step: int
    stage: int
    grace: bool
    loss: float
    grad_norm: float
    bad: bool


@dataclass(frozen=True)
class Notice:
    """What a user should see: its name in events, and a sentence."""

    kind: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """What the guards say of a step.

    Args:
        loss_ratio: loss over the lowest loss before it in this stage (Li, Zhang, He, NeurIPS 2022: above 1.2 is
            unstable), at least 1; None where the loss is not finite.
        spike: whether the loss left its running average with this step.
        rollback: why the run has to go back; None where it goes on.
        notices: what is worth a warning.
    """

    loss_ratio: float | None
    spike: bool = False
    rollback: str | None = None
    notices: tuple[Notice, ...] = ()


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


def after_step(state: GuardState, facts: StepFacts, safety: Safety) -> tuple[GuardState, Verdict]:
    """The guards after a step.

    Args:
        state: the guards before it.
        facts: what the step came to.
        safety: the recipe's section.

    Returns:
        The next state, and what is to be done.
    """
    if state.stage != facts.stage:
        state = _enter(state, facts.stage)
    ratio = _loss_ratio(state, facts.loss)
    if facts.bad:
        state, rollback = _bad_step(state, facts.step, safety)
        return state, Verdict(ratio, rollback=rollback)
    state = _end_bad_row(state, safety)
    state, spike, rollback = _watch_loss(state, facts, safety)
    state = _learn(state, facts, safety)
    state, drift, drifted = _watch_drift(state, facts, safety)
    state, norm = _watch_grad_norm(state, facts, safety)
    if state.incident is None and state.bad_row is None and _near_lowest(state, facts.loss, safety):
        state = replace(state, sound_step=facts.step)
    return state, Verdict(ratio, spike, rollback or drifted, (*drift, *norm))


def after_evaluation(state: GuardState, val_loss: float, safety: Safety) -> tuple[float | None, tuple[Notice, ...]]:
    """How far validation loss is above training loss, and a warning where that is too far.

    Args:
        state: the guards after the last step.
        val_loss: at the stage's length, in nats.
        safety: the recipe's section.

    Returns:
        Validation loss minus the running average of training loss, in nats; None where the average is of too few steps.
    """
    if state.average.count < _SETTLED:
        return None, ()
    gap, limit = val_loss - state.average.mean, safety.val_gap_threshold
    if limit is None or gap <= limit:
        return gap, ()
    text = (
        f"validation loss {val_loss:.4f} is {gap:.4f} above training loss {state.average.mean:.4f} at the same length "
        f"(safety.val_gap_threshold is {limit:g})"
    )
    return gap, (Notice("val_gap", text),)


def _enter(state: GuardState, stage: int) -> GuardState:
    """A stage starts anew; but what is wrong stays wrong: a change of stage heals nothing."""
    fresh = replace(
        state,
        stage=stage,
        lowest_loss=None,
        average=RunningAverage(),
        grad_norm=RunningAverage(),
        grad_norm_high=False,
    )
    return fresh if state.drifting else replace(fresh, lowest_average=None)


def _loss_ratio(state: GuardState, loss: float) -> float | None:
    if not math.isfinite(loss):
        return None
    return 1.0 if state.lowest_loss is None else max(1.0, loss / state.lowest_loss)


def _bad_step(state: GuardState, step: int, safety: Safety) -> tuple[GuardState, str | None]:
    row, damping = state.bad_row, replace(state.damping, step=step)
    if row is None:
        row, damping = BadRow(start=step), _damped(state, step, safety)
    row = replace(row, count=row.count + 1, good=0)
    limit = safety.max_consecutive_bad_steps
    reason = None
    if row.count > limit:
        reason = (
            f"{row.count} steps from {row.start} on had a loss or gradient that is not a number "
            f"(safety.max_consecutive_bad_steps is {limit})"
        )
    return replace(state, bad_row=row, damping=damping), reason


def _end_bad_row(state: GuardState, safety: Safety) -> GuardState:
    """A row of bad steps is over after more good ones than it may have bad: every other step bad is a row too."""
    row = state.bad_row
    if row is None:
        return state
    over = row.good >= safety.max_consecutive_bad_steps
    return replace(state, bad_row=None if over else replace(row, good=row.good + 1))


def _watch_loss(state: GuardState, facts: StepFacts, safety: Safety) -> tuple[GuardState, bool, str | None]:
    incident = state.incident
    if incident is not None and incident.away_since is not None:
        if facts.loss <= incident.back:
            return replace(state, incident=replace(incident, away_since=None)), False, None
        held = replace(state, incident=replace(incident, last_away=facts.step), damping=_held(state, facts.step))
        patience = safety.spike_patience
        if facts.step - incident.away_since < patience:
            return held, False, None
        return held, False, (
            f"the loss left its running average at step {incident.away_since} and was not back below "
            f"{incident.back:.4f} within {patience} steps (safety.spike_patience)"
        )  # fmt: skip
    limit = _spike_limit(state, safety)
    if facts.grace or state.average.count < _SETTLED or facts.loss <= limit:
        if incident is not None and facts.step - incident.last_away > safety.spike_patience:
            state = replace(state, incident=None)
        return state, False, None
    mean = state.average.mean
    incident = Incident(
        start=facts.step if incident is None else incident.start,
        spikes=1 if incident is None else incident.spikes + 1,
        away_since=facts.step,
        last_away=facts.step,
        back=mean + _NEAR * (limit - mean),
    )
    reason = None
    if incident.spikes >= _REPEATED:
        reason = (
            f"the loss spiked {incident.spikes} times from step {incident.start} on, never back for "
            f"{safety.spike_patience} steps (safety.spike_patience)"
        )
    return replace(state, incident=incident, damping=_damped(state, facts.step, safety)), True, reason


def _spike_limit(state: GuardState, safety: Safety) -> float:
    average = state.average
    limit = safety.spike_factor * average.mean
    if safety.spike_sigma is None:
        return limit
    return min(limit, average.mean + safety.spike_sigma * average.deviation)


def _learn(state: GuardState, facts: StepFacts, safety: Safety) -> GuardState:
    lowest = facts.loss if state.lowest_loss is None else min(state.lowest_loss, facts.loss)
    state = replace(state, lowest_loss=lowest)
    if state.incident is not None and state.incident.away_since is not None:
        return state
    loss = facts.loss
    if state.average.count:  # in the grace nothing is a spike, and one loss must not lift the average for long
        loss = min(loss, safety.spike_factor * state.average.mean)
    average = state.average.learn(loss, safety.spike_window)
    return replace(state, average=average, lowest_average=_lowest_average(state, average, safety))


def _lowest_average(state: GuardState, average: RunningAverage, safety: Safety) -> float:
    lowest = state.lowest_average
    # a mean of a few losses can be low by luck: where nothing is wrong by then, the settled one is the first to count
    settles = average.count == _SETTLED and not state.drifting
    if lowest is None or (settles and average.mean <= _far(lowest, safety)):
        return average.mean
    return min(lowest, average.mean)


def _far(lowest: float, safety: Safety) -> float:
    return lowest * (1.0 + _NEAR * (safety.spike_factor - 1.0))


def _near_lowest(state: GuardState, loss: float, safety: Safety) -> bool:
    lowest = state.lowest_average
    if lowest is None or state.drifting or loss > _far(lowest, safety):
        return False
    settled = state.average.count >= _SETTLED
    return not settled or state.average.mean <= lowest * (1.0 + _NEAR_LOWEST)


def _watch_drift(
    state: GuardState, facts: StepFacts, safety: Safety
) -> tuple[GuardState, tuple[Notice, ...], str | None]:
    lowest, mean = state.lowest_average, state.average.mean
    if lowest is None or state.average.count < _SETTLED:
        return state, (), None
    if mean <= _far(lowest, safety):
        return replace(state, drifting=False), (), None
    seen = f"the running average of the loss is {mean:.4f}, {mean / lowest:.2f} times its lowest"
    notices = () if state.drifting else (Notice("drift", f"{seen}; it was sound at step {state.sound_step}"),)
    beyond = not facts.grace and mean >= safety.spike_factor * lowest
    reason = f"{seen} (safety.spike_factor is {safety.spike_factor:g})" if beyond else None
    return replace(state, drifting=True), notices, reason


def _watch_grad_norm(state: GuardState, facts: StepFacts, safety: Safety) -> tuple[GuardState, tuple[Notice, ...]]:
    norm, average = facts.grad_norm, state.grad_norm
    if not math.isfinite(norm):  # the loss scaler at work
        return state, ()
    limit = safety.grad_norm_factor * average.mean
    high = average.count >= _SETTLED and norm > limit
    notices: tuple[Notice, ...] = ()
    if high and not state.grad_norm_high:
        notices = (
            Notice(
                "grad_norm",
                f"gradient norm {norm:.4g} is {norm / average.mean:.1f} times its running average "
                f"(safety.grad_norm_factor is {safety.grad_norm_factor:g})",
            ),
        )
    learned = average.learn(min(norm, limit) if average.count else norm, safety.spike_window)
    return replace(state, grad_norm=learned, grad_norm_high=high), notices


def _damped(state: GuardState, step: int, safety: Safety) -> Damping:
    present = state.damping.at(step, safety.spike_recovery_steps)
    return Damping(present * safety.spike_lr_factor, step)


def _held(state: GuardState, step: int) -> Damping:
    return replace(state.damping, step=step)
