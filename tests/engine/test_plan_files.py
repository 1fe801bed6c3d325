"""plan.json: its keys, its numbers, and the files beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import PUBLISHED, recipe

from ds_pretrain.curriculum import build_plan
from ds_pretrain.engine.deepspeed_json import stage_json
from ds_pretrain.engine.plan_files import plan_document, write_plan_files
from ds_pretrain.schedules.plan_warnings import plan_warnings

KEYS = [
    "total_steps", "total_tokens", "world_size", "data_parallel_size", "precision", "assumed", "warnings", "stages",
]  # fmt: skip
STAGE_KEYS = [
    "index", "start_step", "end_step", "start_tokens", "end_tokens", "seq_len", "batch_size", "micro_batch_size",
    "grad_accum_steps", "lr_multiplier", "formula_multiplier", "peak_lr", "max_lr", "min_lr", "warmup_steps",
    "grad_clip", "trainable_layers", "deepspeed_config",
]  # fmt: skip


def test_exactly_the_published_keys() -> None:
    subject = recipe(PUBLISHED)
    document = plan_document(build_plan(subject), subject, "bf16")
    assert list(document) == KEYS
    assert [list(stage) for stage in document["stages"]] == [STAGE_KEYS] * 5


def test_the_numbers_are_the_plans() -> None:
    subject = recipe(PUBLISHED)
    plan = build_plan(subject, world_size=2)
    document = plan_document(plan, subject, "bf16", {"precision": "a guess"})
    assert document["total_steps"] == 100000
    assert document["total_tokens"] == 100000 * 16384
    assert (document["world_size"], document["data_parallel_size"], document["precision"]) == (2, 2, "bf16")
    assert document["assumed"] == {"precision": "a guess"}
    stage = dict(document["stages"][2])
    assert stage.pop("deepspeed_config") == stage_json(subject, plan.stages[2], "bf16")
    assert stage.pop("formula_multiplier") == pytest.approx(32**0.5)
    assert stage.pop("peak_lr") == stage.pop("max_lr") == pytest.approx(2.1e-3)
    assert stage.pop("min_lr") == pytest.approx(2.1e-4)
    assert stage == {
        "index": 2, "start_step": 4000, "end_step": 8000, "start_tokens": 65536000, "end_tokens": 131072000,
        "seq_len": 256, "batch_size": 64, "micro_batch_size": 32, "grad_accum_steps": 1, "lr_multiplier": 3.5,
        "warmup_steps": 200, "grad_clip": 1.0, "trainable_layers": None,
    }  # fmt: skip


def test_warnings_of_plan_and_deepspeed_are_both_there() -> None:
    stages = [{"step": 0}, {"step": 99}]
    subject = recipe(curriculum={"stages": stages}, deepspeed={"zero_stage": 0})
    plan = build_plan(subject)
    dropped = "curriculum.stages.1 would start at or after the end of the run and is dropped"
    raised = "deepspeed.zero_stage 0 is raised to 1: DeepSpeed 0.19.8 mis-scales fp16 gradients at stage 0"
    judged = list(plan_warnings(subject, plan))
    assert len(judged) == 2
    assert plan_document(plan, subject, "fp32")["warnings"] == [dropped, *judged]
    assert plan_document(plan, subject, "fp16")["warnings"] == [dropped, raised, *judged]


def test_one_file_for_the_plan_and_one_for_every_stage(tmp_path: Path) -> None:
    subject = recipe(PUBLISHED)
    document = plan_document(build_plan(subject), subject, "bf16")
    write_plan_files(document, tmp_path / "new" / "folder")
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    names = [f"new/folder/deepspeed/stage_{index:02d}.json" for index in range(5)]
    assert files == [*names, "new/folder/plan.json"]
    assert json.loads((tmp_path / files[-1]).read_text(encoding="utf-8")) == document
    for name, stage in zip(names, document["stages"], strict=True):
        assert json.loads((tmp_path / name).read_text(encoding="utf-8")) == stage["deepspeed_config"]
