"""Layers that are unfrozen from the top, stage by stage, on two ranks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from launches import Many
from records import metrics

from ds_pretrain.engine.consolidate import whole_weights
from ds_pretrain.train.export import export_run

ZERO_STAGES = (1, 2, 3)
# at a boundary, one step after it, one step after the other
STOPS = (4, 5, 9)
RESUMED = ("zero1", "zero3", "bf16")
# a tied Llama of two layers: the top one, both, then the embeddings too
STAGES = (
    "curriculum.stages=["
    "{step: 0, seq_len: 16, batch_size: 24, warmup_steps: 2, trainable_layers: 1}, "
    "{step: 4, seq_len: 32, batch_size: 8, warmup_steps: 2, trainable_layers: 2}, "
    "{step: 8, seq_len: 64, batch_size: 12, warmup_steps: 4}]"
)
COMMON = [STAGES, "checkpoint.every_steps=1", "checkpoint.keep_last=99", "model.config.attention_dropout=0.1"]


@pytest.fixture(scope="module")
def runs(train_many: Many, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unfreezing")
    variants = [
        [*COMMON, f"run.output_dir={folder / 'unbroken'}", f"run.name=zero{zero}", f"deepspeed.zero_stage={zero}"]
        for zero in ZERO_STAGES
    ]
    bf16 = [*variants[0], "run.name=bf16", "precision=bf16"]
    train_many(2, [*variants, bf16])
    broken = []
    for variant, name in zip([variants[0], variants[2], bf16], RESUMED, strict=True):
        for stop in STOPS:
            output = folder / f"stop{stop}"
            shutil.copytree(folder / "unbroken" / name, output / name)
            for later in range(stop + 1, 13):
                shutil.rmtree(output / name / f"checkpoints/step_{later:08d}")
            broken.append([*variant, f"run.output_dir={output}", "checkpoint.resume=must"])
    train_many(2, broken)
    return folder


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_only_the_layers_of_the_stage_move(runs: Path, name: str) -> None:
    saved = {
        step: whole_weights(runs / "unbroken" / name / f"checkpoints/step_{step:08d}") for step in (1, 4, 5, 8, 9, 12)
    }

    def moved(before: int, after: int) -> set[str]:
        changed = {key for key in saved[before] if bool((saved[before][key] != saved[after][key]).any())}
        parts = ("layers.0", "layers.1", "norm")
        return {next((part for part in parts if part in key), "embed") for key in changed}

    assert moved(1, 4) == {"layers.1", "norm"}
    assert moved(4, 5) == moved(5, 8) == {"layers.0", "layers.1", "norm"}
    assert moved(8, 9) == moved(9, 12) == {"embed", "layers.0", "layers.1", "norm"}


@pytest.mark.parametrize("name", ["zero1", "zero3"])
def test_newly_trained_groups_warm_up_from_zero(runs: Path, name: str) -> None:
    lines = [line for line in metrics(runs / "unbroken" / name) if "loss" in line]
    shares = []
    for line in lines:
        rates = line["lr_groups"]
        newest = max(rates, key=lambda group: (line["stage"] and f"since_stage_{line['stage']}" in group, group))
        shares.append(rates[newest] / line["lr"])
        assert all(rate == line["lr"] for group, rate in rates.items() if f"since_stage_{line['stage']}" not in group)
    assert shares == pytest.approx([1, 1, 1, 1, 0.5, 1, 1, 1, 0.25, 0.5, 0.75, 1])
    assert set(lines[3]["lr_groups"]) == {"decay", "no_decay"}
    stage1 = {"decay", "no_decay", "decay.since_stage_1", "no_decay.since_stage_1"}
    assert set(lines[7]["lr_groups"]) == stage1
    # the tied embedding does not decay
    assert set(lines[8]["lr_groups"]) == {*stage1, "no_decay.since_stage_2"}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("stop", STOPS)
def test_resume_restores_what_is_frozen(runs: Path, name: str, stop: int) -> None:
    assert metrics(runs / f"stop{stop}" / name) == metrics(runs / "unbroken" / name)
    expected = whole_weights(runs / "unbroken" / name / "checkpoints/step_00000012")
    found = whole_weights(runs / f"stop{stop}" / name / "checkpoints/step_00000012")
    assert expected.keys() == found.keys()
    assert all(bool((expected[key] == found[key]).all()) for key in expected)


def test_a_run_with_frozen_layers_is_exported_whole(runs: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    shutil.copytree(runs / "stop4/zero3", tmp_path / "run")
    for step in range(5, 13):
        shutil.rmtree(tmp_path / f"run/checkpoints/step_{step:08d}")
    export_run(tmp_path / "run", tmp_path / "export")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    weights = whole_weights(tmp_path / "run/checkpoints/step_00000004")
    for name, parameter in model.named_parameters():
        assert bool((parameter == weights[f"model.{name}"]).all()), name
