"""A checkpoint that goes on at another ZeRO stage: every state reaches its parameter, of every group."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_engine import Subject

from ds_pretrain.engine.checkpoint_files import files_of
from ds_pretrain.engine.checkpoint_writer import CheckpointWriter
from ds_pretrain.engine.deepspeed_json import Precision
from ds_pretrain.engine.ranks import Ranks
from ds_pretrain.engine.universal import load_elsewhere
from ds_pretrain.errors import CheckpointError

FROZEN = ["embed_tokens", "layers.0"]
# the stage that saves, the one that goes on
STAGES: list[tuple[int, int, Precision]] = [
    (1, 1, "fp32"),
    (3, 3, "fp32"),
    (1, 3, "fp32"),
    (3, 2, "fp32"),
    (1, 1, "bf16"),
    (3, 1, "bf16"),
]


def saved(subject: Subject, folder: Path, ranks: Ranks) -> Path:
    writer = CheckpointWriter(folder, ranks, False)
    writer.start(subject.engine, {"step": subject.engine.global_steps})
    return writer.finish()


@pytest.mark.parametrize(("before", "after", "precision"), STAGES)
def test_losses_go_on(ranks: Ranks, tmp_path: Path, before: int, after: int, precision: Precision) -> None:
    subject = Subject(before, precision, ranks)
    subject.replace(FROZEN)
    for seed in (0, 1):
        subject.step(seed)
    folder = saved(subject, tmp_path, ranks)
    content = {name: (folder / name).read_bytes() for name in files_of(folder)}
    expected = [subject.step(seed) for seed in (2, 3, 4)]
    other = Subject(after, precision, ranks)
    other.replace(FROZEN)
    with torch.no_grad():  # nothing may be as a new model happens to have it, what is frozen neither
        for parameter in other.module.parameters():
            getattr(parameter, "ds_tensor", parameter).mul_(0.5)
    load_elsewhere(other.engine, other.groups(), folder, ranks)
    assert other.engine.global_steps == 2
    found = [other.step(seed) for seed in (2, 3, 4)]
    tolerance = 1e-4 if precision == "fp32" else 3e-2
    for (loss, norm), (expected_loss, expected_norm) in zip(found, expected, strict=True):
        assert loss == pytest.approx(expected_loss, abs=tolerance)
        assert norm == pytest.approx(expected_norm, rel=10 * tolerance)
    # the checkpoint is as it was, and nothing is left beside it
    assert {name: (folder / name).read_bytes() for name in files_of(folder)} == content
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_what_cannot_be_converted_is_a_clear_error_and_leaves_nothing(ranks: Ranks, tmp_path: Path) -> None:
    subject = Subject(1, "fp32", ranks, type="sgd", momentum=0.9)
    subject.step(0)
    folder = saved(subject, tmp_path, ranks)
    with pytest.raises(CheckpointError, match=r"step_00000001 cannot be converted for 1 rank\(s\): KeyError"):
        load_elsewhere(subject.engine, subject.groups(), folder, ranks)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
