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
    smoothed,
    steepest_rate,
    sweep_ending,
    sweep_rates,
)

NAN = float("nan")


def settings(**changes: Any) -> LrFinder:
    return LrFinder(**{"start_lr": 1e-5, "end_lr": 1.0, "steps": 101, **changes})


def points(rates: tuple[float, ...], losses: list[float]) -> list[SweepPoint]:
    return [SweepPoint(lr, loss, not math.isfinite(loss)) for lr, loss in zip(rates, losses, strict=False)]


def test_a_sweep_goes_up_in_equal_ratios() -> None:
    assert sweep_rates(settings(steps=11)) == pytest.approx([10 ** (-5 + 0.5 * step) for step in range(11)], rel=1e-12)
    assert sweep_rates(settings(steps=11))[-1] == 1.0


@given(st.floats(1e-7, 1e-3), st.floats(2, 1e6), st.integers(10, 300))
def test_no_rate_goes_beyond_the_end(start: float, ratio: float, steps: int) -> None:
    rates = sweep_rates(settings(start_lr=start, end_lr=start * ratio, steps=steps))
    assert len(rates) == steps
    assert list(rates) == sorted(rates)
    assert (rates[0], rates[-1]) == (pytest.approx(start), start * ratio)


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
    search = points(sweep_rates(chosen), losses)
    assert steepest_rate(search, chosen) == search[40].lr
    # noise of one step does not count for a descent
    losses[70] += 1.0
    assert steepest_rate(points(sweep_rates(chosen), losses), chosen) == search[40].lr


def test_a_sweep_without_a_finite_loss_stays_at_its_first_rate() -> None:
    chosen = settings()
    assert steepest_rate(points(sweep_rates(chosen), [NAN]), chosen) == 1e-5


def test_a_sweep_ends_for_its_reasons() -> None:
    chosen = settings(smoothing=0.0, divergence_factor=2.0)
    rates = sweep_rates(chosen)
    assert sweep_ending(points(rates, [8.0, 7.0]), chosen) is None
    assert sweep_ending(points(rates, [8.0, 7.0, NAN]), chosen) == "not finite"
    # a perplexity of more than twice the lowest: ln 2 = 0.693
    assert sweep_ending(points(rates, [8.0, 7.0, 7.69]), chosen) is None
    assert sweep_ending(points(rates, [8.0, 7.0, 7.70]), chosen) == "diverged"
    assert sweep_ending(points(rates, [8.0] * 101), chosen) == "end of the sweep"
    # two steps without a new minimum, without memory; but not before the loss has fallen at all
    assert sweep_ending(points(rates, [8.0, 7.0, 7.1, 7.1]), chosen) == "stalled"
    assert sweep_ending(points(rates, [8.0, 7.9, 8.0, 8.0]), chosen) is None
