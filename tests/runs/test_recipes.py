"""Every shipped recipe trains: its own stages, schedule, groups and precision, with a tiny model and tiny batches."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from launches import ROOT, RankServer
from records import steps
from tiny_models import SIZES

from ds_pretrain.config import load_recipe
from ds_pretrain.curriculum import build_plan
from ds_pretrain.data.manifest import open_corpus
from ds_pretrain.schedules import LearningRateSchedule

WORLD_SIZES = {"llama_1b_8gpu": 8, "llama_7b_64gpu": 64}
RECIPES = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.yaml"))
MAX_SEQ_LEN, STEPS, EVERY = 64, 12, 4
# of a schedule, in tokens or steps of the full run
LENGTHS = ("t_0",)


def reduced(recipe: dict[str, Any], corpus: Path, folder: Path, name: str) -> dict[str, Any]:
    """What to lay over a recipe: a stage every four steps, with lengths in proportion."""
    full = recipe["data"]["max_seq_len"]
    curriculum: dict[str, Any] = {"total_steps": STEPS}
    if "stages" in recipe["curriculum"]:
        curriculum["stages"] = [
            {
                **{key: value for key, value in stage.items() if key not in ("tokens", "fraction")},
                "step": EVERY * index,
                "seq_len": max(8, stage.get("seq_len", full) * MAX_SEQ_LEN // full),
                "batch_size": 4,
                "warmup_steps": 1,
            }
            for index, stage in enumerate(recipe["curriculum"]["stages"][:3])
        ]
    if "pacing" in recipe["curriculum"]:
        curriculum["pacing"] = {"tokens": None, "steps": 9, "start_seq_len": 8, "end_seq_len": 64, "batch_size": 4}
    model: dict[str, Any] = {"pretrained": str(folder / "pretrained")}
    if "architecture" in recipe["model"]:
        model = {"config": SIZES[recipe["model"]["architecture"]], "pad_vocab_multiple": 8}
    return {
        "run": {"name": name, "output_dir": str(folder / "runs")},
        "model": model,
        "tokenizer": None,
        "data": {
            "train": [{"path": str(corpus)}],
            "validation": [{"path": f"{corpus}-val"}],
            "validation_fraction": None,
            "max_seq_len": MAX_SEQ_LEN,
        },
        "curriculum": curriculum,
        "schedule": {key: 4 for key in LENGTHS if key in recipe["schedule"]},
        "evaluation": {"every_steps": None, "batches": 1},
        "checkpoint": {"every_steps": None},
    }


@pytest.fixture(scope="module")
def runs(corpus: Path, rank_server: RankServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("recipes")
    vocabulary = open_corpus(corpus)[1].vocab_size
    GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=12, n_head=2, n_positions=MAX_SEQ_LEN, vocab_size=vocabulary)
    ).save_pretrained(folder / "pretrained")
    jobs = []
    for name in RECIPES:
        path = ROOT / f"ds_configs/{name}.yaml"
        overlay = folder / f"{name}.yaml"
        changes = reduced(yaml.safe_load(path.read_text(encoding="utf-8")), corpus, folder, name)
        overlay.write_text(yaml.safe_dump(changes), encoding="utf-8")
        jobs.append([[str(path), str(overlay)], []])
    (folder / "jobs.json").write_text(json.dumps({"runs": jobs, "allow_fp16": False}), encoding="utf-8")
    result = rank_server.run(1, ROOT / "tests/runs/many.py", str(folder / "jobs.json"))
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "runs"


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_planned_for_its_own_ranks(name: str) -> None:
    recipe = load_recipe([ROOT / f"ds_configs/{name}.yaml"])
    plan = build_plan(recipe, WORLD_SIZES.get(name, 1))
    assert plan.warnings == ()
    rates = [row.lr for _, row in zip(range(2000), LearningRateSchedule(plan, recipe.schedule), strict=False)]
    assert all(0.0 < rate <= 1.2 * max(stage.peak_lr for stage in plan.stages) for rate in rates)


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains_at_reduced_size(runs: Path, name: str) -> None:
    recipe = load_recipe([runs / name / "config.yaml"])
    plan = build_plan(recipe)
    schedule = LearningRateSchedule(plan, recipe.schedule)
    lines = steps(runs / name)
    assert [line["lr"] for line in lines] == [schedule.lr(step, plan.tokens_before(step)) for step in range(STEPS)]
    assert [line["seq_len"] for line in lines] == [plan.stage_at(step).seq_len for step in range(STEPS)]
    assert all(math.isfinite(line["loss"]) and not line["skipped"] for line in lines)
