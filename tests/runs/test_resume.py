"""A run that was stopped anywhere goes on as if it had not been: the same lines, to the last bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from launches import Many
from records import metrics

# inside a stage, at a boundary, one step after it
STOPS = {"zero1": (6, 8, 9), "zero3": (8, 9), "everything": (6, 8)}
CASES = [(name, stop) for name, stops in STOPS.items() for stop in stops]
# whatever keeps a state of its own, in one run; the rate that cycles with its momentum is in test_moving_schedules
EVERYTHING = [
    "curriculum.stages=["
    "{step: 0, seq_len: 16, batch_size: 24, warmup_steps: 2, trainable_layers: 1}, "
    "{step: 4, seq_len: 32, batch_size: 8, warmup_steps: 2, trainable_layers: 2}, "
    "{step: 8, seq_len: 64, batch_size: 12, warmup_steps: 4, data_weights: {mine: 1, other: 1}}]",
    "data.sequence_mode=mask",
    "data.document_mask=true",
    "safety.max_consecutive_bad_steps=1",
    "schedule={type: plateau, scope: stage, factor: 0.5, patience: 1, threshold: 9.0, threshold_mode: abs}",
    "evaluation.every_steps=2",
    "evaluation.batches=8",
    "precision=fp16",
    "deepspeed={zero_stage: 2, fp16: {initial_scale_power: 24, loss_scale_window: 2, hysteresis: 1}}",
    "checkpoint.asynchronous=true",
]
# the third step and the one after it come to nothing, and the run goes back
NAN = 'fault:{"kind": "nan", "rank": 1, "step": 2}'
# asked to stop in the middle of the evaluations after these steps, of which the last ends the run
ASKED = (6, 12)
EVERY_STEP = ["checkpoint.every_steps=1", "checkpoint.keep_last=99"]


@pytest.fixture(scope="module")
def runs(train_many: Many, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    common = [f"run.output_dir={folder / 'unbroken'}", *EVERY_STEP]
    # dropout, so that the generators matter too
    dropout = "model.config.attention_dropout=0.1"
    variants = {
        "zero1": [*common, dropout, "run.name=zero1", "deepspeed.zero_stage=1"],
        "zero3": [*common, dropout, "run.name=zero3", "deepspeed.zero_stage=3"],
        "everything": [
            *common,
            dropout,
            "run.name=everything",
            f"data.train=[{{path: {corpus}, weight: 3}}, {{path: {corpus}-val, name: other}}]",
            *EVERYTHING,
        ],
    }
    train_many(2, [variants["zero1"], variants["zero3"], [NAN, *variants["everything"]]], allow_fp16=True)
    broken = []
    for name, variant in variants.items():
        for stop in STOPS[name]:
            # as a kill just after a save leaves it: later checkpoints never were, later lines were
            output = folder / f"stop{stop}"
            shutil.copytree(folder / "unbroken" / name, output / name)
            for later in range(stop + 1, 13):
                shutil.rmtree(output / f"{name}/checkpoints/step_{later:08d}")
            with (output / f"{name}/metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write('{"step": 13, "tok')
            broken.append([*variant, f"run.output_dir={output}", "checkpoint.resume=must"])
    # the newest checkpoint damaged on disk
    shutil.copytree(folder / "stop9", folder / "damaged")
    (damaged,) = (folder / "damaged/zero1/checkpoints/step_00000009/engine").glob("zero_pp_rank_1_*")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    # as a kill after the save of step 5, and then stopped in the middle of two evaluations
    output = folder / "asked"
    shutil.copytree(folder / "unbroken/everything", output / "everything")
    for later in range(6, 13):
        shutil.rmtree(output / f"everything/checkpoints/step_{later:08d}")
    asked = [*variants["everything"], f"run.output_dir={output}"]
    faults = [f'fault:{{"kind": "ask", "rank": 1, "step": {step}}}' for step in ASKED]
    broken += [
        [*variants["zero1"], f"run.output_dir={folder / 'damaged'}"],
        *([fault, *asked] for fault in faults),
        asked,
    ]
    result = train_many(2, broken, allow_fp16=True)
    (folder / "output.txt").write_text(result.stdout, encoding="utf-8")
    return folder


@pytest.mark.parametrize(("name", "stop"), CASES)
def test_metrics_are_identical(runs: Path, name: str, stop: int) -> None:
    unbroken = metrics(runs / f"unbroken/{name}")
    assert metrics(runs / f"stop{stop}/{name}") == unbroken
    done = [line["step"] for line in unbroken if "loss" in line]
    assert done == ([1, 2, 3, 4] if name == "everything" else []) + list(range(3 if name == "everything" else 1, 13))


@pytest.mark.parametrize("name", STOPS)
def test_final_weights_are_identical(runs: Path, name: str) -> None:
    from ds_pretrain.engine.consolidate import whole_weights

    expected = whole_weights(runs / f"unbroken/{name}/checkpoints/step_00000012")
    for stop in STOPS[name]:
        found = whole_weights(runs / f"stop{stop}/{name}/checkpoints/step_00000012")
        assert expected.keys() == found.keys()
        assert all(bool((expected[key] == found[key]).all()) for key in expected)


def test_a_damaged_checkpoint_is_named_and_passed_over(runs: Path) -> None:
    assert metrics(runs / "damaged/zero1") == metrics(runs / "unbroken/zero1")
    output = (runs / "output.txt").read_text(encoding="utf-8")
    assert "step_00000009 is damaged and passed over" in output
    assert "optim_states.pt does not match its checksum" in output
    assert '"event": "resume", "step": 8' in (runs / "damaged/zero1/events.jsonl").read_text(encoding="utf-8")


def test_an_evaluation_that_was_broken_off_is_done_again(runs: Path) -> None:
    run, unbroken = runs / "asked/everything", runs / "unbroken/everything"
    assert metrics(run) == metrics(unbroken)
    output = (runs / "output.txt").read_text(encoding="utf-8")
    for step in ASKED:
        assert output.count(f"step {step}: the evaluation was broken off") == 1
        assert f"stopped; saved at step {step} of 12" in output
        assert output.count(f"{run}: finished") == 0
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["step"] for event in events if event["event"] == "resume"] == [5, 6, 12]
    assert [event["step"] for event in events if event["event"] == "preempted"] == [6, 12]
    # what was saved first knew nothing of the evaluation; it was saved anew
    for step in ASKED:
        found, expected = (
            json.loads((where / f"checkpoints/step_{step:08d}/state.json").read_text(encoding="utf-8"))
            for where in (run, unbroken)
        )
        assert found["val_loss"] is not None
        assert {**found, "recipe": None} == {**expected, "recipe": None}


def test_everything_was_at_work(runs: Path) -> None:
    lines = [line for line in metrics(runs / "unbroken/everything") if "loss" in line]
    assert len({line["loss_scale"] for line in lines}) > 2
    assert any(line["skipped"] for line in lines)
    events = (runs / "unbroken/everything/events.jsonl").read_text(encoding="utf-8")
    assert '"event": "plateau"' in events
    assert '"event": "rollback", "step": 4' in events
    assert {*lines[-1]["epochs"]} == {"mine", "other"}
    # what was left out is left out still, and the rate is still lowered and damped
    recovery = json.loads((runs / "stop8/everything/recovery.json").read_text(encoding="utf-8"))
    assert recovery["count"] == 1


@pytest.mark.parametrize("stop", STOPS["zero1"])
def test_events_tell_of_the_resume_and_of_every_stage_once(runs: Path, stop: int) -> None:
    text = (runs / f"stop{stop}/zero1/events.jsonl").read_text(encoding="utf-8")
    assert f'"event": "resume", "step": {stop}' in text
    # step 8 is a boundary, and the run had gone over it
    assert text.count('"event": "stage_start"') == 3
