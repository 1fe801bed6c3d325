"""What a sweep's losses say, on curves whose corners are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_pretrain.config import LrFinder
from ds_pretrain.schedules.lr_sweep import (
    SweepPoint,
    climb_ending,
    climb_rates,
    find_rates,
    search_ending,
    search_rates,
    smoothed,
    steepest_rate,
)

NAN = float("nan")


def settings(**changes: Any) -> LrFinder:
    return LrFinder(**{"start_lr": 1e-5, "end_lr": 1.0, "steps": 101, "warm_start_steps": 20, **changes})


def points(rates: tuple[float, ...], losses: list[float]) -> list[SweepPoint]:
    return [SweepPoint(lr, loss, not math.isfinite(loss)) for lr, loss in zip(rates, losses, strict=False)]


def test_the_search_goes_up_in_equal_ratios() -> None:
    assert search_rates(settings(steps=11)) == pytest.approx([10 ** (-5 + 0.5 * step) for step in range(11)], rel=1e-12)
    assert search_rates(settings(steps=11))[-1] == 1.0


def test_the_climb_ramps_holds_and_goes_on_at_the_pace_of_the_search() -> None:
    # a quarter of 12 steps leads up to the steepest rate; from there each step is half a decade
    rates = climb_rates(settings(steps=11, warm_start_steps=12), steepest=0.01)
    assert rates[:3] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01])
    assert set(rates[2:12]) == {0.01}
    assert rates[12:] == pytest.approx([10**-1.5, 0.1, 10**-0.5, 1.0])


@given(
    st.floats(1e-7, 1e-3),
    st.floats(1.5, 1e6),
    st.integers(10, 300),
    st.integers(10, 100),
    st.floats(0, 1),
)
def test_no_rate_goes_beyond_the_end(start: float, ratio: float, steps: int, warm: int, at: float) -> None:
    chosen = settings(start_lr=start, end_lr=start * ratio, steps=steps, warm_start_steps=warm)
    search = search_rates(chosen)
    assert len(search) == steps
    assert list(search) == sorted(search)
    climb = climb_rates(chosen, search[round(at * (steps - 1))])
    assert len(climb) >= warm
    assert list(climb) == sorted(climb)
    assert climb[-1] <= chosen.end_lr * (1 + 1e-9)


def test_smoothing_has_no_bias_of_the_first_value() -> None:
    # halves: 8; (8 / 4 + 4 / 2) / (3 / 4); (8 / 8 + 4 / 4 + 2 / 2) / (7 / 8)
    assert smoothed([8.0, 4.0, 2.0], 0.5) == pytest.approx([8.0, 16 / 3, 24 / 7])
    assert smoothed([3.0, 1.0], 0.0) == [3.0, 1.0]


@given(st.floats(-10, 10), st.floats(0, 0.99), st.integers(1, 50))
def test_smoothing_keeps_a_constant(value: float, smoothing: float, count: int) -> None:
    assert smoothed([value] * count, smoothing) == pytest.approx([value] * count)


def test_steepest_is_the_middle_of_the_steepest_line() -> None:
    # flat, then down by 0.1 a step from step 30 to step 50, then flat
    losses = [8.0 - 0.1 * min(max(step - 30, 0), 20) for step in range(101)]
    chosen = settings()
    search = points(search_rates(chosen), losses)
    assert steepest_rate(search, chosen) == search[40].lr
    # noise of one step does not count for a descent
    losses[70] += 1.0
    assert steepest_rate(points(search_rates(chosen), losses), chosen) == search[40].lr


def test_a_search_without_a_finite_loss_stays_at_its_first_rate() -> None:
    chosen = settings()
    assert steepest_rate(points(search_rates(chosen), [NAN]), chosen) == 1e-5


def test_a_search_ends_for_its_reasons() -> None:
    chosen = settings(smoothing=0.0, divergence_factor=2.0)
    rates = search_rates(chosen)
    assert search_ending(points(rates, [8.0, 7.0]), chosen) is None
    assert search_ending(points(rates, [8.0, 7.0, NAN]), chosen) == "not finite"
    # a perplexity of more than twice the lowest: ln 2 = 0.693
    assert search_ending(points(rates, [8.0, 7.0, 7.69]), chosen) is None
    assert search_ending(points(rates, [8.0, 7.0, 7.70]), chosen) == "diverged"
    assert search_ending(points(rates, [8.0] * 101), chosen) == "end of the sweep"
    # two steps without a new minimum, without memory; but not before the loss has fallen at all
    assert search_ending(points(rates, [8.0, 7.0, 7.1, 7.1]), chosen) == "stalled"
    assert search_ending(points(rates, [8.0, 7.9, 8.0, 8.0]), chosen) is None


def climb(losses: list[float], **changes: Any) -> tuple[list[SweepPoint], LrFinder]:
    chosen = settings(smoothing=0.5, divergence_factor=1.25, safety_divisor=4.0, **changes)
    return points(climb_rates(chosen, 1e-3), losses), chosen


def search_of(chosen: LrFinder) -> list[SweepPoint]:
    return points(search_rates(chosen), [8.0, NAN])


def test_the_edge_is_where_the_climb_turned() -> None:
    # falls by 0.1 a step up to step 40, then rises by 0.05; the average is lowest at step 41, one step late
    losses = [7.0 - 0.1 * step if step <= 40 else 3.0 + 0.05 * (step - 40) for step in range(60)]
    taken, chosen = climb(losses)
    over = next(count for count in range(1, 61) if climb_ending(taken[:count], chosen, 80))
    assert climb_ending(taken[:over], chosen, 80) == "diverged"
    finding = find_rates(search_of(chosen), taken[:over], chosen)
    assert finding.edge == taken[41].lr
    assert finding.suggestion == finding.edge / 4
    assert finding.bound == "exact"
    # ln 1.25 = 0.223 above the minimum of about 3.05, with a lag of a step: at about 3.32
    assert over == pytest.approx(47, abs=1)


def test_losses_that_are_no_numbers_end_a_climb_and_count_for_nothing() -> None:
    losses = [7.0 - 0.1 * step for step in range(30)] + [NAN]
    taken, chosen = climb(losses)
    finding = find_rates(search_of(chosen), taken, chosen)
    assert (finding.climb_ending, finding.search_ending, finding.bound) == ("not finite", "not finite", "exact")
    assert finding.edge == taken[29].lr


def test_a_climb_that_never_turns_gives_a_lower_bound() -> None:
    chosen = climb([])[1]
    count = len(climb_rates(chosen, 1e-3))
    taken, chosen = climb([7.0 - 0.01 * step for step in range(count)])
    finding = find_rates(search_of(chosen), taken, chosen)
    assert (finding.climb_ending, finding.bound) == ("end of the sweep", "at least")
    assert finding.edge == taken[count - 1].lr


@pytest.mark.parametrize("losses", [[NAN], [8.0, 7.9, 8.5], [8.0] * 5 + [8.4, 8.7]])
def test_a_loss_lost_before_the_climb_gives_an_upper_bound(losses: list[float]) -> None:
    taken, chosen = climb(losses)
    finding = find_rates(search_of(chosen), taken, chosen)
    assert finding.bound == "at most"
    assert finding.edge <= 1e-3
