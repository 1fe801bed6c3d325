"""Which stages the learning-rate finder treats as one."""

from __future__ import annotations

from typing import Any

from support import recipe

from ds_pretrain.curriculum import build_plan
from ds_pretrain.curriculum.lr_shapes import Shape, shapes


def found(stages: list[dict[str, Any]], **sections: Any) -> dict[Shape, int]:
    """Index of the first stage of every shape."""
    given = recipe(curriculum={"stages": stages}, **sections)
    return {shape: stage.index for shape, stage in shapes(given, build_plan(given)).items()}


STAGE = {"seq_len": 16, "batch_size": 16, "warmup_steps": 4}
# the quarter of a trial is the warmup of the stages
SHORT = {"trial_steps": 16}


def test_what_trains_alike_is_one_shape() -> None:
    # how the batch is cut and what rate was planned change nothing
    stages = [
        {**STAGE, "step": 0, "lr_multiplier": 2.0},
        {**STAGE, "step": 4, "micro_batch_size": 4},
        {**STAGE, "step": 8, "peak_lr": 1.0},
    ]
    assert list(found(stages, lr_finder=SHORT).values()) == [0]


def test_what_trains_differently_is_not() -> None:
    for change in ({"seq_len": 32}, {"batch_size": 8}, {"grad_clip": 0.3}, {"trainable_layers": 1}):
        stages = [{**STAGE, "step": 0}, {**STAGE, "step": 4}, {**STAGE, **change, "step": 8}]
        assert list(found(stages, lr_finder=SHORT).values()) == [0, 2], change


def test_only_a_short_warmup_of_the_first_stage_counts() -> None:
    stages = [{**STAGE, "step": 0, "warmup_steps": 3}, {**STAGE, "step": 6, "warmup_steps": 3}]
    assert [shape.warmup_steps for shape in found(stages, lr_finder={"trial_steps": 80})] == [3, 20]
    stages[0]["warmup_steps"] = 6
    assert [shape.warmup_steps for shape in found(stages, lr_finder={"trial_steps": 20})] == [5]
    # a schedule that rises by itself has no warmup of its own
    assert [shape.warmup_steps for shape in found([{"step": 0}], schedule={"type": "one_cycle"})] == [20]
