"""Runs that go wrong repair themselves: a poisoned text, a learning rate 100 times too high, a layer that turns NaN."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from launches import ROOT, RankServer
from poison import poison
from records import metrics, steps

from ds_pretrain.config import load_recipe
from ds_pretrain.curriculum import build_plan
from ds_pretrain.schedules import LearningRateSchedule
from ds_pretrain.train.export import export_run

ZERO_STAGES = (1, 2, 3)
STAGES = (
    "curriculum.stages=[{step: 0, seq_len: 16, batch_size: 24, warmup_steps: 2}, "
    "{step: 24, seq_len: 32, batch_size: 8, lr_multiplier: 0.5, warmup_steps: 2}]"
)
LAYERS = (
    "curriculum.stages=[{step: 0, seq_len: 16, batch_size: 24, warmup_steps: 2, trainable_layers: 1}, "
    "{step: 24, seq_len: 32, batch_size: 8, lr_multiplier: 0.5, warmup_steps: 2}]"
)
COMMON = [
    "curriculum.total_steps=30",
    STAGES,
    "evaluation.every_steps=null",
    "checkpoint.every_steps=6",
    "checkpoint.keep_last=1",
]
# one batch of garbage is a spike; a stretch of it that crosses a change of stage is what the run has to leave behind
ONE_BAD, BAD = range(20, 21), range(21, 25)
IMPATIENT = ["safety.spike_factor=1.3", "safety.spike_patience=3"]
GRID = ["safety.rollback_lr_factor=0.01", "safety.max_consecutive_bad_steps=3"]


def poisoned(base: Path, corpus: Path, to: Path, stages: str, bad: range) -> str:
    recipe = load_recipe([base], ["curriculum.total_steps=30", stages])
    poison(corpus, to, build_plan(recipe).stages, bad, recipe.run.seed, recipe.data.max_seq_len)
    return f"data.train={to}"


def train(
    server: RankServer, base: Path, folder: Path, runs: Sequence[Mapping[str, Any]], is_killed: bool = False
) -> str:
    jobs = folder / "jobs.json"
    jobs.write_text(json.dumps({"base": str(base), "runs": runs}), encoding="utf-8")
    result = server.run(2, ROOT / "tests/runs/faults.py", str(jobs))
    assert result.returncode == (-signal.SIGKILL if is_killed else 0), result.stdout + result.stderr
    return result.stdout + result.stderr


def copy_lines(source: Path, to: Path, is_end: Callable[[int, str], bool], beyond: int = 0) -> None:
    """Copies a file of lines up to an end, and some more."""
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    end = next(number for number, line in enumerate(lines) if is_end(number, line))
    to.write_text("".join(lines[: end + beyond]), encoding="utf-8")


def events(run: Path, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == name]


def planned(run: Path, step: int) -> float:
    """The learning rate of a step, from 0, as its plan says."""
    recipe = load_recipe([run / "config.yaml"])
    plan = build_plan(recipe, 2)
    return LearningRateSchedule(plan, recipe.schedule).lr(step, plan.tokens_before(step))


def passes(run: Path) -> list[list[dict[str, Any]]]:
    """Step lines, cut where the run went back."""
    parts: list[list[dict[str, Any]]] = []
    for line in steps(run):
        if not parts or line["step"] <= parts[-1][-1]["step"]:
            parts.append([])
        parts[-1].append(line)
    return parts


@pytest.fixture(scope="module")
def runs(base: Path, corpus: Path, rank_server: RankServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guards")
    spike = poisoned(base, corpus, folder / "spike", STAGES, ONE_BAD)
    stretch = poisoned(base, corpus, folder / "stretch", STAGES, BAD)
    jobs: list[dict[str, Any]] = []
    output = f"run.output_dir={folder}"
    for zero in ZERO_STAGES:
        common = [output, f"deepspeed.zero_stage={zero}", *COMMON]
        jobs += [
            {"overrides": [*common, f"run.name=stretch{zero}", stretch, *IMPATIENT]},
            {"overrides": [*common, f"run.name=rate{zero}", "optimizer.lr=1.0", *GRID]},
            {
                "overrides": [*common, f"run.name=nan{zero}", *GRID],
                "fault": {"kind": "nan", "rank": 1, "step": 16},
            },
        ]
    common = [output, *COMMON, stretch, *IMPATIENT]
    jobs += [
        {"overrides": [*common, "run.name=spike", spike, "safety.spike_patience=200"]},
        {"overrides": [*common, "run.name=layers", LAYERS, "model.config.tie_word_embeddings=false"]},
        {"overrides": [*common, "run.name=fp16", "precision=fp16", "deepspeed.fp16.initial_scale_power=12"]},
        {"overrides": [*common, "run.name=plateau", "schedule.type=plateau", "evaluation.every_steps=6"]},
        {"overrides": [*common, "run.name=cycle", "schedule.type=one_cycle", "schedule.scope=run"]},
        {"overrides": [*common, "run.name=limit", "safety.max_rollbacks=0"]},
    ]
    (folder / "output.txt").write_text(train(rank_server, base, folder, jobs), encoding="utf-8")
    return folder


def test_one_bad_batch_is_damped_and_borne(runs: Path) -> None:
    run = runs / "spike"
    (spike,) = events(run, "spike")
    assert spike["step"] == 21
    assert not events(run, "rollback")
    lines = steps(run)
    assert lines[20]["loss"] > 1.5 * lines[19]["loss"]
    for line in lines:
        before = line["step"] - 1
        damping = 1.0 if before < 21 else 0.5 + 0.5 * (before - 21) / 100
        assert line["lr"] == pytest.approx(planned(run, before) * damping, rel=1e-12)
        assert line["lr_groups"] == {"decay": line["lr"], "no_decay": line["lr"]}


@pytest.mark.parametrize("name", [*(f"stretch{zero}" for zero in ZERO_STAGES), "layers", "fp16", "plateau", "cycle"])
def test_a_poisoned_stretch_is_left_out(runs: Path, name: str) -> None:
    """The run goes back over a change of stage, to before the spike, and never meets the text again."""
    run = runs / name
    (rollback,) = events(run, "rollback")
    first, second = passes(run)
    start = events(run, "spike")[0]["step"]
    assert start == 22
    assert rollback["step"] == first[-1]["step"] > 24
    assert rollback["to_step"] == 18
    assert "not back below" in rollback["reason"]
    assert [line["step"] for line in second] == list(range(19, 31))
    # no spike in what was read instead
    limit = 1.3 * max(line["loss"] for line in first[12:18])
    assert all(line["loss"] < limit for line in second)
    assert max(line["loss"] for line in first) > limit
    assert len(events(run, "spike")) == 1
    # the same plan, at half the rate
    assert [line["lr"] for line in second] == pytest.approx(
        [0.5 * planned(run, line["step"] - 1) for line in second], rel=1e-12
    )
    recovery = json.loads((run / "recovery.json").read_text(encoding="utf-8"))
    assert recovery["count"] == 1
    assert recovery["rollbacks"][0]["target_step"] == 18
    # the checkpoint taken meanwhile was renamed, and then taken again
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    assert kept == {"rejected_step_00000024", "step_00000030"}
    state = json.loads((run / "checkpoints/step_00000030/state.json").read_text(encoding="utf-8"))
    assert state["guard"]["sound_step"] == 30
    plan = build_plan(load_recipe([run / "config.yaml"]), 2)
    taken_back = plan.stages[1].cursor_before(rollback["step"]) - plan.stages[0].cursor_before(18)
    assert state["cursor"] == plan.stages[1].cursor_before(30) + taken_back


def test_validation_is_compared_with_training_at_equal_length(runs: Path) -> None:
    gaps = [event["val_gap"] for event in events(runs / "plateau", "evaluation")]
    assert gaps[:2] == [None, None]  # no average of ten steps yet
    known = [gap for gap in gaps if gap is not None]
    assert len(known) >= 3
    assert all(abs(gap) < 4.0 for gap in known)


@pytest.mark.parametrize("zero", ZERO_STAGES)
def test_a_rate_a_hundred_times_too_high_is_lowered(runs: Path, zero: int) -> None:
    run = runs / f"rate{zero}"
    (rollback,) = events(run, "rollback")
    assert rollback["to_step"] <= 6
    first, second = passes(run)
    assert second[0]["step"] == rollback["to_step"] + 1
    assert second[-1]["step"] == 30
    assert max(line["loss"] for line in first if line["loss"] is not None) > 1.5 * first[0]["loss"]
    # a sane rate, and it learns
    assert max(line["lr"] for line in second) == pytest.approx(1e-2)
    assert second[-1]["loss"] < first[0]["loss"] - 0.5


@pytest.mark.parametrize("zero", ZERO_STAGES)
def test_a_layer_that_turns_nan_on_one_rank_is_restored(runs: Path, zero: int) -> None:
    run = runs / f"nan{zero}"
    (rollback,) = events(run, "rollback")
    assert (rollback["step"], rollback["to_step"]) == (20, 12)
    first, second = passes(run)
    assert [line["step"] for line in first if line["loss"] is None] == [17, 18, 19, 20]
    assert all(line["skipped"] for line in first[16:])
    assert [event["step"] for event in events(run, "bad_step")] == [17, 18, 19, 20]
    # damped at once
    assert first[17]["lr"] == pytest.approx(0.5 * planned(run, 17), rel=1e-12)
    assert second[-1]["step"] == 30
    assert second[-1]["loss"] < first[0]["loss"] - 0.5


def test_no_more_rollbacks_than_allowed(runs: Path) -> None:
    output = (runs / "output.txt").read_text(encoding="utf-8")
    (line,) = [line for line in output.splitlines() if line.startswith("FAILED")]
    assert "The run has gone back 0 times (safety.max_rollbacks is 0) and stops here" in line
    assert not (runs / "limit/recovery.json").exists()
    assert steps(runs / "limit")[-1]["step"] < 30


def test_a_run_killed_around_its_rollback_ends_as_the_unbroken_one(
    runs: Path, base: Path, rank_server: RankServer, tmp_path: Path
) -> None:
    """Killed with -9 in the middle of the rollback; and, as files show it, between the rollback and the next save."""
    stretch = f"data.train={runs / 'stretch'}"
    common = [f"run.output_dir={tmp_path}", *COMMON, stretch, *IMPATIENT]
    killed = {"overrides": [*common, "run.name=killed"], "fault": {"kind": "kill"}}
    train(rank_server, base, tmp_path, [killed], is_killed=True)
    assert json.loads((tmp_path / "killed/recovery.json").read_text(encoding="utf-8"))["count"] == 1
    # nothing but the file tells: the poisoned checkpoint still stands under its name
    assert (tmp_path / "killed/checkpoints/step_00000024").is_dir()
    assert "step_00000018" in export_run(tmp_path / "killed", tmp_path / "model")
    # between the rollback and the next save
    later = tmp_path / "later/killed"
    shutil.copytree(tmp_path / "killed", later)
    checkpoints = later / "checkpoints"
    (checkpoints / "step_00000024").rename(checkpoints / "rejected_step_00000024")
    first, second = (len(part) for part in passes(runs / "stretch1"))
    assert second > 3
    copy_lines(runs / "stretch1/metrics.jsonl", later / "metrics.jsonl", lambda number, line: number >= first + 3)
    copy_lines(runs / "stretch1/events.jsonl", later / "events.jsonl", lambda _, line: '"rollback"' in line, 1)
    folders = (tmp_path / "killed", later)
    jobs = [{"overrides": [*common, "run.name=killed", f"run.output_dir={folder.parent}"]} for folder in folders]
    output = train(rank_server, base, tmp_path, jobs)
    assert output.count("this run went back from step") == 2
    for folder in folders:
        assert metrics(folder) == metrics(runs / "stretch1"), folder
        assert len(events(folder, "rollback")) == 1
        assert len(events(folder, "spike")) == 1
        (resumed,) = events(folder, "resume")
        assert resumed["step"] == 18
        kept = {path.name for path in (folder / "checkpoints").iterdir()}
        assert kept == {"rejected_step_00000024", "step_00000030"}
