"""What a run keeps of its recipe, and which recipes may continue it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import recipe

from ds_pretrain.config import Recipe, Stage, load_recipe
from ds_pretrain.errors import CheckpointError
from ds_pretrain.train.run_folder import check_continuation, run_folder, write_config

STATE = {"corpus": "abc", "world_size": 2}
ALLOWED = (
    "what may change on resume: run.output_dir, tracking, checkpoint, evaluation, lr_finder, data.prefetch_steps, "
    "deepspeed.communication_timeout_seconds"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_config(tmp_path / "runs" / "a", recipe())
    return tmp_path / "runs" / "a"


def refusal(folder: Path, subject: Recipe, world_size: int = 2, corpus: str = "abc") -> str:
    with pytest.raises(CheckpointError) as caught:
        check_continuation(folder, subject, STATE, world_size, corpus)
    return str(caught.value)


def test_a_run_is_written_below_its_output_dir() -> None:
    assert run_folder(recipe(run={"output_dir": "some/where", "name": "a.1"})) == Path("some/where/a.1")


def test_the_recipe_kept_is_the_whole_recipe(folder: Path) -> None:
    assert load_recipe([folder / "config.yaml"]) == recipe()
    # written beside and renamed: nothing else is left
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]
    write_config(folder, recipe(run={"seed": 7}))
    assert load_recipe([folder / "config.yaml"]).run.seed == 7


def test_the_same_recipe_continues(folder: Path) -> None:
    check_continuation(folder, recipe(), STATE, 2, "abc")


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("run", {"output_dir": "elsewhere"}),
        ("tracking", {"wandb": {"mode": "offline", "tags": ["a"]}}),
        ("checkpoint", {"every_steps": 5, "keep_last": 1, "resume": "must"}),
        ("evaluation", {"every_steps": 3, "batches": 7}),
        ("data", {"prefetch_steps": 9}),
        ("deepspeed", {"communication_timeout_seconds": 60}),
    ],
)
def test_what_changes_nothing_in_what_is_learned_may_change(
    folder: Path, section: str, changes: dict[str, Any]
) -> None:
    check_continuation(folder, recipe(**{section: changes}), STATE, 2, "abc")


def test_every_changed_key_is_listed_with_both_values(folder: Path) -> None:
    subject = recipe(
        run={"seed": 7, "output_dir": "elsewhere"},
        optimizer={"lr": 0.5},
        curriculum={"stages": [{"step": 0, "seq_len": 8}]},
        precision="bf16",
    )
    stage = {**dict.fromkeys(Stage.model_fields), "step": 0, "seq_len": 8}
    found = refusal(folder, subject)
    assert found.splitlines() == [
        f"{folder} is a run of another recipe; changed:",
        f"  curriculum.stages: None in the run, {[stage]!r} now",
        "  optimizer.lr: 0.01 in the run, 0.5 now",
        "  precision: 'auto' in the run, 'bf16' now",
        "  run.seed: 1234 in the run, 7 now",
        f"start a new run with run.name=…, or take the changes back; {ALLOWED}",
    ]


@pytest.mark.parametrize(
    ("section", "changes", "lines"),
    [
        # from nothing to a mapping, and from an empty mapping to one with keys
        (
            "deepspeed",
            {"offload_optimizer": {"device": "cpu"}},
            [
                "  deepspeed.offload_optimizer.device: None in the run, 'cpu' now",
                "  deepspeed.offload_optimizer.pin_memory: None in the run, False now",
            ],
        ),
        (
            "deepspeed",
            {"extra": {"comms_logger": {"enabled": True}}},
            ["  deepspeed.extra.comms_logger.enabled: None in the run, True now"],
        ),
        ("train", {"micro_batch_size": 2}, ["  train.micro_batch_size: 'auto' in the run, 2 now"]),
    ],
)
def test_added_keys_are_listed_alone(folder: Path, section: str, changes: dict[str, Any], lines: list[str]) -> None:
    assert refusal(folder, recipe(**{section: changes})).splitlines()[1:-1] == lines


def test_a_key_taken_away_is_listed_too(folder: Path) -> None:
    write_config(folder, recipe(deepspeed={"extra": {"comms_logger": {"enabled": True}}}))
    assert refusal(folder, recipe()).splitlines()[1:-1] == [
        "  deepspeed.extra.comms_logger.enabled: True in the run, None now"
    ]


@pytest.mark.parametrize("world_size", [1, 4])
def test_another_number_of_ranks_is_refused(folder: Path, world_size: int) -> None:
    assert refusal(folder, recipe(), world_size) == (
        f"{folder} was saved by 2 ranks and is to be continued by {world_size}; continuing on another number of ranks "
        "is not built yet: start 2 (--num_gpus 2), or a new run with run.name=…"
    )


def test_other_tokens_are_refused(folder: Path) -> None:
    assert refusal(folder, recipe(), corpus="def") == (
        f"{folder} was trained on other tokens than corpus now holds (abc then, def now); "
        "bring the old text or token files back, or start a new run with run.name=…"
    )


def test_how_a_run_is_evaluated_is_fixed_where_its_learning_rate_follows_that(tmp_path: Path) -> None:
    plateau: dict[str, Any] = {
        "data": {"train": [{"path": "corpus"}], "validation": [{"path": "held-out"}], "max_seq_len": 64},
        "schedule": {"type": "plateau"},
    }
    write_config(tmp_path, recipe(**plateau))
    check_continuation(tmp_path, recipe(**plateau, checkpoint={"keep_last": 1}), STATE, 2, "abc")
    message = refusal(tmp_path, recipe(**plateau, evaluation={"batches": 7}))
    assert "evaluation.batches: 50 in the run, 7 now" in message
    assert ALLOWED.replace("evaluation, ", "") in message
