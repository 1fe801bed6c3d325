"""A run that was stopped anywhere goes on as if it had not been: the same lines, to the last bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from launches import Many
from records import metrics

# inside a stage, at a boundary, one step after it
STOPS = (6, 8, 9)
ZERO_STAGES = (1, 3)
EVERY_STEP = ["checkpoint.every_steps=1", "checkpoint.keep_last=99"]


@pytest.fixture(scope="module")
def runs(train_many: Many, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    common = [f"run.output_dir={folder / 'unbroken'}", *EVERY_STEP]
    # dropout, so that the generators matter too
    dropout = "model.config.attention_dropout=0.1"
    variants = [[*common, dropout, f"run.name=zero{zero}", f"deepspeed.zero_stage={zero}"] for zero in ZERO_STAGES]
    train_many(2, variants)
    broken = []
    for variant, zero in zip(variants, ZERO_STAGES, strict=True):
        for stop in STOPS:
            # as a kill just after a save leaves it: later checkpoints never were, later lines were
            output = folder / f"stop{stop}"
            shutil.copytree(folder / "unbroken" / f"zero{zero}", output / f"zero{zero}")
            for later in range(stop + 1, 13):
                shutil.rmtree(output / f"zero{zero}/checkpoints/step_{later:08d}")
            with (output / f"zero{zero}/metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write('{"step": 13, "tok')
            broken.append([*variant, f"run.output_dir={output}", "checkpoint.resume=must"])
    # the newest checkpoint damaged on disk
    shutil.copytree(folder / "stop9", folder / "damaged")
    (damaged,) = (folder / "damaged/zero1/checkpoints/step_00000009/engine").glob("zero_pp_rank_1_*")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    result = train_many(2, [*broken, [*variants[0], f"run.output_dir={folder / 'damaged'}"]])
    (folder / "output.txt").write_text(result.stdout, encoding="utf-8")
    return folder


@pytest.mark.parametrize("zero", ZERO_STAGES)
@pytest.mark.parametrize("stop", STOPS)
def test_metrics_are_identical(runs: Path, zero: int, stop: int) -> None:
    unbroken = metrics(runs / f"unbroken/zero{zero}")
    assert metrics(runs / f"stop{stop}/zero{zero}") == unbroken
    assert len([line for line in unbroken if "loss" in line]) == 12


@pytest.mark.parametrize("zero", ZERO_STAGES)
def test_final_weights_are_identical(runs: Path, zero: int) -> None:
    from ds_pretrain.engine.consolidate import whole_weights

    expected = whole_weights(runs / f"unbroken/zero{zero}/checkpoints/step_00000012")
    for stop in STOPS:
        found = whole_weights(runs / f"stop{stop}/zero{zero}/checkpoints/step_00000012")
        assert expected.keys() == found.keys()
        assert all(bool((expected[name] == found[name]).all()) for name in expected)


def test_a_damaged_checkpoint_is_named_and_passed_over(runs: Path) -> None:
    assert metrics(runs / "damaged/zero1") == metrics(runs / "unbroken/zero1")
    output = (runs / "output.txt").read_text(encoding="utf-8")
    assert "step_00000009 is damaged and passed over" in output
    assert "optim_states.pt does not match its checksum" in output
    assert '"event": "resume", "step": 8' in (runs / "damaged/zero1/events.jsonl").read_text(encoding="utf-8")


def test_events_tell_of_the_resume(runs: Path) -> None:
    text = (runs / "stop6/zero1/events.jsonl").read_text(encoding="utf-8")
    assert '"event": "resume", "step": 6' in text
    assert text.count('"event": "stage_start"') == 3
