"""Saving a live engine: what is written while training goes on, and what a full disk leaves."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from full_disk import fill, small_disk
from tiny_engine import Subject

from ds_pretrain.engine.checkpoint import load_checkpoint
from ds_pretrain.engine.checkpoint_files import damage, list_checkpoints, partial_folder
from ds_pretrain.engine.checkpoint_list import read_state
from ds_pretrain.engine.checkpoint_writer import CheckpointWriter
from ds_pretrain.engine.ranks import Ranks
from ds_pretrain.errors import SaveError

# torch's writer does not know the reason, the system's calls do
WORDS = "rank 0: .* could not be written|No space left"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 8192) as folder:
        yield folder


def state(step: int) -> dict[str, int]:
    return {"step": step, "tokens": 10 * step}


def save(writer: CheckpointWriter, subject: Subject, step: int) -> Path:
    writer.start(subject.engine, state(step))
    return writer.finish()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("zero", [1, 3])
def test_a_checkpoint_is_of_the_moment_it_was_begun(
    ranks: Ranks, tmp_path: Path, zero: int, asynchronous: bool
) -> None:
    subject = Subject(zero, "fp32", ranks)
    subject.step(0)
    writer = CheckpointWriter(tmp_path, ranks, asynchronous)
    writer.start(subject.engine, state(1))
    drawn = torch.rand(3)
    following = [subject.step(seed) for seed in (1, 2)]
    assert writer.step == 1
    assert list_checkpoints(tmp_path) == []  # not before every rank has said that it is written
    folder = writer.finish()
    assert (writer.step, writer.writing) == (None, False)
    assert list_checkpoints(tmp_path) == [(1, folder)]
    assert damage(folder) == []
    assert read_state(folder) == state(1)
    again = Subject(zero, "fp32", ranks)
    load_checkpoint(again.engine, folder, ranks)
    assert torch.equal(torch.rand(3), drawn)
    if asynchronous:  # copied before the steps; otherwise nobody trains before it is written
        assert [again.step(seed) for seed in (1, 2)] == following


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_fails_one_save_and_no_other(ranks: Ranks, disk: Path, asynchronous: bool) -> None:
    subject = Subject(1, "fp32", ranks)
    subject.step(0)
    writer = CheckpointWriter(disk, ranks, asynchronous)
    first = save(writer, subject, 1)
    size = sum(path.stat().st_size for path in first.rglob("*"))
    for share in (0, 0.3, 0.9):  # no room for the first file, for the second, for the manifest's folder
        ballast = fill(disk, int(share * size))
        with pytest.raises(SaveError, match=WORDS):
            save(writer, subject, 2)
        assert not partial_folder(disk, 2).exists()
        assert list_checkpoints(disk) == [(1, first)]
        assert damage(first) == []
        ballast.unlink()
    assert damage(save(writer, subject, 2)) == []
    assert [step for step, _ in list_checkpoints(disk)] == [1, 2]


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What only the garbage collector would let go of stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def open_files(folder: Path) -> list[str]:
    """Files below a folder that this process has open, removed ones too."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [target for target in map(os.readlink, links) if target.startswith(str(folder))]


def test_a_failed_save_gives_back_its_room_at_once(ranks: Ranks, disk: Path, no_collector: None) -> None:
    subject = Subject(1, "fp32", ranks)
    subject.step(0)
    writer = CheckpointWriter(disk, ranks, False)
    save(writer, subject, 1)
    fill(disk, 100_000)
    free = os.statvfs(disk).f_bavail
    with pytest.raises(SaveError, match=WORDS):
        save(writer, subject, 2)
    assert open_files(disk) == []
    assert os.statvfs(disk).f_bavail == free


def test_a_step_saved_again_takes_the_place_of_the_one_before(ranks: Ranks, tmp_path: Path) -> None:
    subject = Subject(1, "fp32", ranks)
    writer = CheckpointWriter(tmp_path, ranks, False)
    for tokens in (10, 20):
        writer.start(subject.engine, {"step": 1, "tokens": tokens})
        folder = writer.finish()
        assert read_state(folder)["tokens"] == tokens
        assert damage(folder) == []
    shutil.rmtree(tmp_path / "step_00000001")
    # a folder removed by hand is no reason to fail
    save(writer, subject, 2)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [2]
