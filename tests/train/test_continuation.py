"""Which recipes may continue a run: what is free, what is still to come, and what has been trained already."""

from __future__ import annotations

from typing import Any

import pytest
from support import recipe

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum import build_plan
from ds_pretrain.train.continuation import Changes, recipe_changes, recipe_document

STAGES: list[dict[str, Any]] = [
    {"step": 0, "seq_len": 16, "batch_size": 8, "warmup_steps": 2},
    {"step": 4, "seq_len": 32, "batch_size": 8, "lr_multiplier": 0.5},
    {"step": 8, "seq_len": 64, "batch_size": 8},
]


def staged(stages: list[dict[str, Any]] = STAGES, total: int = 12, **sections: Any) -> Recipe:
    curriculum = {"total_steps": total, "batch_size": None, "stages": stages}
    return recipe(**{"curriculum": curriculum, "schedule": {"scope": "stage"}, **sections})


def changes(before: Recipe, after: Recipe, step: int, ranks: tuple[int, int] = (1, 1)) -> Changes:
    plan = build_plan(after, ranks[1])
    return recipe_changes(recipe_document(before), ranks[0], after, plan, 100_000, step)


def with_stage(index: int, **keys: Any) -> Recipe:
    return staged([stage | keys if number == index else stage for number, stage in enumerate(STAGES)])


def with_batch(size: int) -> list[dict[str, Any]]:
    return [*STAGES[:2], STAGES[2] | {"batch_size": size}]


@pytest.mark.parametrize("step", [0, 6, 12])
def test_the_same_recipe_changes_nothing(step: int) -> None:
    assert changes(staged(), staged(), step) == Changes((), ())


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ("run", {"output_dir": "elsewhere"}),
        ("tracking", {"wandb": {"mode": "offline", "tags": ["a"]}}),
        ("checkpoint", {"every_steps": 5, "keep_last": 1, "resume": "must", "asynchronous": True}),
        ("evaluation", {"every_steps": 3, "batches": 7}),
        ("safety", {"max_consecutive_bad_steps": 3}),
        ("data", {"prefetch_steps": 9}),
        ("deepspeed", {"communication_timeout_seconds": 60}),
        ("deepspeed", {"zero_stage": 2}),
        ("train", {"micro_batch_size": 2}),
        ("model", {"gradient_checkpointing": True}),
    ],
)
def test_what_changes_nothing_in_what_is_learned_may_change_and_is_listed(section: str, keys: dict[str, Any]) -> None:
    found = changes(recipe(), recipe(**{section: keys}), 6)
    assert found.refused == ()
    assert all(line.startswith(f"{section}.") for line in found.allowed)
    assert len(found.allowed) == len(keys) + (section == "tracking")


@pytest.mark.parametrize(
    ("before", "after", "may"),
    [
        ([{"path": "old/corpus"}], [{"path": "new/corpus"}], True),
        ([{"path": "old/corpus"}], [{"path": "new/text", "name": "corpus"}], True),
        ([{"path": "old/corpus"}], [{"path": "new/text"}], False),  # another name in metrics and data_weights
        ([{"path": "a", "weight": 2.0}, {"path": "b"}], [{"path": "a", "weight": 1.0}, {"path": "b"}], False),
        ([{"path": "a"}, {"path": "b"}], [{"path": "b"}, {"path": "a"}], False),
        ([{"path": "a"}], [{"path": "a"}, {"path": "b"}], False),
    ],
)
def test_a_corpus_may_lie_elsewhere(before: list[dict[str, Any]], after: list[dict[str, Any]], may: bool) -> None:
    found = changes(recipe(data={"train": before}), recipe(data={"train": after}), 6)
    told = found.allowed if may else found.refused
    assert len(told) == 1
    assert told[0].startswith("data.train: ")


def test_validation_text_may_change_where_no_rate_follows_it() -> None:
    other = {"train": [{"path": "corpus"}], "validation": [{"path": "other"}]}
    found = changes(recipe(), recipe(data=other), 6)
    assert (len(found.allowed), found.refused) == (1, ())
    plateau = {"schedule": {"type": "plateau"}, "evaluation": {"every_steps": 2}}
    one = {"train": [{"path": "corpus"}], "validation": [{"path": "one"}]}
    assert changes(recipe(data=one, **plateau), recipe(data=other, **plateau), 6).allowed == ()


def test_both_values_are_told() -> None:
    assert changes(recipe(), recipe(checkpoint={"keep_last": 1}), 6).allowed == (
        "checkpoint.keep_last: 3 in the run, 1 now",
    )


@pytest.mark.parametrize(
    ("section", "keys", "line"),
    [
        ("run", {"seed": 7}, "run.seed: 1234 in the run, 7 now"),
        ("optimizer", {"weight_decay": 0.0}, "optimizer.weight_decay: 0.1 in the run, 0.0 now"),
        ("model", {"config": {"hidden_size": 64}}, "model.config.hidden_size: 32 in the run, 64 now"),
        ("precision", "bf16", "precision: 'auto' in the run, 'bf16' now"),
        (
            "deepspeed",
            {"extra": {"comms_logger": {"enabled": True}}},
            "deepspeed.extra.comms_logger.enabled: None in the run, True now",
        ),
    ],
)
def test_what_defines_the_run_is_refused(section: str, keys: Any, line: str) -> None:
    assert line in changes(recipe(), recipe(**{section: keys}), 6).refused
    # a key taken away as well
    reverse = changes(recipe(**{section: keys}), recipe(), 6).refused
    assert any(found.startswith(line.partition(":")[0]) for found in reverse)


def test_a_stage_that_has_not_begun_may_change() -> None:
    for step in (6, 8):  # at step 8 the last stage is next, and has trained nothing
        for keys in ({"seq_len": 32}, {"lr_multiplier": 0.1}, {"batch_size": 16, "grad_clip": 0.3}):
            found = changes(staged(), with_stage(2, **keys), step)
            assert found.refused == ()
            assert [line.partition(":")[0] for line in found.allowed] == ["curriculum.stages"]


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"lr_multiplier": 0.25}, "lr_multiplier 0.5 in the run, 0.25 now"),
        ({"batch_size": 4}, "batch_size 8 in the run, 4 now"),
        ({"grad_clip": 0.1}, "grad_clip 1.0 in the run, 0.1 now"),
        ({"step": 5}, "start_step 4 in the run, 5 now"),
    ],
)
@pytest.mark.parametrize("step", [5, 8, 12])
def test_a_stage_that_has_begun_may_not(keys: dict[str, Any], field: str, step: int) -> None:
    found = changes(staged(), with_stage(1, **keys), step)
    assert f"stage 1, begun at step 4: {field}" in found.refused
    assert found.refused[0].startswith("curriculum.stages: ")
    assert found.allowed == ()
    if keys != {"step": 5}:
        assert changes(staged(), with_stage(1, **keys), 4).refused == ()


def test_one_curve_over_the_run_feels_a_change_of_any_stage() -> None:
    before, after = (staged(schedule={"scope": "run"}, stages=stages) for stages in (STAGES, with_batch(16)))
    assert changes(before, after, 6).refused[-1].startswith("learning rate of step ")


def test_a_run_is_made_longer_by_a_stage_that_starts_where_it_ended() -> None:
    longer = staged([*STAGES, {"step": 12, "seq_len": 64, "batch_size": 16}], total=20)
    assert changes(staged(), longer, 12).refused == ()
    # the last stage itself may not be stretched: its rows are shuffled up to its end, and its rate falls until there
    found = changes(staged(), staged(total=20), 12)
    assert any(
        "ends at step 12 in the run, 20 now, which would shuffle its rows anew" in line for line in found.refused
    )


def test_what_rollbacks_read_beyond_the_end_keeps_the_end_where_it_is() -> None:
    longer = staged([*STAGES, {"step": 12, "seq_len": 64, "batch_size": 16}], total=20)
    plan = build_plan(longer)
    found = recipe_changes(recipe_document(staged()), 1, longer, plan, 100_000, 12, rollbacks=1)
    assert "what the run read after 1 rollback(s) begins where they end" in found.refused[-1]
    # another rate for a stage to come moves nothing
    slower = with_stage(2, lr_multiplier=0.1)
    assert (
        recipe_changes(recipe_document(staged()), 1, slower, build_plan(slower), 100_000, 6, rollbacks=1).refused == ()
    )


def test_a_run_cannot_end_before_where_it_is() -> None:
    assert changes(staged(), staged(total=9), 10).refused[-1] == "the run has done 10 steps, and now ends after 9"


def test_one_long_stage_may_get_another_end_while_rate_and_rows_so_far_stay() -> None:
    def single(total: int, schedule: str) -> Recipe:
        more = {"decay_fraction": 0.2} if schedule == "wsd" else {}
        return recipe(
            curriculum={"total_steps": total, "batch_size": 8},
            schedule={"type": schedule, "scope": "run", "warmup": {"steps": 10}, **more},
        )

    # a shuffle block is 256 steps: step 300 is inside the second of four, and of eight
    for schedule in ("constant", "wsd"):
        assert changes(single(1024, schedule), single(2048, schedule), 300).refused == ()
        assert changes(single(2048, schedule), single(1024, schedule), 300).refused == ()
    # the last block, joined with what is left of the stage
    found = changes(single(1024, "constant"), single(2048, "constant"), 900)
    assert "shuffle its rows anew" not in str(found.refused)
    found = changes(single(1030, "constant"), single(2048, "constant"), 900)
    assert "shuffle its rows anew" in found.refused[-1]
    # a cosine over the whole run would have been elsewhere by now
    found = changes(single(1024, "cosine"), single(2048, "cosine"), 300)
    assert found.refused[-1].startswith("learning rate of step ")
    assert "which is done" in found.refused[-1]


def test_the_rate_of_a_run_that_follows_its_evaluation_is_fixed() -> None:
    data = {"train": [{"path": "corpus"}], "validation": [{"path": "held-out"}], "max_seq_len": 64}
    before = recipe(data=data, schedule={"type": "plateau"})
    found = changes(before, recipe(data=data, schedule={"type": "plateau", "patience": 9}), 6)
    assert [line.partition(":")[0] for line in found.refused] == ["schedule.patience"]
    found = changes(before, recipe(data=data, schedule={"type": "plateau"}, evaluation={"batches": 7}), 6)
    assert found.refused == ("evaluation.batches: 50 in the run, 7 now",)


def test_a_batch_left_to_the_number_of_ranks_is_not_another_one_unnoticed() -> None:
    free = recipe(curriculum={"total_steps": 12, "batch_size": None})
    found = changes(free, free, 6, ranks=(2, 1))
    assert any(line.startswith("stage 0, begun at step 0: batch_size ") for line in found.refused)
    assert changes(recipe(), recipe(), 6, ranks=(2, 1)) == Changes((), ())


def test_a_key_that_a_newer_version_has_added_is_no_change() -> None:
    saved = recipe_document(recipe())
    del saved["checkpoint"]["asynchronous"]
    after = recipe()
    assert recipe_changes(saved, 1, after, build_plan(after), 100_000, 6) == Changes((), ())
    # and one that it does not know any more is told
    saved["optimizer"]["gone"] = 3
    found = recipe_changes(saved, 1, after, build_plan(after), 100_000, 6)
    assert found.refused == ("optimizer.gone: 3 in the run, None now",)
