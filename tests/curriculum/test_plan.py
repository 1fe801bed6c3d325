from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PUBLISHED, recipe

from ds_pretrain.curriculum import build_plan, plan_problems
from ds_pretrain.errors import RecipeError


def test_the_published_table_is_exact_in_steps_tokens_and_learning_rates() -> None:
    plan = build_plan(recipe(PUBLISHED))
    assert [(stage.start_step, stage.end_step) for stage in plan.stages] == [
        (0, 2000), (2000, 4000), (4000, 8000), (8000, 20000), (20000, 100000),
    ]  # fmt: skip
    # every stage has 16,384 tokens a step
    assert [stage.start_tokens for stage in plan.stages] == [0, 32768000, 65536000, 131072000, 327680000]
    assert plan.total_tokens == 100000 * 16384
    assert [stage.peak_lr for stage in plan.stages] == pytest.approx([6.78e-3, 4.2e-3, 2.1e-3, 9e-4, 4.2e-4])
    assert [stage.formula_multiplier for stage in plan.stages] == pytest.approx(
        [11.3137085, 8.0, 5.6568542, 4.0, 1.4142136]
    )
    assert [stage.warmup_steps for stage in plan.stages] == [500, 300, 200, 100, 100]
    assert [stage.grad_clip for stage in plan.stages] == [5.0, 2.0, 1.0, 0.5, 0.3]
    assert [stage.micro_batch_size for stage in plan.stages] == [256, 128, 64, 32, 16]


def test_stages_without_warmup_of_their_own_count_it_in_tokens() -> None:
    plain = {key: value for key, value in PUBLISHED["curriculum"].items() if key != "stages"}
    stages = [
        {key: value for key, value in stage.items() if key != "warmup_steps"}
        for stage in PUBLISHED["curriculum"]["stages"]
    ]
    plan = build_plan(recipe(PUBLISHED, curriculum={**plain, "stages": stages}))
    # 100 M tokens are 6,104 steps of 16,384: the limit of 2,000 holds, which fills the first two stages
    assert [stage.warmup_steps for stage in plan.stages] == [2000, 2000, 2000, 2000, 2000]
    short = recipe(PUBLISHED, schedule={"warmup": {"tokens": 16384 * 10 + 1}}, curriculum={**plain, "stages": stages})
    assert [stage.warmup_steps for stage in build_plan(short).stages] == [11] * 5


def test_one_stage_of_full_length_is_the_default() -> None:
    plan = build_plan(recipe(curriculum={"total_steps": 100}), world_size=2)
    (stage,) = plan.stages
    assert (stage.seq_len, stage.batch_size, stage.lr_multiplier, stage.grad_clip) == (64, 8, 1.0, 1.0)
    assert stage.warmup_steps == 2  # two percent


def test_a_stage_without_a_batch_takes_one_micro_batch_per_rank() -> None:
    tiny = recipe(train={"max_tokens_per_micro_batch": 256}, curriculum={"batch_size": None})
    (stage,) = build_plan(tiny, world_size=3).stages
    assert (stage.batch_size, stage.micro_batch_size, stage.grad_accum_steps) == (12, 4, 1)


@pytest.mark.parametrize(
    ("total", "starts"),
    [
        # the next whole step: 0.25 x 30 = 7.5
        ({"total_steps": 30}, [0, 8, 21]),
        # 1,000 tokens a step in stage 0, 2,000 in stage 1, 4,000 in stage 2; 0.25 and 0.7 of 60,000 tokens
        ({"total_tokens": 60_000}, [0, 15, 29]),
    ],
)
def test_fractions_are_of_what_the_run_is_counted_in(total: dict[str, int], starts: list[int]) -> None:
    stages = [
        {"fraction": 0, "seq_len": 50, "batch_size": 20},
        {"fraction": 0.25, "seq_len": 50, "batch_size": 40},
        {"fraction": 0.7, "seq_len": 50, "batch_size": 80},
    ]
    plan = build_plan(recipe(curriculum={"total_steps": None, **total, "stages": stages}))
    assert [stage.start_step for stage in plan.stages] == starts
    # 15 x 1,000 + 14 x 2,000 + 5 x 4,000: the last step goes beyond 60,000
    assert plan.total_tokens == (63_000 if "total_tokens" in total else 8_000 + 26_000 + 36_000)


def test_stages_by_tokens_start_at_the_next_whole_step() -> None:
    stages = [{"seq_len": 10, "batch_size": 10}, {"tokens": 250, "seq_len": 20, "batch_size": 10}]
    plan = build_plan(recipe(curriculum={"total_steps": 10, "stages": stages}))
    assert [(stage.start_step, stage.start_tokens) for stage in plan.stages] == [(0, 0), (3, 300)]


def test_stages_at_or_after_the_end_are_dropped_with_a_warning() -> None:
    stages = [{"step": 0, "batch_size": 8}, {"step": 12, "batch_size": 4}, {"step": 99, "batch_size": 2}]
    plan = build_plan(recipe(curriculum={"stages": stages}))
    assert len(plan.stages) == 1
    assert plan.warnings == (
        "curriculum.stages.1 would start at or after the end of the run and is dropped",
        "curriculum.stages.2 would start at or after the end of the run and is dropped",
    )


def test_epochs_are_counted_in_positions_of_the_corpus() -> None:
    stages = [{"step": 0, "seq_len": 32, "batch_size": 4}]
    curriculum = {"total_steps": None, "total_epochs": 1.5, "stages": stages}
    assert build_plan(recipe(curriculum=curriculum), corpus_positions=6400).total_steps == 75
    # truncate moves the cursor by whole windows of 64 although a row has 32 tokens
    truncated = recipe(curriculum=curriculum, data={"sequence_mode": "truncate"})
    plan = build_plan(truncated, corpus_positions=6400)
    assert plan.total_steps == 38
    assert plan.stages[0].cursor_before(38) == 38 * 4 * 64
    with pytest.raises(RecipeError, match="the corpus does not exist yet"):
        build_plan(recipe(curriculum=curriculum))


def test_every_batch_that_does_not_divide_is_named_with_numbers_that_would() -> None:
    stages = [{"step": 0, "batch_size": 9}, {"step": 5, "batch_size": 8, "micro_batch_size": 3}]
    problems = plan_problems(recipe(curriculum={"stages": stages}), world_size=2)
    assert [str(problem) for problem in problems] == [
        "curriculum.stages.0.batch_size: found 9, which 2 ranks cannot share equally; allowed: a multiple of 2, "
        "e.g. 8 or 10, or a number of ranks that divides 9",
        "curriculum.stages.1.batch_size: found 8, which is no whole number of 2 ranks x micro_batch_size 3; "
        "allowed: a multiple of 6, e.g. 6 or 12, or one of the micro batch sizes 1, 2, 4, or micro_batch_size auto",
    ]


def test_clip_by_length_and_by_stage() -> None:
    stages = [
        {"step": 0, "seq_len": 128},
        {"step": 1, "seq_len": 129},
        {"step": 2, "seq_len": 512},
        {"step": 3, "seq_len": 513, "grad_clip": 0.3},
        {"step": 4, "seq_len": 1024},
    ]
    plan = build_plan(recipe(data={"max_seq_len": 1024}, curriculum={"grad_clip": "by_length", "stages": stages}))
    assert [stage.grad_clip for stage in plan.stages] == [5.0, 1.0, 1.0, 0.3, 0.5]


def test_peak_lr_wins_and_gives_the_multiplier() -> None:
    plan = build_plan(recipe(curriculum={"stages": [{"step": 0, "peak_lr": 0.03}]}))
    assert (plan.stages[0].peak_lr, plan.stages[0].lr_multiplier) == (0.03, pytest.approx(3.0))


@st.composite
def curricula(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    world_size = draw(st.integers(1, 4))
    stages = [
        {
            "fraction": fraction,
            "seq_len": draw(st.integers(1, 64)),
            "batch_size": world_size * draw(st.integers(1, 40)),
        }
        for fraction in [0, *sorted(draw(st.sets(st.floats(0.01, 0.99), max_size=4)))]
    ]
    total = draw(st.sampled_from([{"total_steps": 57}, {"total_tokens": 54321}]))
    return {"total_steps": None, **total, "stages": stages}, world_size


@given(curricula())
def test_stages_follow_one_another_without_gaps(case: tuple[dict[str, Any], int]) -> None:
    curriculum, world_size = case
    plan = build_plan(recipe(curriculum=curriculum, train={"max_tokens_per_micro_batch": 300}), world_size)
    step = tokens = cursor = 0
    for index, stage in enumerate(plan.stages):
        assert (stage.index, stage.start_step, stage.start_tokens, stage.start_cursor) == (index, step, tokens, cursor)
        assert stage.num_steps >= 1
        assert world_size * stage.micro_batch_size * stage.grad_accum_steps == stage.batch_size
        assert stage.micro_batch_size * stage.seq_len <= 300 or stage.micro_batch_size == 1
        assert stage.end_tokens - stage.start_tokens == stage.num_steps * stage.tokens_per_step
        step, tokens, cursor = stage.end_step, stage.end_tokens, stage.cursor_before(stage.end_step)
    assert (plan.total_steps, plan.total_tokens) == (step, tokens)
    if curriculum.get("total_tokens"):
        assert 0 <= plan.total_tokens - 54321 < plan.stages[-1].tokens_per_step
    else:
        assert plan.total_steps == 57


def test_planning_loads_no_torch() -> None:
    code = "import sys, ds_pretrain.cli; print([m for m in ('torch', 'deepspeed', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_plan_says_that_a_plateau_is_not_planned() -> None:
    data = {"train": [{"path": "corpus"}], "validation": [{"path": "held-out"}], "max_seq_len": 64}
    (note,) = build_plan(recipe(data=data, schedule={"type": "plateau"})).warnings
    assert note.startswith("note: schedule.type plateau: planned learning rates are those before any reduction")
    assert build_plan(recipe(data=data)).warnings == ()


def masked(*stages: dict[str, Any], **changes: Any) -> Any:
    curriculum = {"total_steps": 9, "stages": list(stages), "batch_size": None}
    return recipe(data={"sequence_mode": "mask"}, curriculum=curriculum, **changes)


def test_mask_counts_blocks_and_divides_rows() -> None:
    stages = {"step": 0, "seq_len": 16, "batch_size": 48}, {"step": 4, "batch_size": 12}
    plan = build_plan(masked(*stages, train={"max_tokens_per_micro_batch": 192}), world_size=2)
    short, full = plan.stages
    # 12 rows of 4 blocks, 6 a rank, of which 3 are 192 tokens
    assert (short.batch_size, short.blocks_per_row, short.rows_per_step) == (48, 4, 12)
    assert (short.micro_batch_size, short.grad_accum_steps) == (3, 2)
    assert (full.blocks_per_row, full.rows_per_step, full.micro_batch_size, full.grad_accum_steps) == (1, 12, 3, 2)
    # tokens per step are what blocks and length make, and no position is left out
    assert short.tokens_per_step == full.tokens_per_step == short.positions_per_step == full.positions_per_step == 768
    assert full.start_cursor == 4 * 768


def test_a_masked_stage_without_a_batch_takes_one_micro_batch_per_rank() -> None:
    tiny = masked({"step": 0, "seq_len": 16}, train={"max_tokens_per_micro_batch": 256})
    (stage,) = build_plan(tiny, world_size=3).stages
    assert (stage.batch_size, stage.micro_batch_size, stage.grad_accum_steps) == (48, 4, 1)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"seq_len": 24, "batch_size": 8},
         "curriculum.stages.0.seq_len: found 24; allowed in data.sequence_mode mask: what divides data.max_seq_len 64, "
         "e.g. 8, 16, 32, 64"),
        ({"seq_len": 16, "batch_size": 6},
         "curriculum.stages.0.batch_size: found 6, which is no whole number of rows of 4 blocks of 16 tokens; "
         "allowed: a multiple of 4, e.g. 4 or 8"),
        ({"seq_len": 16, "batch_size": 12},
         "curriculum.stages.0.batch_size: found 12, in rows of 4 blocks 3 rows, which 2 ranks cannot share equally; "
         "allowed: a multiple of 8, e.g. 8 or 16"),
        ({"seq_len": 16, "batch_size": 16, "micro_batch_size": 3},
         "curriculum.stages.0.batch_size: found 16, which is no whole number of 2 ranks x micro_batch_size 3 x "
         "4 blocks a row; allowed: a multiple of 24, e.g. 24, or one of the micro batch sizes 1, 2, "
         "or micro_batch_size auto"),
    ],
)  # fmt: skip
def test_what_rows_cannot_hold_is_named_with_numbers_that_would_work(stage: dict[str, int], message: str) -> None:
    (problem,) = plan_problems(masked({"step": 0, **stage}), world_size=2)
    assert str(problem) == message


def test_lengths_of_a_pacing_function_divide_the_row_too() -> None:
    pacing = {"kind": "linear", "start_seq_len": 16, "steps": 6, "multiple": 16}
    curriculum = {"total_steps": 9, "pacing": pacing, "batch_size": 8}
    (problem,) = plan_problems(recipe(data={"sequence_mode": "mask"}, curriculum=curriculum))
    assert "curriculum.pacing: found a length of 48; allowed in data.sequence_mode mask" in str(problem)
    assert "kind: discrete" in str(problem)
    doubling = {**curriculum, "pacing": {"kind": "discrete", "start_seq_len": 16, "steps": 6}}
    plan = build_plan(recipe(data={"sequence_mode": "mask"}, curriculum=doubling))
    assert [stage.seq_len for stage in plan.stages] == [16, 32, 64]
