"""A disk that is full when a checkpoint is saved: two ranks on a real file system of a few megabytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from full_disk import small_disk
from launches import Many
from records import metrics

from ds_pretrain.engine.checkpoint_files import damage, list_checkpoints

# room for a few of the twelve checkpoints
KILOBYTES = 4096
MODES = {"sync": "false", "async": "true"}


@pytest.fixture(scope="module")
def runs(train_many: Many, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("full_disk")
    (folder / "disk").mkdir()
    common = [f"run.output_dir={folder}", "checkpoint.every_steps=1"]
    with small_disk(folder / "disk", KILOBYTES) as disk:
        variants = []
        for name, asynchronous in MODES.items():
            (disk / name).mkdir()
            (folder / name).mkdir()
            (folder / name / "checkpoints").symlink_to(disk / name)
            variants.append([*common, f"run.name={name}", f"checkpoint.asynchronous={asynchronous}"])
        sync, background = [[*variant, "checkpoint.keep_last=99"] for variant in variants]
        room = [*variants[0], "checkpoint.keep_last=1"]
        # the second run finds the disk full from its start; then there is room again, and the same command
        filled, removed = (
            [f"fill:{disk / 'filler'}"],
            [f"remove:{disk / name}" for name in ("filler", "sync/step_00000001")],
        )
        jobs = [[*common, "run.name=roomy"], sync, filled, background, *([order] for order in removed), room]
        result = train_many(2, jobs, go_on=True)
        (folder / "output.txt").write_text(result.stdout, encoding="utf-8")
        yield folder


def test_the_run_goes_on_and_tries_again(runs: Path) -> None:
    output = (runs / "output.txt").read_text(encoding="utf-8")
    resumed = [
        event["step"]
        for event in map(json.loads, (runs / "sync/events.jsonl").read_text(encoding="utf-8").splitlines())
        if event["event"] == "resume"
    ]
    (last,) = resumed
    assert 2 <= last < 12
    failed = [f"WARNING: step {step} is NOT SAVED: rank" for step in range(last + 1, 13)]
    first, second, *_ = output.split("TrainingError: the run ends at step 12, which could NOT be saved")
    assert [text in first for text in failed] == [True] * len(failed)
    assert f"The checkpoint of step {last} is unharmed" in first
    assert [f"WARNING: step {step} is NOT SAVED" in second for step in range(1, 13)] == [True] * 12
    assert "There is no checkpoint yet" in second
    assert "damaged" not in output


def test_nothing_of_the_training_is_lost(runs: Path) -> None:
    # with room again the run is finished as if nothing had been
    assert metrics(runs / "sync") == metrics(runs / "roomy") == metrics(runs / "async")
    ((step, folder),) = list_checkpoints(runs / "sync/checkpoints")
    assert step == 12
    assert damage(folder) == []
    assert list_checkpoints(runs / "async/checkpoints") == []
    assert list((runs / "async/checkpoints").iterdir()) == []
