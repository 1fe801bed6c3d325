from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PUBLISHED, recipe

from ds_pretrain.curriculum import build_plan
from ds_pretrain.schedules.plan_warnings import plan_warnings

QUIET = {"type": "cosine", "warmup": {"steps": 30}}
SGD = {"type": "sgd", "lr": 1.0}
FEW = ("stage 0: 24 steps are few for a stage (50 or more); join it with its neighbour",)
WARM = {"warmup": {"steps": 30}}
DATA = {"train": [{"path": "corpus"}], "max_seq_len": 64}


def warned(*stages: dict[str, Any], total_steps: int = 400, **sections: Any) -> tuple[str, ...]:
    placed = [{"step": index * total_steps // len(stages), **stage} for index, stage in enumerate(stages)]
    curriculum = {"total_steps": total_steps, "batch_size": 8, "stages": placed or None}
    settings = {"schedule": QUIET, **sections}
    found = recipe(curriculum={**curriculum, **settings.pop("curriculum", {})}, data=DATA, **settings)
    return plan_warnings(found, build_plan(found))


def test_a_quiet_plan() -> None:
    assert warned({}, {}, {"seq_len": 32, "batch_size": 16}) == ()


def test_a_jump_over_the_run() -> None:
    # a line from 1 at step 30 to 0.1 at 400: 0.589 at 199, 0.514 at 230
    line = {**QUIET, "type": "linear"}
    assert warned({}, {"peak_lr": 0.06}, schedule=line) == (
        "stage 1: the learning rate jumps 5.2 times, from 0.0059 to 0.031 over 30 steps of warmup; put a stage "
        "between, bring the multipliers closer together, or lengthen the warmup",
    )
    assert warned({}, {"peak_lr": 0.045}, schedule=line) == ()  # 3.9 times what the run has by then
    (bare,) = warned({}, {"peak_lr": 0.045, "warmup_steps": 0}, schedule=line)
    assert bare.startswith("stage 1: the learning rate jumps 4.5 times, from 0.0059 to 0.026 without a warmup;")
    (fall,) = warned({}, {"peak_lr": 0.001}, schedule=line)
    assert fall.startswith("stage 1: the learning rate jumps 11.5 times, from 0.0059 to 0.00051 over")


def test_a_jump_that_a_decay_makes() -> None:
    by_stage = {**QUIET, "scope": "stage"}
    # from the floor of a stage to the peak of the next
    assert warned({}, {"peak_lr": 0.02}, schedule=by_stage) == (
        "note: stage 1: the schedule starts anew: the learning rate goes from 0.001 to 0.02, 20.0 times, over 30 steps "
        "of warmup",
    )
    (bare,) = warned({}, {"warmup_steps": 0}, schedule=by_stage)
    assert bare.startswith("stage 1: the learning rate jumps 10.0 times, from 0.001 to 0.01 without a warmup;")
    (large,) = warned({}, {"peak_lr": 0.05}, schedule=by_stage)
    assert large.startswith("stage 1: the learning rate jumps 50.0 times, from 0.001 to 0.05 over 30 steps")
    # a peak far below the one before, where the floor is already
    assert warned({}, {"peak_lr": 0.002}, schedule=by_stage) == ()


def test_a_restart_is_the_nature_of_restarts() -> None:
    (note,) = warned(
        {}, {"step": 215, "warmup_steps": 0}, schedule={"type": "cosine_restarts", "t_0": 185 * 512, **WARM}
    )
    assert note.startswith("note: stage 1: the schedule starts anew: the learning rate goes from 0.0")
    assert note.endswith("without a warmup")


def test_a_warmup_that_fills_its_stage() -> None:
    # of a curve that falls to a tenth meanwhile, which is no jump
    assert warned({}, {"warmup_steps": 500}) == (
        "stage 1: the warmup takes all of the stage's 200 steps, so that its schedule never starts; shorten "
        "schedule.warmup, or give the stage its own warmup_steps",
    )


SHORT = "is shorter than the 20 steps, 1 / (1 - beta2), over which Adam averages squared gradients"


def test_a_short_warmup() -> None:
    assert warned({}, schedule={**QUIET, "warmup": {"steps": 19}}) == (
        f"stage 0: the warmup of 19 steps {SHORT}; lengthen schedule.warmup, or the stage's warmup_steps",
    )
    assert warned({}, schedule={**QUIET, "warmup": {"steps": 20}}) == ()
    assert warned({}, schedule={**QUIET, "warmup": {"steps": 1}}, optimizer={"type": "sgd", "lr": 1.0}) == ()
    assert warned({}, schedule={"type": "one_cycle"}) == ()
    # AdamW trains what Muon leaves
    assert SHORT in warned({}, schedule={**QUIET, **SHORTER}, optimizer={"type": "muon", "lr": 0.02})[0]


SHORTER = {"warmup": {"steps": 5}}


def test_a_short_warmup_later() -> None:
    line = {**QUIET, "type": "linear"}
    assert warned({}, {"lr_multiplier": 2, "warmup_steps": 5}, schedule=line)[0] == (
        f"stage 1: the warmup of 5 steps {SHORT}, still those of the stage before; lengthen schedule.warmup, or the "
        "stage's warmup_steps"
    )
    # down, or none at all
    assert warned({}, {"peak_lr": 0.005, "warmup_steps": 5}, schedule=line) == ()
    assert warned({}, {"lr_multiplier": 2, "warmup_steps": 0}, schedule=line) == ()


@pytest.mark.parametrize("kind", ["linear", "one_cycle"])
def test_a_short_warmup_of_what_is_unfrozen(kind: str) -> None:
    stages = ({"trainable_layers": 1}, {"trainable_layers": 2, "warmup_steps": 0}, {"warmup_steps": 4})
    (found,) = warned(*stages, schedule={"type": kind, **WARM})
    assert found == (
        f"stages 1 to 2, worst in stage 1: the warmup of 0 steps {SHORT}, which begin anew for the layers that it "
        "unfreezes; lengthen schedule.warmup, or the stage's warmup_steps"
    )
    assert warned({}, {"trainable_layers": 2, "warmup_steps": 0}, schedule={"type": kind, **WARM}) == ()


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


@pytest.mark.parametrize("kind", ["triangular", "triangular2", "exp_range"])
def test_cycles_that_end_above_their_floor(kind: str) -> None:
    assert warned({}, schedule={"type": kind, **WARM}) == ()
    assert warned({"warmup_steps": 0}, total_steps=24, schedule={"type": kind}, optimizer=SGD) == FEW
    # one whole cycle and the rise of a second
    up = 370 * 512 / 3
    (found,) = warned({}, schedule={"type": kind, "step_size_up": up, "gamma": None, **WARM})
    assert found.startswith(f"stage 0: schedule {kind} ends at ")
    assert warned({}, schedule={"type": kind, "step_size_up": 370 * 512 / 4, **WARM}) == ()


def test_a_function_that_ends_above_its_floor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text("def half(p): return 1 - p / 2\ndef whole(p): return 1 - p\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    (found,) = warned({}, schedule={"type": "custom", "function": "ends.half", **WARM})
    assert found.startswith("stage 0: schedule custom ends at 55% of the peak, above its floor min_lr_ratio (10%)")
    assert warned({}, schedule={"type": "custom", "function": "ends.whole", **WARM}) == ()


@pytest.mark.parametrize(
    ("settings", "key", "length"),
    [
        ({"type": "step", "step_size": 100, "gamma": 0.9}, "step_size", "100"),
        ({"type": "multistep", "milestones": [300, 200000]}, "milestones", "300"),
        ({"type": "cosine_restarts", "t_0": 100}, "t_0", "100"),
        ({"type": "triangular", "step_size_up": 50}, "step_size_up", "50"),
        ({"type": "triangular", "step_size_up": 50000, "step_size_down": 50}, "step_size_down", "50"),
        ({"type": "inverse_sqrt", "timescale": 30}, "timescale", "30"),
        ({"type": "exponential", "gamma": 0.99, "decay_every": 1}, "decay_every", "1"),
        ({"type": "exponential", "k": 0.01}, "k", "100"),
        ({"type": "exp_range", "gamma": 0.99}, "gamma", "99.5"),
    ],
)
def test_lengths_of_tokens_that_were_meant_as_steps(settings: dict[str, Any], key: str, length: str) -> None:
    found = warned({}, schedule={**settings, **WARM})
    assert found[-1] == (
        f"stage 0: schedule.{key} makes {length} tokens, less than one step of 512 tokens; give schedule.by: steps if "
        "steps are meant, else a length in tokens"
    )
    for meant in ({"by": "steps"}, *([{key: 512 * settings[key]}] if key in ("step_size", "t_0", "timescale") else [])):
        assert not any("less than one step" in text for text in warned({}, schedule={**settings, **WARM, **meant}))


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
        "note: stages 1 to 4, worst in stage 1: the schedule starts anew: the learning rate goes from 0.00068 to "
        "0.0042, 6.2 times, over 300 steps of warmup",
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


def test_a_stage_without_a_rate() -> None:
    assert warned({}, {"lr_multiplier": 0.0}, {})[0] == (
        "stage 1: the learning rate is 0, so that its 68,096 tokens are read and not learned from; give lr_multiplier "
        "more than 0, or leave the stage out"
    )


def test_pacing_that_is_nothing_but_warmups() -> None:
    pacing = {"kind": "linear", "start_seq_len": 8, "end_seq_len": 64, "fraction": 0.5}

    def warmups(scope: str) -> list[str]:
        found = warned(curriculum={"pacing": pacing, "stages": None}, schedule={**QUIET, "scope": scope})
        return [text for text in found if "the warmup takes all" in text]

    # one curve runs through all stages, whose warmups only lead back to it
    assert warmups("run") == []
    (text,) = warmups("stage")
    assert "so that its schedule never starts" in text


@pytest.mark.parametrize("kind", ["constant", "one_cycle", "noam"])
def test_a_floor_that_the_type_does_not_look_at(kind: str) -> None:
    def notes(ratio: float) -> list[str]:
        found = warned(schedule={"type": kind, "min_lr_ratio": ratio, "warmup": {"steps": 30}})
        return [text for text in found if "min_lr_ratio (" in text]

    assert notes(0.5) == [f"note: schedule.min_lr_ratio (0.5) does nothing for type {kind}"]
    assert notes(0.1) == []  # the default, which a recipe need not mean
