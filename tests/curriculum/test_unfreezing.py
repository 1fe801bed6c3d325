from __future__ import annotations

import pytest
from support import recipe

from ds_pretrain.curriculum import Plan, build_plan
from ds_pretrain.curriculum.unfreezing import fresh_share, is_trained, same_layers, trained_since, widest


def planned(*trained: int | None, warmup_steps: int = 4) -> Plan:
    stages = [
        {"step": 10 * index, "seq_len": 64, "warmup_steps": warmup_steps, "trainable_layers": layers}
        for index, layers in enumerate(trained)
    ]
    return build_plan(recipe(curriculum={"total_steps": 10 * len(trained), "batch_size": 8, "stages": stages}))


def test_the_top_layers_and_the_head_are_trained() -> None:
    stage = planned(2).stages[0]
    assert [is_trained(stage, depth) for depth in range(5)] == [True, True, True, False, False]
    assert all(is_trained(planned(None).stages[0], depth) for depth in range(100))
    assert [is_trained(planned(0).stages[0], depth) for depth in (0, 1)] == [True, False]


def test_since_when_a_depth_is_trained() -> None:
    plan = planned(0, 2, 2, None)
    assert [trained_since(plan, 3, depth) for depth in (0, 1, 2, 3)] == [0, 1, 1, 3]
    assert trained_since(plan, 2, 2) == 1


def test_a_break_starts_anew() -> None:
    plan = planned(3, 1, 3)
    assert [trained_since(plan, 2, depth) for depth in (0, 1, 2, 3)] == [0, 0, 2, 2]


@pytest.mark.parametrize(("trained", "expected"), [((1, 3, 2), 1), ((1, None, 2, None), 1), ((0,), 0), ((2, 2), 0)])
def test_the_widest_stage(trained: tuple[int | None, ...], expected: int) -> None:
    assert widest(planned(*trained).stages).index == expected


def test_newly_trained_layers_have_a_warmup_of_their_own() -> None:
    stage = planned(1, None).stages[1]
    assert [fresh_share(stage, step) for step in range(10, 16)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert fresh_share(planned(1, None, warmup_steps=0).stages[1], 10) == 1.0


def test_stages_of_the_same_layers_need_no_change() -> None:
    first, second, third = planned(2, 2, None).stages
    assert same_layers(first, second)
    assert not same_layers(second, third)
