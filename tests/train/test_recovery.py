"""What of a run's rollbacks is on disk, and what a start makes of it, wherever the run was killed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from ds_pretrain.engine.checkpoint_files import STATE, checkpoint_folder, list_checkpoints, replace_durably
from ds_pretrain.engine.checkpoint_list import is_good, last_good
from ds_pretrain.errors import CheckpointError
from ds_pretrain.guards import GuardState, Rollback, RollbackHistory
from ds_pretrain.train.history import RECOVERY, is_rejected, read_history, unlogged
from ds_pretrain.train.recovery import set_rejected_aside
from ds_pretrain.train.run_folder import CHECKPOINTS

NONE = RollbackHistory()
ONE = NONE.then(Rollback(150, 100, 0.5, "a spike"))
TWO = ONE.then(Rollback(140, 120, 0.5, "another"))


def save(run: Path, step: int, sound_step: int | None = None, history: RollbackHistory = NONE) -> Path:
    folder = checkpoint_folder(run / CHECKPOINTS, step)
    folder.mkdir(parents=True)
    guard = GuardState(sound_step=step if sound_step is None else sound_step)
    state = {"step": step, "guard": asdict(guard), "recovery": history.to_json()}
    (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
    return folder


def write_history(run: Path, history: RollbackHistory) -> None:
    run.mkdir(exist_ok=True)
    replace_durably(run / RECOVERY, json.dumps(history.to_json()))


def steps_of(run: Path) -> list[int]:
    return [step for step, _ in list_checkpoints(run / CHECKPOINTS)]


def test_a_run_without_rollbacks_has_no_history(tmp_path: Path) -> None:
    assert read_history(tmp_path) == NONE
    save(tmp_path, 10)
    assert read_history(tmp_path) == NONE
    assert unlogged(tmp_path, NONE) == ()


def test_the_file_knows_more_than_checkpoints_do_and_they_stand_in_for_it(tmp_path: Path) -> None:
    save(tmp_path, 100)
    write_history(tmp_path, ONE)
    assert read_history(tmp_path) == ONE
    save(tmp_path, 120, history=ONE)
    (tmp_path / RECOVERY).unlink()
    assert read_history(tmp_path) == ONE


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rollbacks": [{"step": 1}]}', '{"count": 1}'])
def test_an_unreadable_file_stops_the_start(tmp_path: Path, text: str) -> None:
    (tmp_path / RECOVERY).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"recovery\.json: cannot be read"):
        read_history(tmp_path)


def test_what_was_saved_before_a_rollback_and_after_its_target_never_counts_again(tmp_path: Path) -> None:
    for step in (100, 120, 140):
        save(tmp_path, step)
    # killed before anything was renamed
    rejected = [step for step, folder in list_checkpoints(tmp_path / CHECKPOINTS) if is_rejected(folder, ONE)]
    assert rejected == [120, 140]
    set_rejected_aside(tmp_path / CHECKPOINTS, ONE)
    assert steps_of(tmp_path) == [100]
    assert (tmp_path / CHECKPOINTS / "rejected_step_00000120" / STATE).is_file()
    # the same steps again, by the run that went back
    save(tmp_path, 120, history=ONE)
    save(tmp_path, 140, history=ONE)
    set_rejected_aside(tmp_path / CHECKPOINTS, ONE)
    assert steps_of(tmp_path) == [100, 120, 140]
    set_rejected_aside(tmp_path / CHECKPOINTS, TWO)
    assert steps_of(tmp_path) == [100, 120]


def test_a_checkpoint_that_cannot_be_read_is_left_to_its_checksums(tmp_path: Path) -> None:
    folder = save(tmp_path, 120)
    for text in (
        "torn",
        "{}",
        '{"step": "x"}',
        '{"step": 90, "guard": [], "recovery": []}',
        '{"step": 90, "recovery": {}}',
    ):
        (folder / STATE).write_text(text, encoding="utf-8")
        assert not is_rejected(folder, ONE)
        assert not is_good(folder, 200)
        assert read_history(tmp_path) == NONE


def test_good_is_what_was_sound_when_saved_and_is_not_doubted_since(tmp_path: Path) -> None:
    sound, doubted, newer = save(tmp_path, 100), save(tmp_path, 120, sound_step=110), save(tmp_path, 140)
    assert is_good(sound, 130)
    assert not is_good(doubted, 130)
    assert not is_good(newer, 130)
    assert last_good({100: sound, 120: doubted, 140: newer}, 130) == 100
    assert last_good({100: sound, 120: doubted, 140: newer}, 140) == 140
    assert last_good({140: newer}, 130) is None
    assert is_good(save(tmp_path, 0), 0)


def test_a_rollback_that_was_not_logged_is_known(tmp_path: Path) -> None:
    assert unlogged(tmp_path, TWO) == TWO.rollbacks
    (tmp_path / "events.jsonl").write_text('{"event": "run_start"}\n{"event": "rollback"}\n', encoding="utf-8")
    assert unlogged(tmp_path, TWO) == TWO.rollbacks[1:]
