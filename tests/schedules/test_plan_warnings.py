from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PUBLISHED, recipe

from ds_pretrain.curriculum import build_plan
from ds_pretrain.schedules.plan_warnings import plan_warnings

QUIET = {"type": "cosine", "warmup": {"steps": 30}}
DATA = {"train": [{"path": "corpus"}], "max_seq_len": 64}


def warned(*stages: dict[str, Any], total_steps: int = 400, **sections: Any) -> tuple[str, ...]:
    placed = [{"step": index * total_steps // len(stages), **stage} for index, stage in enumerate(stages)]
    curriculum = {"total_steps": total_steps, "batch_size": 8, "stages": placed or None}
    settings = {"schedule": QUIET, **sections}
    found = recipe(curriculum={**curriculum, **settings.pop("curriculum", {})}, data=DATA, **settings)
    return plan_warnings(found, build_plan(found))


def test_a_quiet_plan() -> None:
    assert warned({}, {}, {"seq_len": 32, "batch_size": 16}) == ()


JUMP = (
    "stage 1: the peak learning rate jumps 5.0 times, from 0.01 to 0.05; put a stage between, or bring the multipliers "
    "closer together"
)


@pytest.mark.parametrize("scope", ["run", "stage"])
def test_a_jump(scope: str) -> None:
    assert warned({}, {"peak_lr": 0.05}, schedule={**QUIET, "scope": scope}) == (JUMP,)
    assert warned({}, {"peak_lr": 0.04}, schedule={**QUIET, "scope": scope}) == ()
    (fall,) = warned({}, {"peak_lr": 0.001}, schedule={**QUIET, "scope": scope})
    assert fall.startswith("stage 1: the peak learning rate jumps 10.0 times, from 0.01 to 0.001;")


def test_a_warmup_that_fills_its_stage() -> None:
    assert warned({}, {"warmup_steps": 500}) == (
        "stage 1: the warmup takes all of the stage's 200 steps, so that its schedule never starts; shorten "
        "schedule.warmup, or give the stage its own warmup_steps",
    )


def test_a_short_warmup() -> None:
    assert warned({}, schedule={**QUIET, "warmup": {"steps": 19}}) == (
        "stage 0: the warmup of 19 steps is shorter than the 20 steps, 1 / (1 - beta2), over which Adam averages "
        "squared gradients; lengthen schedule.warmup",
    )
    assert warned({}, schedule={**QUIET, "warmup": {"steps": 20}}) == ()
    assert warned({}, schedule={**QUIET, "warmup": {"steps": 1}}, optimizer={"type": "sgd", "lr": 1.0}) == ()
    assert warned({}, schedule={"type": "one_cycle"}) == ()


def test_short_stages_share_a_sentence() -> None:
    stages = [{"step": step} for step in (0, 100, 130, 140, 200, 249)]
    found = warned(curriculum={"stages": stages}, schedule={**QUIET, "warmup": {"steps": 30}})
    assert found[-1] == (
        "stages 1 to 2, 4, worst in stage 2: 10 steps are few for a stage (50 or more); join it with its neighbour"
    )


def test_unlike_micro_batches() -> None:
    assert warned({"micro_batch_size": 8}, {"micro_batch_size": 2}) == (
        "stage 1: a micro batch holds 128 tokens, where the largest of the run holds 512; raise batch_size, or let "
        "micro_batch_size be auto",
    )
    assert warned({"micro_batch_size": 8}, {"micro_batch_size": 4}) == ()


def test_a_floor_that_is_not_reached() -> None:
    assert warned({}, schedule={**QUIET, "type": "inverse_sqrt"}) == (
        "stage 0: schedule inverse_sqrt ends at 27% of the peak, above its floor min_lr_ratio (10%); change its "
        "parameters if it should get there",
    )
    assert warned({}, schedule={**QUIET, "type": "multistep"}) == ()


def test_a_multiplier_far_from_the_rule() -> None:
    # sqrt(8 / 32) x min(2048 / 64, 4) = 2
    assert warned({"lr_multiplier": 4.1}) == (
        "note: stage 0: lr_multiplier is 4.1, where the rule sqrt(batch / 32) x min(2048 / len, 4) gives 2",
    )
    assert warned({"lr_multiplier": 4.0}) == ()
    assert warned({}) == ()


def test_the_published_table() -> None:
    published = recipe(PUBLISHED)
    assert plan_warnings(published, build_plan(published)) == (
        "note: stages 3 to 4, worst in stage 3: lr_multiplier is 1.5, where the rule "
        "sqrt(batch / 32) x min(2048 / len, 4) gives 4",
    )


def test_pacing_is_no_flood() -> None:
    pacing = {"start_seq_len": 8, "fraction": 0.5, "multiple": 8}
    (found,) = warned(curriculum={"stages": None, "pacing": pacing}, schedule={**QUIET, "warmup": {"steps": 20}})
    assert found.startswith("stages 0 to 2, worst in stage 0: a micro batch holds 64 tokens")


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "seq_len": st.sampled_from([8, 16, 64]),
                "batch_size": st.integers(1, 64),
                "lr_multiplier": st.floats(0, 100),
                "warmup_steps": st.integers(0, 300),
            },
        ),
        max_size=6,
    ),
    st.sampled_from(["cosine", "step", "inverse_sqrt", "cosine_restarts", "one_cycle", "wsd", "noam"]),
    st.sampled_from(["stage", "run"]),
)
def test_any_plan_can_be_judged(stages: list[dict[str, Any]], kind: str, scope: str) -> None:
    for text in warned(*stages, schedule={"type": kind, "scope": scope}):
        assert text.startswith(("stage", "note: stage"))
