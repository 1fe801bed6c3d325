"""Checkpoints as folders: published whole, read back, found damaged, given up."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_pretrain.engine.checkpoint_files import (
    MANIFEST,
    FileRecord,
    checkpoint_folder,
    clear_leftovers,
    damage,
    delete_checkpoint,
    files_of,
    list_checkpoints,
    partial_folder,
    publish,
    read_manifest,
    record_files,
    set_aside,
    superseded,
)
from ds_pretrain.errors import CheckpointError

# larger than one block of the checksum's reading
CONTENT = {"state.json": b'{"step": 7}', "engine/rank_0.pt": bytes(range(256)) * 5000, "engine/empty.pt": b""}


def write_partial(checkpoints: Path, step: int) -> Path:
    partial = partial_folder(checkpoints, step)
    for name, content in CONTENT.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_bytes(content)
    return partial


def save(checkpoints: Path, step: int) -> Path:
    """A whole checkpoint, its files recorded by two ranks."""
    partial, final = write_partial(checkpoints, step), checkpoint_folder(checkpoints, step)
    names = files_of(partial)
    publish(
        partial, final, step, record_files(partial, names[0::2]) | record_files(partial, names[1::2]), {"world_size": 2}
    )
    return final


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path, 7)


def test_what_is_published_reads_back(saved: Path) -> None:
    manifest = read_manifest(saved)
    assert (saved.name, manifest["step"], manifest["world_size"]) == ("step_00000007", 7, 2)
    assert manifest["files"] == {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in CONTENT.items()
    }
    assert files_of(saved) == sorted(CONTENT)
    assert damage(saved) == []
    assert not partial_folder(saved.parent, 7).exists()


def test_nothing_is_visible_before_the_rename(tmp_path: Path) -> None:
    partial = write_partial(tmp_path, 7)
    assert list_checkpoints(tmp_path) == []
    # a save that is killed while the manifest is written leaves no visible checkpoint either
    (partial / MANIFEST).mkdir()
    with pytest.raises(IsADirectoryError):
        publish(partial, checkpoint_folder(tmp_path, 7), 7, record_files(partial, files_of(partial)), {})
    assert list_checkpoints(tmp_path) == []


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_truncate, " has 1279999 bytes instead of 1280000"),
        (_flip, " does not match its checksum"),
        (Path.unlink, " is missing"),
    ],
)
def test_a_harmed_file_is_named(saved: Path, harm: Callable[[Path], None], words: str) -> None:
    path = saved / "engine/rank_0.pt"
    harm(path)
    assert damage(saved) == [f"{path}{words}"]


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "._rank_0.pt", "deeper/down.pt"])
def test_what_would_be_unpickled_without_standing_in_the_manifest_is_harm(saved: Path, name: str) -> None:
    path = saved / "engine" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    for shares in (1, 2):
        found = [problem for share in range(shares) for problem in damage(saved, share, shares)]
        assert found == [f"{path} does not stand in manifest.json; remove it"]


def test_other_files_that_do_not_stand_in_the_manifest_are_left_alone(saved: Path) -> None:
    for name in ("notes.txt", "engine/.nfs0001", ".DS_Store"):
        (saved / name).write_text("mine", encoding="utf-8")
    assert damage(saved) == []


def test_a_file_that_cannot_be_opened_is_harmed(saved: Path) -> None:
    path = saved / "engine/rank_0.pt"
    path.unlink()
    path.symlink_to(path)  # a loop: the system refuses to open it
    (problem,) = damage(saved)
    assert str(path) in problem


def test_a_checkpoint_under_another_step_is_not_what_it_says(saved: Path) -> None:
    other = saved.rename(saved.with_name("step_00000009"))
    assert damage(other) == [f"{other / MANIFEST} is that of step 7"]


def test_what_cannot_be_flushed_is_not_recorded(tmp_path: Path) -> None:
    # the system refuses to flush a device like this one
    (tmp_path / "file").symlink_to("/dev/full")
    with pytest.raises(OSError, match="Invalid argument"):
        record_files(tmp_path, ["file"])


def test_all_harm_is_found_however_ranks_share_the_reading(saved: Path) -> None:
    _flip(saved / "engine/rank_0.pt")
    (saved / "engine/empty.pt").unlink()
    for shares in (1, 2, 3, 4):
        found = [problem for share in range(shares) for problem in damage(saved, share, shares)]
        assert sorted(found) == sorted(damage(saved))
        assert len(found) == 2


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("{", "not a checkpoint's manifest (Expecting property name"),
        ("[]", "not a checkpoint's manifest (list indices must be"),
        ("{}", "not a checkpoint's manifest ('files' is missing)"),
        ('{"files": []}', "not a checkpoint's manifest ('list' object has no attribute 'items')"),
        ('{"files": {"a": {"size": 1}}}', "not a checkpoint's manifest ('sha256' is missing)"),
        ('{"files": {"a": {"size": "1", "sha256": ""}}}', "not a checkpoint's manifest (no size and checksum of a)"),
        ('{"files": {"a": 3}}', "not a checkpoint's manifest ('int' object is not subscriptable)"),
        ('{"step": 7, "files": {}}', "not a checkpoint's manifest (state.json or the step is missing)"),
    ],
)
def test_a_broken_manifest_is_damage(saved: Path, manifest: str | None, reason: str) -> None:
    path = saved / MANIFEST
    path.unlink()
    if manifest is not None:
        path.write_text(manifest, encoding="utf-8")
    (problem,) = damage(saved)
    assert problem.startswith(f"{path}: {reason}")
    with pytest.raises(CheckpointError):
        read_manifest(saved)


@pytest.mark.parametrize("name", ["../outside.pt", "engine/../../outside.pt", "{tmp}/outside.pt", "link/outside.pt"])
def test_a_manifest_cannot_reach_outside_its_folder(saved: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.pt").write_bytes(b"other")
    (saved / "link").symlink_to(tmp_path)
    name = name.replace("{tmp}", str(tmp_path))
    record = {"size": 5, "sha256": hashlib.sha256(b"other").hexdigest()}
    (saved / MANIFEST).write_text(json.dumps({"files": {name: record}}), encoding="utf-8")
    assert damage(saved) == [f"{saved / MANIFEST}: not a checkpoint's manifest ({name} lies outside the checkpoint)"]


def test_the_list_is_in_the_order_of_steps(tmp_path: Path) -> None:
    for step in (100, 9, 123_456_789, 20):
        checkpoint_folder(tmp_path, step).mkdir()
    for other in ("step_5", "step_00000005x", "notes", ".step_00000030.partial", ".step_00000031.deleted"):
        (tmp_path / other).mkdir()
    (tmp_path / "step_00000040").write_text("a file, not a folder", encoding="utf-8")
    assert list_checkpoints(tmp_path) == [
        (step, checkpoint_folder(tmp_path, step)) for step in (9, 20, 100, 123_456_789)
    ]
    assert list_checkpoints(tmp_path / "none") == []


def test_deletion_hides_before_it_removes(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[tuple[int, Path]]] = []
    remove = shutil.rmtree

    def watched(path: Path, ignore_errors: bool = False) -> None:
        if ignore_errors:  # what an earlier deletion left
            return
        seen.append(list_checkpoints(saved.parent))
        assert damage(path) == []
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", watched)
    delete_checkpoint(saved)
    assert seen == [[]]
    assert os.listdir(saved.parent) == []


def test_leftovers_are_cleared_and_nothing_else(saved: Path) -> None:
    checkpoints = saved.parent
    write_partial(checkpoints, 9)
    (checkpoints / ".step_00000003.deleted").mkdir()
    (checkpoints / "notes").mkdir()
    clear_leftovers(checkpoints)
    assert sorted(os.listdir(checkpoints)) == ["notes", "step_00000007"]
    assert damage(saved) == []
    clear_leftovers(checkpoints / "none")


def test_a_damaged_checkpoint_set_aside_makes_room_for_its_step(saved: Path) -> None:
    for _ in range(2):
        _flip(saved / "state.json")
        set_aside(saved, "damaged")
        assert list_checkpoints(saved.parent) == []
        assert damage(save(saved.parent, 7)) == []
    clear_leftovers(saved.parent)
    assert sorted(os.listdir(saved.parent)) == ["damaged_step_00000007", "step_00000007"]


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "given_up"),
    [(1, None, [0, 10, 20, 30]), (3, None, [0, 10]), (9, None, []), (1, 20, [10, 30]), (2, 15, [10, 20])],
)
def test_retention_by_hand(keep_last: int, keep_every: int | None, given_up: list[int]) -> None:
    assert superseded([30, 0, 20, 40, 10], keep_last, keep_every) == given_up


@given(st.sets(st.integers(0, 200)), st.integers(1, 5), st.none() | st.integers(1, 30))
def test_retention_keeps_the_newest_and_every_kth(steps: set[int], keep_last: int, keep_every: int | None) -> None:
    given_up = superseded(list(steps), keep_last, keep_every)
    assert given_up == sorted(set(given_up) & steps)
    for step in steps:
        newer = sum(other > step for other in steps)
        kept = newer < keep_last or (keep_every is not None and step % keep_every == 0)
        assert (step in given_up) != kept
    # giving up again changes nothing
    assert superseded(sorted(steps - set(given_up)), keep_last, keep_every) == []


def test_a_record_is_of_the_bytes_on_disk(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert record_files(tmp_path, ["a"]) == {"a": FileRecord(3, digest)}
