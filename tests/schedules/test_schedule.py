"""The learning rate at every step, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PUBLISHED, recipe

from ds_pretrain.curriculum import build_plan
from ds_pretrain.schedules import LearningRateSchedule

PEAKS = [6.78e-3, 4.2e-3, 2.1e-3, 9.0e-4, 4.2e-4]


def published() -> tuple[LearningRateSchedule, object]:
    plan = build_plan(recipe(PUBLISHED))
    return LearningRateSchedule(plan, recipe(PUBLISHED).schedule), plan


def rate(step: int) -> float:
    # every stage has 16,384 tokens a step
    return published()[0].lr(step, step * 16384)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        # stage 0: 500 steps of warmup from 0 to 6.78e-3, then a cosine over 1,500 steps down to a tenth
        (0, 1.356e-5),  # 6.78e-3 / 500
        (249, 3.39e-3),
        (498, 6.76644e-3),
        (499, 6.78e-3),
        (500, 6.78e-3),
        (501, 6.779993308435e-3),  # cos(pi / 1500) = 0.99999780675: 6.78e-4 + 6.102e-3 x 0.999998903377
        (1250, 3.729e-3),  # half way: 6.78e-4 + 6.102e-3 / 2
        (1999, 6.780066915893e-4),  # one 1,500th before the floor
        # stage 1: from there up to 4.2e-3 in 300 steps
        (2000, 6.897466692840e-4),  # 6.780066915893e-4 + 3.5219933084107e-3 / 300
        (2298, 4.188260022305e-3),  # one 300th of the way short of the peak
        (2299, 4.2e-3),
        (2300, 4.2e-3),
        (3150, 2.31e-3),  # half way of 1,700 steps: 4.2e-4 + 3.78e-3 / 2
        (3999, 4.200032271500e-4),  # sin^2(pi / 3400) = 8.537698e-7
        # stage 2: up to 2.1e-3 in 200 steps
        (4000, 4.284032110143e-4),
        (4199, 2.1e-3),
        (4200, 2.1e-3),
        (6100, 1.155e-3),
        (7999, 2.100003229500e-4),  # sin^2(pi / 7600) = 1.708730e-7
        # stage 3: up to 9e-4 in 100 steps
        (8000, 2.169003197205e-4),
        (8099, 9.0e-4),
        (8100, 9.0e-4),
        (14050, 4.95e-4),
        (19999, 9.000001411740e-5),  # sin^2(pi / 23800) = 1.742889e-8
        # stage 4: up to 4.2e-4 in 100 steps
        (20000, 9.330001397623e-5),
        (20099, 4.2e-4),
        (20100, 4.2e-4),
        (60050, 2.31e-4),
        (99999, 4.200000014610e-5),  # sin^2(pi / 159800) = 3.865032e-10
    ],
)
def test_the_published_table(step: int, expected: float) -> None:
    assert rate(step) == pytest.approx(expected, rel=1e-9)


def test_a_warmup_is_continuous_with_the_stage_before_it() -> None:
    for first, warmup, peak in ((2000, 300, PEAKS[1]), (4000, 200, PEAKS[2]), (8000, 100, PEAKS[3])):
        entry = rate(first - 1)
        assert rate(first) - entry == pytest.approx((peak - entry) / warmup, rel=1e-9)


def test_one_curve_over_the_run_meets_its_warmups() -> None:
    stages = [
        {"step": 0, "seq_len": 32, "batch_size": 10, "warmup_steps": 10},
        {"step": 60, "seq_len": 64, "batch_size": 5, "lr_multiplier": 0.5, "warmup_steps": 20},
    ]
    sections = {
        "curriculum": {"total_steps": 110, "stages": stages},
        "optimizer": {"lr": 1.0},
        "schedule": {"scope": "run", "type": "linear", "min_lr_ratio": 0.2},
    }
    made = recipe(**sections)
    plan = build_plan(made)
    schedule = LearningRateSchedule(plan, made.schedule)

    def lr(step: int) -> float:
        return schedule.lr(step, plan.tokens_before(step))

    # 320 tokens a step: the line runs from step 10 to 110 between 1 and 0.2
    assert lr(0) == pytest.approx(0.1)
    assert lr(10) == pytest.approx(1.0)
    assert lr(59) == pytest.approx(1 - 0.8 * 0.49)
    # the second warmup aims at half of the line's value where it ends, at step 80: (1 - 0.8 x 0.7) / 2
    assert lr(79) == pytest.approx(0.22)
    assert lr(60) == pytest.approx(0.608 + (0.22 - 0.608) / 20)
    assert lr(80) == pytest.approx(0.22)
    assert lr(109) == pytest.approx((1 - 0.8 * 0.99) / 2)


def test_a_warmup_may_fill_its_stage() -> None:
    stages = [{"step": 0, "warmup_steps": 99}, {"step": 6, "warmup_steps": 0}]
    made = recipe(curriculum={"stages": stages}, schedule={"scope": "stage"}, optimizer={"lr": 0.6})
    plan = build_plan(made)
    schedule = LearningRateSchedule(plan, made.schedule)
    rates = [row.lr for row in schedule]
    assert rates[:6] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert rates[6] == 0.6  # without a warmup the shape begins at once


@given(st.lists(st.integers(0, 99_999), min_size=1, max_size=20))
def test_the_rate_depends_on_step_and_tokens_alone(steps: list[int]) -> None:
    schedule, _ = published()
    forward = [schedule.lr(step, step * 16384) for step in steps]
    assert [schedule.lr(step, step * 16384) for step in reversed(steps)] == forward[::-1]
    assert all(math.isfinite(lr) and 0 < lr <= PEAKS[0] for lr in forward)
