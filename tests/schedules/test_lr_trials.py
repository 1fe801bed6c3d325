"""Which rates are tried, and what trials say, on losses made by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_pretrain.config import LrFinder
from ds_pretrain.schedules.lr_sweep import SweepPoint
from ds_pretrain.schedules.lr_trials import (
    Baselines,
    Finding,
    Trial,
    first_peak,
    judge,
    next_peak,
    repetitions,
    trial_rates,
)

FREQUENCY = 6.4
BASELINES = Baselines(first=8.3, frequencies=FREQUENCY)


def settings(**changes: Any) -> LrFinder:
    return LrFinder(**changes)


def trial(peak_lr: float, loss: float) -> Trial:
    return Trial(peak_lr, (SweepPoint(peak_lr, loss, not math.isfinite(loss)),), loss)


def ladder(losses: Mapping[float, float]) -> list[Trial]:
    return [trial(rate, loss) for rate, loss in losses.items()]


def climbed(
    first: float, loss_at: Callable[[float], float], chosen: LrFinder, again: Callable[[float], float] | None = None
) -> tuple[list[float], Finding]:
    """The rates tried, in order, and the finding; ``again`` gives the losses of second trials, ``loss_at``'s if not."""
    trials, peak = [], first_peak(first / 4, chosen)
    while True:
        repeated = again is not None and repetitions(trials, peak)
        trials.append(trial(peak, again(peak) if repeated and again is not None else loss_at(peak)))
        following = next_peak(trials, BASELINES, chosen)
        if following is None:
            return [each.peak_lr for each in trials], judge(trials, BASELINES, chosen)
        peak = following


def test_a_trial_warms_up_and_falls_to_a_tenth() -> None:
    rates = trial_rates(0.1, 10, 2)
    assert rates[:3] == pytest.approx([0.05, 0.1, 0.1])
    # half a cosine over 8 steps: its middle is 0.55 of the peak, its last step 0.1 + 0.9 x (1 + cos(7 pi / 8)) / 2
    assert rates[6] == pytest.approx(0.055)
    assert rates[9] == pytest.approx(0.1 * (0.1 + 0.45 * (1 + math.cos(7 * math.pi / 8))))
    assert trial_rates(0.1, 10, 0)[0] == 0.1


def test_the_first_rate_is_the_rung_nearest_to_four_times_the_steepest() -> None:
    assert first_peak(6e-4, settings()) == 2e-3  # 2.4e-3 is nearer to 2e-3 than to 4e-3
    assert first_peak(7.6e-4, settings()) == 4e-3  # 3.04e-3, by ratio
    assert first_peak(1e-5, settings(start_lr=1e-3)) == 1e-3
    assert first_peak(1.0, settings(end_lr=0.1)) == 0.064


# the losses of 80 steps of the quickstart at length 64, as an example of what they look like
CURVE = {2.5e-4: 6.9, 5e-4: 6.2, 1e-3: 5.8, 2e-3: 5.4, 4e-3: 5.5, 8e-3: 5.6, 1.6e-2: 5.8, 3.2e-2: 6.38, 6.4e-2: 6.7}


@pytest.mark.parametrize(
    ("first", "tried"),
    [
        # down until one is worse, then up until one does not train, which is tried again
        (2e-3, [2e-3, 4e-3, 1e-3, 8e-3, 1.6e-2, 3.2e-2, 3.2e-2]),
        (1e-3, [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 3.2e-2]),
        (
            3.2e-2,
            [3.2e-2, 6.4e-2, 1.6e-2, 8e-3, 4e-3, 2e-3, 1e-3, 3.2e-2],
        ),  # the lower ones show that it does not train
    ],
)
def test_the_ladder_is_climbed_as_far_as_it_tells(first: float, tried: list[float]) -> None:
    rates, finding = climbed(first, CURVE.__getitem__, settings())
    assert rates == tried
    # the best learns 1.0 beyond the frequencies, these two 0.6 and 0.02, and 0.5 lies between
    assert finding.edge == pytest.approx(1.6e-2 * 2 ** (0.1 / 0.58))
    assert (finding.highest_stable, finding.edge_bound) == (1.6e-2, "exact")
    assert (finding.best, finding.best_bound) == (2e-3, "exact")
    assert finding.suggestion == 2e-3
    assert finding.divisor == pytest.approx(finding.edge / 2e-3)
    assert (finding.baseline, finding.knows_frequencies) == (FREQUENCY, True)


def test_a_lower_rate_that_is_worse_by_chance_is_no_end() -> None:
    # a trial at 4e-3 that came out a little above that at 8e-3, and the best rate below both
    curve = {1e-3: 6.1, 2e-3: 5.9, 4e-3: 6.04, 8e-3: 6.02, 1.6e-2: 6.35, 3.2e-2: 6.5}
    rates, finding = climbed(4e-3, curve.__getitem__, settings())
    assert rates == [4e-3, 8e-3, 2e-3, 1e-3, 1.6e-2, 1.6e-2]
    assert (finding.best, finding.highest_stable, finding.suggestion) == (2e-3, 8e-3, 2e-3)


def test_what_trains_is_half_of_what_the_best_learns() -> None:
    # the best learns 1.0 beyond the frequencies
    assert judge(ladder({1e-3: 6.0, 2e-3: 5.4, 4e-3: 5.89}), BASELINES, settings()).highest_stable == 4e-3
    assert judge(ladder({1e-3: 6.0, 2e-3: 5.4, 4e-3: 5.91}), BASELINES, settings()).highest_stable == 2e-3


def test_the_suggestion_keeps_off_the_edge() -> None:
    finding = judge(ladder({2e-3: 5.8, 4e-3: 5.6, 8e-3: 5.5, 1.6e-2: math.inf}), BASELINES, settings())
    assert (finding.best, finding.highest_stable) == (8e-3, 8e-3)
    assert finding.suggestion == 4e-3
    # numbers that break are nothing learned: half of the way from all to nothing
    assert finding.edge == pytest.approx(8e-3 * 2**0.5)


def test_a_number_as_divisor_asks_for_the_edge_alone() -> None:
    chosen = settings(safety_divisor=6.0)
    rates, finding = climbed(2e-3, CURVE.__getitem__, chosen)
    assert rates == [2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 3.2e-2]
    assert finding.suggestion == finding.edge / 6
    assert finding.divisor == pytest.approx(6.0)


def test_a_rate_that_breaks_numbers_is_the_end_of_the_climb() -> None:
    rates, finding = climbed(2e-3, lambda rate: CURVE[rate] if rate < 1e-2 else math.inf, settings())
    assert rates == [2e-3, 4e-3, 1e-3, 8e-3, 1.6e-2]
    assert finding.highest_stable == 8e-3


def test_a_rate_trains_if_its_second_trial_does() -> None:
    lucky = {**CURVE, 3.2e-2: 5.85}
    rates, finding = climbed(2e-3, CURVE.__getitem__, settings(), lucky.__getitem__)
    assert rates == [2e-3, 4e-3, 1e-3, 8e-3, 1.6e-2, 3.2e-2, 3.2e-2, 6.4e-2, 6.4e-2]
    assert (finding.highest_stable, finding.edge_bound, finding.best) == (3.2e-2, "exact", 2e-3)
    # its two trials learn 0.02 and 0.55, 0.285 in the mean, and that is not training
    assert finding.edge == 3.2e-2


def test_bounds_where_the_range_ends() -> None:
    rates, finding = climbed(2e-3, CURVE.__getitem__, settings(start_lr=1.5e-3, end_lr=8e-3))
    assert sorted(rates) == [2e-3, 4e-3, 8e-3]
    assert (finding.edge, finding.edge_bound) == (8e-3, "at least")
    assert (finding.best, finding.best_bound) == (2e-3, "at most")
    assert climbed(2e-3, CURVE.__getitem__, settings(max_trials=3))[1].edge_bound == "at least"


def test_where_no_rate_trains_the_edge_is_below_all() -> None:
    rates, finding = climbed(2e-3, lambda rate: 9.0, settings(start_lr=2e-4))
    assert rates == [2e-3, 1e-3, 5e-4, 2.5e-4]
    assert (finding.edge, finding.edge_bound) == (2.5e-4, "at most")


def test_weights_that_knew_more_have_to_get_below_their_first_loss() -> None:
    # continued training: what ends at 3.1 is far below the frequencies, and yet broken
    trials = ladder({1e-4: 2.9, 2e-4: 2.8, 4e-4: 2.89, 8e-4: 3.1})
    finding = judge(trials, Baselines(first=3.0, frequencies=FREQUENCY), settings())
    assert (finding.baseline, finding.highest_stable, finding.best) == (3.0, 4e-4, 2e-4)


def test_trials_too_short_for_more_than_frequencies_say_so() -> None:
    finding = judge(ladder({1e-3: 7.0, 2e-3: 6.5, 4e-3: 6.8, 8e-3: 8.2}), BASELINES, settings())
    assert not finding.knows_frequencies
    assert (finding.baseline, finding.highest_stable) == (8.3, 4e-3)


@given(st.floats(1e-5, 0.5), st.integers(-6, 6), st.integers(0, 3), st.floats(0.05, 0.5), st.data())
def test_best_and_edge_are_found_wherever_the_climb_begins(
    first: float, best: int, room: int, slope: float, data: st.DataObject
) -> None:
    """Losses that rise on both sides of the best rung, and give out a few rungs above it."""

    def loss_at(rate: float) -> float:
        height = round(math.log2(rate / 1e-3))
        broken = FREQUENCY + data.draw(st.floats(0.0, 1.5), label=str(height))
        return broken if height > best + room else min(5.0 + slope * abs(height - best), 5.6)

    chosen = settings(start_lr=1e-6, max_trials=40)
    rates, finding = climbed(first, loss_at, chosen)
    assert finding.best == 1e-3 * 2.0**best
    assert finding.highest_stable == 1e-3 * 2.0 ** (best + room)
    assert finding.highest_stable <= finding.edge < 2 * finding.highest_stable
    assert finding.suggestion == min(finding.best, finding.highest_stable / 2)
    heights = sorted({round(math.log2(rate / 1e-3)) for rate in rates})
    assert heights == list(range(heights[0], heights[-1] + 1))
    assert all(chosen.start_lr <= rate <= chosen.end_lr for rate in rates)
