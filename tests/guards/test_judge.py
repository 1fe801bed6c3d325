from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_pretrain.config import Safety
from ds_pretrain.guards import GuardState, StepFacts, Verdict, after_evaluation, after_step, is_bad_step

SAFETY = Safety()
LEVEL = 4.0


def run(
    losses: Iterable[float],
    safety: Safety = SAFETY,
    *,
    state: GuardState | None = None,
    stage: int = 0,
    warmup: int = 0,
    first: int = 1,
    norm: float = 1.0,
) -> tuple[GuardState, list[Verdict]]:
    """A stage's losses through the guards, up to the first rollback; a loss that is no number is a bad step."""
    state, verdicts = state or GuardState(), []
    for step, loss in enumerate(losses, start=first):
        bad = not math.isfinite(loss)
        facts = StepFacts(step, stage, step - first < warmup, loss, math.inf if bad else norm, bad)
        state, verdict = after_step(state, facts, safety)
        verdicts.append(verdict)
        if verdict.rollback is not None:
            break
    return state, verdicts


def test_the_loss_ratio_is_over_the_lowest_loss_of_the_stage() -> None:
    state, first = run([4.0, 5.0, 2.0, 3.0, math.nan])
    assert [verdict.loss_ratio for verdict in first] == [1.0, 1.25, 1.0, 1.5, None]
    _, second = run([8.0, 9.0], state=state, stage=1, first=6)
    assert [verdict.loss_ratio for verdict in second] == [1.0, 1.125]


def test_an_overflow_above_the_minimum_scale_is_the_scaler_at_work() -> None:
    assert not is_bad_step(3.0, skipped=True, loss_scale=1024.0, min_loss_scale=1.0)
    assert is_bad_step(3.0, skipped=True, loss_scale=1.0, min_loss_scale=1.0)
    assert is_bad_step(3.0, skipped=True, loss_scale=1.0, min_loss_scale=None)
    assert is_bad_step(math.inf, skipped=False, loss_scale=1.0, min_loss_scale=None)
    assert not is_bad_step(3.0, skipped=False, loss_scale=1.0, min_loss_scale=None)


def test_the_running_average_is_a_mean_that_becomes_exponential() -> None:
    state, _ = run([2.0, 4.0, 6.0], Safety(spike_window=5))
    # weights 1, 1/2, 1/3 up to here, and 2 / (5 + 1) from here on
    assert (state.average.mean, state.average.count) == (pytest.approx(4.0), 3)
    assert state.average.variance == pytest.approx(8.0 / 3.0)
    state, _ = run([7.0], Safety(spike_window=5), state=state)
    assert state.average.mean == pytest.approx(4.0 + 3.0 / 3.0)


def test_a_spike_damps_the_learning_rate_at_once_and_teaches_nothing() -> None:
    state, _ = run([LEVEL] * 50)
    after, (verdict,) = run([2.01 * LEVEL], state=state, first=51)
    assert verdict.spike
    assert verdict.rollback is None
    assert after.average == state.average
    assert after.damping.at(51, 100) == 0.5
    # while the loss is away the rate stays down; then it comes back in equal parts
    after, _ = run([1.5 * LEVEL] * 10, state=after, first=52)
    assert after.damping.at(61, 100) == 0.5
    after, verdicts = run([LEVEL] * 25, state=after, first=62)
    assert not any(verdict.spike for verdict in verdicts)
    assert after.damping.at(86, 100) == pytest.approx(0.625)
    assert after.damping.at(161, 100) == after.damping.at(500, 100) == 1.0


def test_a_loss_just_below_the_limit_is_no_spike() -> None:
    state, _ = run([LEVEL] * 50)
    after, (verdict,) = run([1.99 * LEVEL], state=state, first=51)
    assert not verdict.spike
    assert after.average.mean > LEVEL


def test_deviations_count_where_they_are_asked_for() -> None:
    losses = [LEVEL + 0.1 * (-1) ** step for step in range(60)]
    safety = Safety(spike_sigma=5.0)
    state, verdicts = run(losses, safety)
    assert not any(verdict.spike for verdict in verdicts)
    assert state.average.deviation == pytest.approx(0.1, rel=0.05)
    assert run([LEVEL + 0.55], safety, state=state, first=61)[1][0].spike
    assert not run([LEVEL + 0.45], safety, state=state, first=61)[1][0].spike
    assert not run([LEVEL + 0.55], state=state, first=61)[1][0].spike


def test_a_loss_that_does_not_come_back_sends_the_run_back() -> None:
    state, _ = run([LEVEL] * 50)
    # no spike any more, and yet not back
    after, verdicts = run([9.0] + [1.5 * LEVEL] * 300, state=state, first=51)
    assert len(verdicts) == 1 + SAFETY.spike_patience
    assert "left its running average at step 51" in str(verdicts[-1].rollback)
    assert after.sound_step == 50


def test_a_loss_that_is_back_at_the_last_moment_stays() -> None:
    state, _ = run([LEVEL] * 50)
    patience = SAFETY.spike_patience
    after, verdicts = run([9.0, *[1.5 * LEVEL] * (patience - 1), *[LEVEL] * 400], state=state, first=51)
    assert all(verdict.rollback is None for verdict in verdicts)
    assert after.incident is None
    assert after.sound_step == 50 + len(verdicts)


def test_the_third_spike_sends_the_run_back_before_the_first() -> None:
    state, _ = run([LEVEL] * 50)
    losses = [*[9.0], *[LEVEL] * 40, *[9.0], *[LEVEL] * 40, *[9.0]]
    after, verdicts = run(losses, state=state, first=51)
    assert [index for index, verdict in enumerate(verdicts) if verdict.spike] == [0, 41, 82]
    assert "spiked 3 times from step 51 on" in str(verdicts[-1].rollback)
    # what was saved between them is not good
    assert after.sound_step == 50
    # each lowers what is left of the last
    second = 0.5 * (1.0 - 0.5 * 0.59)
    assert after.damping.factor == pytest.approx(0.5 * (1.0 - (1.0 - second) * 0.59))


def test_spikes_far_apart_are_borne() -> None:
    state, _ = run([LEVEL] * 50)
    losses = ([9.0] + [LEVEL] * (SAFETY.spike_patience + 1)) * 10
    _, verdicts = run(losses, state=state, first=51)
    assert sum(verdict.spike for verdict in verdicts) == 10
    assert all(verdict.rollback is None for verdict in verdicts)


def test_bad_steps_damp_at_once_and_go_back_after_the_limit() -> None:
    state, _ = run([LEVEL] * 20)
    after, verdicts = run([math.nan] * 30, state=state, first=21)
    assert len(verdicts) == SAFETY.max_consecutive_bad_steps + 1
    assert "11 steps from 21 on" in str(verdicts[-1].rollback)
    assert after.average == state.average
    assert after.sound_step == 20
    assert after.damping.at(31, 100) == 0.5
    once, _ = run([math.nan], state=state, first=21)
    assert once.damping.at(21, 100) == 0.5


@pytest.mark.parametrize("limit", [1, 2, 10])
def test_every_other_step_bad_is_a_row_too(limit: int) -> None:
    safety = Safety(max_consecutive_bad_steps=limit)
    _, verdicts = run([math.nan, LEVEL] * 30, safety)
    assert sum(verdict.loss_ratio is None for verdict in verdicts) == limit + 1
    assert verdicts[-1].rollback is not None


def test_a_bad_step_now_and_then_is_borne() -> None:
    state, verdicts = run([math.nan, *[LEVEL] * 11] * 40)
    assert all(verdict.rollback is None for verdict in verdicts)
    assert state.sound_step == 480


def test_a_slow_divergence_is_warned_of_and_goes_back_to_where_it_began() -> None:
    state, _ = run([LEVEL] * 300)
    # a quarter of a percent a step: never a spike
    losses = [LEVEL * 1.0025**step for step in range(1, 1000)]
    after, verdicts = run(losses, state=state, first=301)
    assert not any(verdict.spike for verdict in verdicts)
    warned = [index for index, verdict in enumerate(verdicts) for notice in verdict.notices if notice.kind == "drift"]
    assert len(warned) == 1
    assert 100 < warned[0] < 200
    assert "2.00 times its lowest" in str(verdicts[-1].rollback)
    assert len(verdicts) < 400
    assert 300 <= after.sound_step < 370


def test_a_warmup_is_a_grace_that_makes_no_checkpoint_good() -> None:
    """A divergence inside a warmup goes back as soon as that ends, to before it began."""
    state, _ = run([LEVEL] * 100)
    losses = [LEVEL] * 5 + [min(LEVEL * 1.2**step, 30.0) for step in range(1, 200)]
    after, verdicts = run(losses, state=state, stage=1, warmup=60, first=101)
    assert not any(verdict.spike for verdict in verdicts)
    assert len(verdicts) == 61
    assert "times its lowest" in str(verdicts[-1].rollback)
    assert 100 <= after.sound_step <= 108


def test_one_loss_in_a_grace_does_no_harm() -> None:
    state, verdicts = run([*[LEVEL] * 20, 50.0, *[LEVEL] * 200], warmup=40)
    assert all(verdict.rollback is None and not verdict.spike for verdict in verdicts)
    assert state.sound_step == 221


def test_a_divergence_at_once_in_a_new_stage_is_noticed() -> None:
    state, _ = run([LEVEL] * 100)
    after, verdicts = run([LEVEL, 20.0, *[40.0] * 100], state=state, stage=1, first=101)
    assert len(verdicts) == 10
    assert "times its lowest" in str(verdicts[-1].rollback)
    assert after.sound_step <= 102


def test_a_lucky_first_batch_is_not_what_a_stage_is_measured_by() -> None:
    state, verdicts = run([0.8 * LEVEL, *[LEVEL] * 100])
    assert state.sound_step == 101
    assert all(verdict.notices == () for verdict in verdicts)


def test_a_new_stage_starts_average_and_lowest_loss_anew() -> None:
    state, _ = run([LEVEL] * 100)
    after, verdicts = run([3.0 * LEVEL] * 100, state=state, stage=1, first=101)
    assert all(verdict.rollback is None and not verdict.spike for verdict in verdicts)
    assert after.average.mean == after.lowest_average == 3.0 * LEVEL
    assert after.sound_step == 200


def test_a_change_of_stage_heals_neither_a_spike_nor_a_drift() -> None:
    state, _ = run([*[LEVEL] * 100, 9.0])
    after, verdicts = run([1.5 * LEVEL] * 300, state=state, stage=1, warmup=10, first=102)
    assert len(verdicts) == SAFETY.spike_patience
    assert after.sound_step == 100
    drifting, _ = run([*[LEVEL] * 100, *[1.5 * LEVEL] * 120])
    assert drifting.drifting
    after, _ = run([1.5 * LEVEL] * 100, state=drifting, stage=1, first=221)
    assert after.sound_step < 121
    after, verdicts = run([2.5 * LEVEL] * 100, state=drifting, stage=1, first=221)
    assert verdicts[-1].rollback is not None


def test_an_explosion_of_the_gradient_is_warned_of_once() -> None:
    state, _ = run([LEVEL] * 20, norm=0.5)
    after, verdicts = run([LEVEL] * 3, state=state, first=21, norm=5.1)
    assert [[notice.kind for notice in verdict.notices] for verdict in verdicts] == [["grad_norm"], [], []]
    assert "10.2 times its running average" in verdicts[0].notices[0].text
    assert after.sound_step == 23
    _, verdicts = run([LEVEL], state=state, first=21, norm=4.9)
    assert verdicts[0].notices == ()
    # the loss scaler at work is no explosion
    _, verdicts = run([LEVEL], state=state, first=21, norm=math.inf)
    assert verdicts[0].notices == ()


def test_validation_far_above_training_is_warned_of_where_asked_for() -> None:
    state, _ = run([LEVEL] * 20)
    safety = Safety(val_gap_threshold=0.5)
    gap, notices = after_evaluation(state, 4.6, safety)
    assert (gap, [notice.kind for notice in notices]) == (pytest.approx(0.6), ["val_gap"])
    assert after_evaluation(state, 4.4, safety) == (pytest.approx(0.4), ())
    assert after_evaluation(state, 9.0, SAFETY)[1] == ()
    assert after_evaluation(run([LEVEL] * 9)[0], 9.0, safety) == (None, ())


LOSSES = st.lists(st.one_of(st.floats(0.01, 100.0), st.just(math.nan)), min_size=1, max_size=80)


@given(LOSSES, st.integers(0, 79))
def test_a_state_through_a_checkpoint_decides_as_before(losses: list[float], at: int) -> None:
    """A resume changes nothing: every number survives JSON to the bit."""
    safety = Safety(spike_patience=20, max_consecutive_bad_steps=3, spike_window=10)
    before, _ = run(losses[:at], safety)
    loaded = GuardState.from_json(json.loads(json.dumps(asdict(before))))
    assert loaded == before
    first = min(at, len(losses)) + 1
    assert run(losses[at:], safety, state=loaded, first=first) == run(losses[at:], safety, state=before, first=first)


@given(LOSSES)
def test_what_is_sound_never_lies_ahead_and_damping_is_a_share(losses: list[float]) -> None:
    state, verdicts = run(losses, Safety(spike_patience=20, max_consecutive_bad_steps=3, spike_window=10))
    assert 0 <= state.sound_step <= len(verdicts)
    assert 0.0 < state.damping.at(len(verdicts), 100) <= 1.0
    if verdicts[-1].rollback is not None:
        assert state.sound_step < len(verdicts)
