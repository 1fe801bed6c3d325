"""A run that goes on with another recipe than before: what is listed, what is refused, what is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launches import Many
from records import metrics, steps

from ds_pretrain.engine.checkpoint_files import list_checkpoints

STAGES = (
    "{step: 0, seq_len: 16, batch_size: 24, warmup_steps: 2, grad_clip: 0.5}, "
    "{step: 4, seq_len: 32, batch_size: 8, lr_multiplier: 0.5, grad_clip: 5.0}, "
    "{step: 8, seq_len: 64, batch_size: 12, lr_multiplier: 0.7, grad_clip: 0.05}"
)
LONGER = [f"curriculum.stages=[{STAGES}, {{step: 12, seq_len: 64, batch_size: 4}}]", "curriculum.total_steps=14"]


@pytest.fixture(scope="module")
def runs(train_many: Many, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("changed")
    same = [f"run.output_dir={folder}", "run.name=changed", "checkpoint.every_steps=4", "checkpoint.keep_last=9"]
    best = ["run.name=best", "checkpoint.keep_last=1", "checkpoint.keep_best=true", "evaluation.every_steps=2"]
    back = ["run.name=back", "safety.max_consecutive_bad_steps=1"]
    result = train_many(
        1,
        [
            same,
            same,
            [*same, "optimizer.lr=0.5", "run.seed=7"],
            [*same, *LONGER, "checkpoint.keep_last=8"],
            # as if that start had been killed before it saved: the recipe before it, and it, go on all the same
            [f"remove:{folder / 'changed/checkpoints/step_00000014'}"],
            same,
            [*same, *LONGER],
            [*same, *best, "checkpoint.asynchronous=true"],
            ['fault:{"kind": "nan", "rank": 0, "step": 5}', *same, *back],
            [*same, *back, *LONGER],
        ],
        go_on=True,
    )
    (folder / "output.txt").write_text(result.stdout, encoding="utf-8")
    return folder


def test_a_finished_run_says_so_and_a_changed_one_is_refused_with_the_ways_out(runs: Path) -> None:
    output = (runs / "output.txt").read_text(encoding="utf-8")
    # twice: the second time the folder's config.yaml is that of the longer run, which had saved nothing
    assert output.count("finished at step 12, nothing left to train") == 2
    refused = output[output.index("CheckpointError: ") :].splitlines()[:6]
    assert refused[0].endswith("is a run of another recipe; changed:")
    assert refused[1:5] == [
        "  optimizer.lr: 0.01 in the run, 0.5 now",
        "  run.seed: 1234 in the run, 7 now",
        "  stage 0, begun at step 0: peak_lr 0.01 in the run, 0.5 now",
        "  stage 0, begun at step 0: min_lr 0.001 in the run, 0.05 now",
    ]
    assert "to train on, add a stage that starts at step 12" in output
    assert output.count("CheckpointError: ") == 2


def test_a_run_that_went_back_is_not_made_longer(runs: Path) -> None:
    output = (runs / "output.txt").read_text(encoding="utf-8")
    refused = output[output.rindex("CheckpointError: ") :].splitlines()
    assert refused[0] == f"CheckpointError: {runs / 'back'} is a run of another recipe; changed:"
    assert any("but what the run read after 1 rollback(s) begins where they end" in line for line in refused)


def test_a_stage_added_at_the_end_is_trained_and_what_changed_is_listed(runs: Path) -> None:
    output = (runs / "output.txt").read_text(encoding="utf-8")
    assert "note: changed since the checkpoint: curriculum.total_steps: 12 in the run, 14 now" in output
    assert "note: changed since the checkpoint: checkpoint.keep_last: 9 in the run, 8 now" in output
    lines = steps(runs / "changed")
    assert [line["step"] for line in lines] == list(range(1, 15))
    assert [line["batch_size"] for line in lines[-3:]] == [12, 4, 4]
    events = [json.loads(line) for line in (runs / "changed/events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["step"] for event in events if event["event"] == "stage_start"] == [0, 4, 8, 12]


def test_the_best_checkpoint_stays_beside_the_newest(runs: Path) -> None:
    losses = {
        line["step"]: line["val_loss"]
        for line in metrics(runs / "best")
        if line.get("seq_len") == 64 and "val_loss" in line
    }
    saved = {step: losses[step] for step in (4, 8, 12)}
    best = min(saved, key=lambda step: (saved[step], -step))
    assert {step for step, _ in list_checkpoints(runs / "best/checkpoints")} == {best, 12}
