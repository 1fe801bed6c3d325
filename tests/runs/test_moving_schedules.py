"""Schedules that move more than the planned rate: momentum, and the one that remembers, on two ranks and resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from launches import Many
from records import metrics, steps

from ds_pretrain.config import load_recipe
from ds_pretrain.curriculum import build_plan
from ds_pretrain.schedules import LearningRateSchedule

# every evaluation is a bad one, and every other of them lowers the rate
PLATEAU = "schedule={type: plateau, scope: stage, factor: 0.5, patience: 1, threshold: 9.0, threshold_mode: abs}"
ONE_CYCLE = "schedule={type: one_cycle, scope: run, by: steps, base_momentum: 0.6, max_momentum: 0.97}"
# every evaluation lowers the rate, once they count
EAGER = "schedule={type: plateau, scope: stage, factor: 0.5, patience: 0, threshold: 9.0, threshold_mode: abs}"
GPT2 = ["model.architecture=gpt2", "model.config=null", "model.config={n_embd: 32, n_layer: 1, n_head: 2}"]
VARIANTS = {
    "plateau": [PLATEAU, "evaluation.every_steps=2"],
    "one_cycle": [ONE_CYCLE],
    "learned_positions": [EAGER, "evaluation.every_steps=1", "evaluation.batches=1", *GPT2],
    "sgd": [ONE_CYCLE, "optimizer.type=sgd"],
    **{f"muon{zero}": [ONE_CYCLE, "optimizer.type=muon", f"deepspeed.zero_stage={zero}"] for zero in (1, 3)},
}
STOPS = (4, 7)


@pytest.fixture(scope="module")
def runs(train_many: Many, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moving")
    saving = ["checkpoint.every_steps=1", "checkpoint.keep_last=99"]
    variants = {
        name: [f"run.output_dir={folder / 'unbroken'}", f"run.name={name}", *saving, *more]
        for name, more in VARIANTS.items()
    }
    train_many(2, list(variants.values()))
    broken = []
    for name in ("plateau", "one_cycle"):
        for stop in STOPS:
            output = folder / f"stop{stop}"
            shutil.copytree(folder / "unbroken" / name, output / name)
            for later in range(stop + 1, 13):
                shutil.rmtree(output / name / f"checkpoints/step_{later:08d}")
            broken.append([*variants[name], f"run.output_dir={output}", "checkpoint.resume=must"])
    train_many(2, broken)
    return folder


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("name", ["plateau", "one_cycle"])
def test_resume_is_exact(runs: Path, name: str, stop: int) -> None:
    assert metrics(runs / f"stop{stop}" / name) == metrics(runs / "unbroken" / name)


def test_the_rate_follows_the_validation_loss(runs: Path) -> None:
    run = runs / "unbroken/plateau"
    recipe = load_recipe([run / "config.yaml"])
    schedule = LearningRateSchedule(build_plan(recipe, 2), recipe.schedule)
    factors = [line["lr"] / schedule.lr(line["step"] - 1, 0) for line in steps(run)]
    # evaluated at steps 0 (the best), 2, 4 (lowered), 6, 8 (lowered), 10, 12
    assert factors == pytest.approx([1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25])
    events = (run / "events.jsonl").read_text(encoding="utf-8")
    assert events.count('"event": "plateau"') == 3


def test_learned_positions_are_followed_in_the_last_stage_only(runs: Path) -> None:
    run = runs / "unbroken/learned_positions"
    recipe = load_recipe([run / "config.yaml"])
    schedule = LearningRateSchedule(build_plan(recipe, 2), recipe.schedule)
    factors = [line["lr"] / schedule.lr(line["step"] - 1, 0) for line in steps(run)]
    # the last stage begins with the ninth step: its evaluation is the first to count, those after it lower the rate
    assert factors == pytest.approx([1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.5, 0.25])


@pytest.mark.parametrize(("name", "key"), [("one_cycle", "betas"), ("sgd", "momentum")])
def test_momentum_reaches_the_optimizer(runs: Path, name: str, key: str) -> None:
    run = runs / "unbroken" / name
    recipe = load_recipe([run / "config.yaml"])
    schedule = LearningRateSchedule(build_plan(recipe, 2), recipe.schedule)
    found = []
    for step in range(1, 13):
        (file,) = (run / f"checkpoints/step_{step:08d}/engine").glob("zero_pp_rank_1_*_optim_states.pt")
        groups = torch.load(file, weights_only=False)["optimizer_state_dict"]["base_optimizer_state"]["param_groups"]
        assert len({str(group[key]) for group in groups}) == 1
        found.append(groups[0][key][0] if key == "betas" else groups[0][key])
    assert found == [schedule.momentum(step, 0) for step in range(12)] == [line["momentum"] for line in steps(run)]
    assert min(found) < 0.7
    assert max(found) == pytest.approx(0.97)


@pytest.mark.parametrize("name", ["muon1", "muon3"])
def test_momentum_reaches_muon(runs: Path, name: str) -> None:
    """What a step's line tells is read from the engine, from every place that keeps it."""
    run = runs / "unbroken" / name
    recipe = load_recipe([run / "config.yaml"])
    schedule = LearningRateSchedule(build_plan(recipe, 2), recipe.schedule)
    assert [line["momentum"] for line in steps(run)] == [schedule.momentum(step, 0) for step in range(12)]


def test_a_momentum_that_stays_is_not_told(runs: Path) -> None:
    assert {line["momentum"] for line in steps(runs / "unbroken/plateau")} == {None}
