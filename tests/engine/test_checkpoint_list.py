"""What the list of checkpoints says of whole and of damaged ones, and which of them is the best."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ds_pretrain.engine.checkpoint_files import checkpoint_folder, files_of, partial_folder, publish, record_files
from ds_pretrain.engine.checkpoint_list import best_step, checkpoint_entries, read_state
from ds_pretrain.errors import CheckpointError
from ds_pretrain.observe.checkpoint_table import checkpoint_document, checkpoint_table, condition


def save(checkpoints: Path, step: int, **state: Any) -> Path:
    partial, final = partial_folder(checkpoints, step), checkpoint_folder(checkpoints, step)
    (partial / "engine").mkdir(parents=True)
    (partial / "engine/rank_0.pt").write_bytes(bytes(1000))
    (partial / "state.json").write_text(json.dumps({"step": step, **state}), encoding="utf-8")
    publish(partial, final, step, record_files(partial, files_of(partial)), {"world_size": 2})
    return final


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    save(tmp_path, 10, tokens=1000, world_size=2, val_loss=3.5)
    save(tmp_path, 20, tokens=2000, world_size=2, val_loss=3.25)
    save(tmp_path, 30, tokens=3000, world_size=4, val_loss=None)
    return tmp_path


def test_the_list_is_of_every_checkpoint(checkpoints: Path) -> None:
    entries = checkpoint_entries(checkpoints)
    assert [(entry.step, entry.tokens, entry.world_size, entry.val_loss, entry.best) for entry in entries] == [
        (10, 1000, 2, 3.5, False),
        (20, 2000, 2, 3.25, True),
        (30, 3000, 4, None, False),
    ]
    sizes = [sum(path.stat().st_size for path in entry.folder.rglob("*") if path.is_file()) for entry in entries]
    manifests = [(entry.folder / "manifest.json").stat().st_size for entry in entries]
    assert [entry.size for entry in entries] == [size - rest for size, rest in zip(sizes, manifests, strict=True)]
    assert [condition(entry) for entry in entries] == ["whole", "whole, best", "whole"]


def test_a_damaged_one_is_told_and_the_others_stay_whole(checkpoints: Path) -> None:
    state = checkpoint_folder(checkpoints, 20) / "state.json"
    state.write_text("{", encoding="utf-8")
    (checkpoint_folder(checkpoints, 30) / "engine/rank_0.pt").unlink()
    first, second, third = checkpoint_entries(checkpoints)
    assert (first.damage, first.best) == ((), True)
    assert second.damage == (f"{state} has 1 bytes instead of 63",)
    assert (second.tokens, second.val_loss) == (None, None)
    assert condition(third) == "damaged"
    documents = checkpoint_document([first, second, third])
    assert [document["whole"] for document in documents] == [True, False, False]
    assert json.loads(json.dumps(documents))[0]["folder"] == str(first.folder)
    assert checkpoint_table([first, second, third]).row_count == 3


def test_those_set_aside_are_listed_and_never_best(checkpoints: Path) -> None:
    found = checkpoint_folder(checkpoints, 20)
    found.rename(found.with_name("rejected_step_00000020"))
    (checkpoints / "rejected_notes").mkdir()
    entries = checkpoint_entries(checkpoints)
    assert [(entry.step, condition(entry)) for entry in entries] == [
        (10, "whole, best"),
        (20, "whole, set aside as rejected"),
        (30, "whole"),
    ]
    assert checkpoint_document(entries)[1]["aside"] == "rejected"


def test_the_best_is_the_newest_of_equals_and_none_where_none_was_evaluated(tmp_path: Path) -> None:
    found = {step: save(tmp_path, step, val_loss=loss) for step, loss in ((1, 2.0), (2, 1.5), (3, 1.5), (4, None))}
    assert best_step(found) == 3
    assert best_step({4: found[4]}) is None
    assert best_step({}) is None


@pytest.mark.parametrize(
    ("text", "reason"), [(None, "cannot be read"), ("{", "not a run's state"), ("[]", "found list, not a mapping")]
)
def test_a_state_that_cannot_be_read_is_a_clear_error(tmp_path: Path, text: str | None, reason: str) -> None:
    if text is not None:
        (tmp_path / "state.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=reason):
        read_state(tmp_path)


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    for step, loss in ((10, math.nan), (20, 3.5), (30, -math.inf)):
        save(tmp_path, step, val_loss=loss)
    assert [entry.step for entry in checkpoint_entries(tmp_path) if entry.best] == [20]
    json.dumps(checkpoint_document(checkpoint_entries(tmp_path)), allow_nan=False)
