"""What a run keeps of its recipe, and how it refuses to be continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support import recipe

from ds_pretrain.config import load_recipe
from ds_pretrain.errors import CheckpointError
from ds_pretrain.train.continuation import Changes, recipe_document
from ds_pretrain.train.run_folder import (
    check_corpus,
    check_layout,
    check_recipe,
    run_folder,
    saved_recipe,
    write_config,
)

FOLDER = Path("runs/a")


def test_a_run_is_written_below_its_output_dir() -> None:
    assert run_folder(recipe(run={"output_dir": "some/where", "name": "a.1"})) == Path("some/where/a.1")


def test_the_recipe_kept_is_the_whole_recipe(tmp_path: Path) -> None:
    write_config(tmp_path, recipe())
    assert load_recipe([tmp_path / "config.yaml"]) == recipe()
    # written beside and renamed: nothing else is left
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    write_config(tmp_path, recipe(run={"seed": 7}))
    assert load_recipe([tmp_path / "config.yaml"]).run.seed == 7


def test_the_checkpoint_knows_its_recipe_better_than_the_folder(tmp_path: Path) -> None:
    # a start that changed the recipe and saved nothing has left its own there
    write_config(tmp_path, recipe(run={"seed": 7}))
    document = recipe_document(recipe())
    assert saved_recipe(tmp_path, {"recipe": document}) == document
    assert saved_recipe(tmp_path, {}) == yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))


def test_every_change_is_listed_with_the_ways_out() -> None:
    check_recipe(FOLDER, Changes(("allowed",), ()), recipe(), None)
    with pytest.raises(CheckpointError) as caught:
        check_recipe(FOLDER, Changes((), ("run.seed: 1 in the run, 2 now", "stage 0: …")), recipe(), None)
    first, *changed, last = str(caught.value).splitlines()
    assert first == "runs/a is a run of another recipe; changed:"
    assert changed == ["  run.seed: 1 in the run, 2 now", "  stage 0: …"]
    assert last.startswith("start a new run with run.name=…, or take the changes back; what may change on resume: ")
    assert (
        "stages that have not begun, run.output_dir, tracking, checkpoint, evaluation, data.validation, safety" in last
    )


def test_a_finished_run_is_told_how_to_go_on() -> None:
    with pytest.raises(CheckpointError, match="to train on, add a stage that starts at step 12; what may"):
        check_recipe(FOLDER, Changes((), ("…",)), recipe(), 12)


def test_other_tokens_are_refused() -> None:
    check_corpus(FOLDER, recipe(), "abc", "abc")
    with pytest.raises(CheckpointError) as caught:
        check_corpus(FOLDER, recipe(), "abc", "def")
    assert str(caught.value) == (
        "runs/a was trained on other tokens than corpus now holds (abc then, def now); "
        "bring the old text or token files back, or start a new run with run.name=…"
    )


@pytest.mark.parametrize(
    ("saved", "now", "sections", "reason"),
    [
        ((2, 1), (1, 1), {}, None),
        ((2, 1), (2, 3), {}, None),
        ((2, 0), (1, 0), {"optimizer": {"type": "sgd"}}, None),
        ((2, 1), (2, 1), {"optimizer": {"type": "lion"}}, None),
        ((2, 1), (1, 1), {"optimizer": {"type": "lion"}}, "DeepSpeed converts the state of Adam only, not of lion"),
        ((2, 0), (2, 1), {}, "ZeRO 0 keeps no partitions that could be converted"),
        (
            (2, 2),
            (4, 2),
            {"deepspeed": {"zero_stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}},
            "an optimizer on NVMe cannot be converted",
        ),
    ],
)
def test_ranks_and_zero_stages_that_can_be_converted(
    saved: tuple[int, int], now: tuple[int, int], sections: dict[str, Any], reason: str | None
) -> None:
    manifest = {"world_size": saved[0], "zero_stage": saved[1]}
    if reason is None:
        check_layout(FOLDER, recipe(**sections), manifest, *now)
        return
    with pytest.raises(CheckpointError) as caught:
        check_layout(FOLDER, recipe(**sections), manifest, *now)
    assert str(caught.value) == (
        f"runs/a was saved by {saved[0]} rank(s) at ZeRO {saved[1]} and is to be continued by {now[0]} at ZeRO "
        f"{now[1]}, but {reason}; start {saved[0]} (--num_gpus {saved[0]}) with deepspeed.zero_stage={saved[1]}, or a "
        "new run with run.name=…"
    )
