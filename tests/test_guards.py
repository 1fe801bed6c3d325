from __future__ import annotations

import math

from ds_pretrain.guards import GuardState, after_step, is_bad_step, loss_ratio


def test_the_loss_ratio_is_over_the_lowest_loss_of_the_stage() -> None:
    state = GuardState()
    ratios = []
    for stage, loss in [(0, 4.0), (0, 5.0), (0, 2.0), (0, 3.0), (1, 8.0), (1, 9.0)]:
        ratios.append(loss_ratio(state, stage, loss))
        state = after_step(state, stage, loss, bad=False)
    assert ratios == [1.0, 1.25, 1.0, 1.5, 1.0, 1.125]
    assert loss_ratio(state, 1, math.nan) is None


def test_an_overflow_above_the_minimum_scale_is_the_scaler_at_work() -> None:
    assert not is_bad_step(3.0, skipped=True, loss_scale=1024.0, min_loss_scale=1.0)
    assert is_bad_step(3.0, skipped=True, loss_scale=1.0, min_loss_scale=1.0)
    assert is_bad_step(3.0, skipped=True, loss_scale=1.0, min_loss_scale=None)
    assert is_bad_step(math.inf, skipped=False, loss_scale=1.0, min_loss_scale=None)
    assert not is_bad_step(3.0, skipped=False, loss_scale=1.0, min_loss_scale=None)


def test_bad_steps_are_counted_in_a_row_and_teach_nothing() -> None:
    state = after_step(GuardState(), 0, 4.0, bad=False)
    state = after_step(after_step(state, 0, math.nan, bad=True), 0, 0.1, bad=True)
    assert state == GuardState(0, 4.0, 2)
    assert after_step(state, 0, 4.5, bad=False) == GuardState(0, 4.0, 0)
    # a new stage starts the lowest loss anew, not the count
    assert after_step(state, 1, math.nan, bad=True) == GuardState(1, None, 3)
