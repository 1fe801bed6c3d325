"""Blocks and documents in real runs on two ranks: as planned, the same on one rank, and continued to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from launches import Many
from records import metrics, steps

from ds_pretrain.config import load_recipe
from ds_pretrain.curriculum import build_plan

MODES = {
    "mask": ["data.sequence_mode=mask"],
    "mask-documents": ["data.sequence_mode=mask", "data.document_mask=true"],
    "chunk-documents": ["data.document_mask=true"],
    "chunk": [],
}
STOP = 6  # inside the second stage


@pytest.fixture(scope="module")
def runs(train_many: Many, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modes")
    common = ["checkpoint.every_steps=6", "checkpoint.keep_last=9"]
    variants = {name: [*common, *mode, f"run.name={name}"] for name, mode in MODES.items()}
    train_many(2, [[*variant, f"run.output_dir={folder / 'two'}"] for variant in variants.values()])
    train_many(1, [[*variants[name], f"run.output_dir={folder / 'one'}"] for name in ("mask", "mask-documents")])
    shutil.copytree(folder / "two/mask-documents", folder / "again/mask-documents")
    shutil.rmtree(folder / "again/mask-documents/checkpoints/step_00000012")
    train_many(2, [[*variants["mask-documents"], f"run.output_dir={folder / 'again'}", "checkpoint.resume=must"]])
    return folder


@pytest.mark.parametrize("name", ["mask", "mask-documents"])
def test_steps_are_as_planned_in_rows_of_blocks(runs: Path, base: Path, name: str) -> None:
    plan = build_plan(load_recipe([base], ["data.sequence_mode=mask"]), 2)
    assert [stage.rows_per_step for stage in plan.stages] == [6, 4, 12]
    for line in steps(runs / "two" / name):
        stage = plan.stage_at(line["step"] - 1)
        assert line["tokens"] == stage.tokens_before(line["step"])
        assert (line["seq_len"], line["batch_size"]) == (stage.seq_len, stage.batch_size)
        assert line["micro_batch_size"] * line["grad_accum_steps"] * 2 == stage.rows_per_step
    losses = [line["loss"] for line in steps(runs / "two" / name)]
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("name", ["mask", "mask-documents"])
def test_one_rank_and_two_learn_the_same(runs: Path, name: str) -> None:
    one, two = metrics(runs / "one" / name), metrics(runs / "two" / name)
    for key in ("loss", "val_loss"):
        found = [[line[key] for line in lines if key in line] for lines in (one, two)]
        assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_a_run_in_blocks_and_documents_goes_on_to_the_bit(runs: Path) -> None:
    assert metrics(runs / "again/mask-documents") == metrics(runs / "two/mask-documents")


def test_evaluation_confines_attention_as_training_does(runs: Path) -> None:
    """The untrained model judges the same text at length 16 and 64; only what it may look at differs."""
    first = {
        name: {line["seq_len"]: line["val_loss"] for line in metrics(runs / "two" / name) if line["step"] == 0}
        for name in MODES
    }
    # Llama sees distances alone, so that blocks are to it what pieces are
    assert first["mask"][16] == pytest.approx(first["chunk"][16], abs=1e-5)
    assert first["mask"][64] == pytest.approx(first["chunk"][64], abs=1e-7)
    assert first["mask-documents"][16] == pytest.approx(first["chunk-documents"][16], abs=1e-5)
    for seq_len in (16, 64):
        assert abs(first["chunk-documents"][seq_len] - first["chunk"][seq_len]) > 1e-6
