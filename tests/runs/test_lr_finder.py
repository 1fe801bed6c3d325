"""The learning-rate finder on two gloo ranks under the deepspeed launcher."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from launches import ROOT, RankServer, launch

from ds_pretrain.config import load_recipe
from ds_pretrain.curriculum import build_plan

CASES = [
    ("0", "fp32"),
    *((zero, precision) for zero in ("1", "2", "3") for precision in ("fp32", "bf16")),
    ("1", "fp16"),
]
# from rates that teach nothing to rates at which no number is finite
FINDER = {
    "start_lr": 1e-3, "end_lr": 1e30, "steps": 30, "smoothing": 0.5, "trial_steps": 8, "max_trials": 5,
}  # fmt: skip
# the same length and batch twice, but not the same layers
STAGES = [
    {"step": 0, "seq_len": 16, "batch_size": 24, "grad_clip": 0.5, "trainable_layers": 1, "micro_batch_size": 4},
    {"step": 4, "seq_len": 16, "batch_size": 24, "grad_clip": 0.5, "lr_multiplier": 0.5},
    {"step": 8, "seq_len": 64, "batch_size": 12, "grad_clip": 0.05, "lr_multiplier": 0.7},
]


@pytest.fixture(scope="module")
def courses(
    base: Path, rank_server: RankServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Any]:
    """By case and rank: weights before, losses, whether it broke, and weights after, of the four courses."""
    folder = tmp_path_factory.mktemp("sweeps")
    jobs = folder / "jobs.json"
    overrides = [
        [f"deepspeed.zero_stage={zero}", f"precision={precision}", f"run.output_dir={folder}"]
        for zero, precision in CASES
    ]
    jobs.write_text(json.dumps([[[str(base)], each] for each in overrides]), encoding="utf-8")
    result = rank_server.run(2, ROOT / "tests/runs/sweeps.py", str(jobs))
    assert result.returncode == 0, result.stdout + result.stderr
    assert not (folder / "state").exists()
    return dict(zip(CASES, json.loads((folder / "results.json").read_text(encoding="utf-8")), strict=True))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_restored_engine_does_to_the_bit_what_it_did(courses: Any, case: tuple[str, str]) -> None:
    for first, broken, second, third in courses[case]:
        assert broken[0] == first[0]  # the weights are the first ones again
        assert broken[3] != first[0]
        assert len(first[1]) == 4
        assert all(math.isfinite(loss) for loss in first[1])
        assert first == second == third  # weights before and after, every loss, and what is drawn next
    losses = [repr([course[1] for course in rank]) for rank in courses[case]]
    assert losses[0] == losses[1]  # as text, in which one NaN equals another


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_terrible_rate_breaks_the_weights_and_no_more(courses: Any, case: tuple[str, str]) -> None:
    first, broken, *_ = courses[case][0]
    assert not first[2]
    if case[1] != "fp16":  # there the scaler takes its time
        assert broken[2]
        assert len(broken[1]) < 4 or not math.isfinite(broken[1][-1])


@pytest.fixture(scope="module")
def recipes(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The base recipe, and what the finder's is laid over it."""
    folder = tmp_path_factory.mktemp("found")
    over = folder / "finder.yaml"
    sections = {
        "lr_finder": FINDER,
        "run": {"output_dir": str(folder)},
        "curriculum": {"stages": STAGES},
        "deepspeed": {"zero_stage": 3},
    }
    over.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return base, over


@pytest.fixture(scope="module")
def found(recipes: tuple[Path, Path]) -> tuple[Path, str]:
    """Folder of a finder's results, and what it printed."""
    base, over = recipes
    result = launch(2, ROOT / "launch/find_lr.py", "--config", str(base), "--config", str(over))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return over.parent / "run", result.stdout


def test_every_shape_is_measured_to_its_end_whatever_happens(found: tuple[Path, str]) -> None:
    results = json.loads((found[0] / "lr_finder/results.json").read_text(encoding="utf-8"))
    assert results["world_size"] == 2
    shapes = results["lengths"]
    keys = ("seq_len", "batch_size", "trainable_layers", "stages")
    assert [tuple(each[key] for key in keys) for each in shapes] == [
        (16, 24, 1, [0]), (16, 24, None, [1]), (64, 12, None, [2]),
    ]  # fmt: skip
    for each in shapes:
        assert each["sweep_ending"] in ("diverged", "not finite", "stalled")
        firsts: dict[float, list[float]] = {}
        for trial in each["trials"]:
            firsts.setdefault(trial["peak_lr"], []).append(trial["points"][0]["loss"])
        # the same weights and rows, to the bit; a second trial at a rate has other rows
        assert {losses[0] for losses in firsts.values()} == {each["sweep"][0]["loss"]}
        assert all(loss != losses[0] for losses in firsts.values() for loss in losses[1:])
        assert 0 < each["suggestion"] <= each["highest_stable"] / 2 <= each["edge"] / 2
        assert each["divisor"] == each["edge"] / each["suggestion"]
        assert 1 < each["frequency_loss"] < math.log(400)
        for trial in each["trials"]:
            last = trial["points"][-1]
            assert (last["loss"] is None) <= last["bad"]
            assert len(trial["points"]) == 8 or last["bad"]
    top, everything = ([point["loss"] for point in each["sweep"]] for each in shapes[:2])
    assert top[0] == pytest.approx(everything[0], rel=1e-6)  # rebuilt from the first weights
    assert top[:20] != everything[:20]


def test_it_says_before_how_long_it_may_take(found: tuple[Path, str]) -> None:
    printed = found[1]
    assert f"at most {3 * (30 + 5 * 8)} steps" in printed
    assert printed.index("at most") < printed.index("trained at")


def test_the_overlay_is_a_recipe_with_the_found_rates(found: tuple[Path, str], recipes: tuple[Path, Path]) -> None:
    folder = found[0] / "lr_finder"
    overlay = folder / "overlay.yaml"
    program = "from ds_pretrain.cli import main; main()"
    files = [part for file in (*recipes, overlay) for part in ("--config", str(file))]
    command = [sys.executable, "-c", program, "plan", "--json", *files]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert planned.returncode == 0, planned.stderr
    lengths = json.loads((folder / "results.json").read_text(encoding="utf-8"))["lengths"]
    assert [stage["peak_lr"] for stage in json.loads(planned.stdout)["stages"]] == [
        float(f"{each['suggestion']:.2e}") for each in lengths
    ]
    before, after = build_plan(load_recipe(recipes)), build_plan(load_recipe([*recipes, overlay]))
    for key in ("grad_clip", "trainable_layers", "micro_batch_size", "warmup_steps"):
        assert [getattr(stage, key) for stage in after.stages] == [getattr(stage, key) for stage in before.stages]


def test_only_its_own_folder_is_written(found: tuple[Path, str], base: Path) -> None:
    run, printed = found
    assert {path.name for path in run.iterdir()} == {"lr_finder"}
    assert {path.name for path in (run / "lr_finder").iterdir()} == {
        "results.json", "overlay.yaml", "lr_finder.png", "deepspeed.log",
    }  # fmt: skip
    assert printed.count("learning rates found") == 1  # rank 0 alone prints
    assert f"launch/pretrain.py --config {base}" in printed
    assert f"--config {run / 'lr_finder/overlay.yaml'}" in printed


def test_a_folder_that_cannot_be_made_is_named_before_anything_is_swept(
    base: Path, rank_server: RankServer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    out = tmp_path / "file/out"
    arguments = ["--config", str(base), f"run.output_dir={tmp_path}", "--out", str(out)]
    result = rank_server.run(2, ROOT / "launch/find_lr.py", *arguments)
    assert result.returncode == 2
    assert result.stderr.count(f"{out}: cannot be made (Not a directory); choose another with --out") == 1
    assert "Traceback" not in result.stderr


def test_bad_input_ends_with_one_message(base: Path, rank_server: RankServer, tmp_path: Path) -> None:
    overrides = ["lr_finder.end_lr=1e-9", f"run.output_dir={tmp_path}"]
    arguments = ["--config", str(base), *overrides, "--out", str(tmp_path / "out")]
    result = rank_server.run(2, ROOT / "launch/find_lr.py", *arguments)
    assert result.returncode == 2
    assert result.stderr.count("lr_finder.end_lr: found 1e-09; allowed: at least twice lr_finder.start_lr, 1e-05") == 1
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
