"""The learning-rate finder on two gloo ranks under the deepspeed launcher."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from launches import LAUNCH_SECONDS, ROOT, deepspeed_command

from ds_pretrain.config import load_recipe
from ds_pretrain.curriculum import build_plan

CASES = [
    ("0", "fp32"),
    *((zero, precision) for zero in ("1", "2", "3") for precision in ("fp32", "bf16")),
    ("1", "fp16"),
]
# from rates that teach nothing to rates at which no number is finite
SWEEP = {"start_lr": 1e-3, "end_lr": 1e30, "steps": 60, "warm_start_steps": 10, "smoothing": 0.5}


def launch(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = deepspeed_command(2, script, *arguments)
    return subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=LAUNCH_SECONDS, check=False
    )


@pytest.fixture(scope="module")
def courses(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """By case and rank: weights before, losses, whether it broke, and weights after, of the four courses."""
    folder = tmp_path_factory.mktemp("sweeps")
    jobs = folder / "jobs.json"
    overrides = [
        [f"deepspeed.zero_stage={zero}", f"precision={precision}", f"run.output_dir={folder}"]
        for zero, precision in CASES
    ]
    jobs.write_text(json.dumps([[[str(base)], each] for each in overrides]), encoding="utf-8")
    result = launch(ROOT / "tests/runs/sweeps.py", str(jobs))
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
def found(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of a finder's results, and what it printed."""
    folder = tmp_path_factory.mktemp("found")
    overlay = folder / "sweep.yaml"
    overlay.write_text(yaml.safe_dump({"lr_finder": SWEEP, "run": {"output_dir": str(folder)}}), encoding="utf-8")
    result = launch(ROOT / "launch/find_lr.py", "--config", str(base), "--config", str(overlay))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return folder / "run", result.stdout


def test_every_length_is_swept_to_its_end_whatever_happens(found: tuple[Path, str]) -> None:
    results = json.loads((found[0] / "lr_finder/results.json").read_text(encoding="utf-8"))
    lengths = results["lengths"]
    assert [(each["seq_len"], each["batch_size"]) for each in lengths] == [(16, 24), (32, 8), (64, 12)]
    assert results["world_size"] == 2
    for each in lengths:
        assert each["climb_ending"] in ("diverged", "not finite")
        assert each["climb"][0]["loss"] == each["search"][0]["loss"]  # the same weights and rows
        assert each["steepest"] >= 1e-3
        assert 1e-3 / 2 <= each["edge"] < 1e10
        assert each["suggestion"] == each["edge"] / 6
        last = each["climb"][-1]
        assert (last["loss"] is None) <= last["bad"]


def test_the_overlay_is_a_recipe_with_the_found_rates(found: tuple[Path, str], base: Path) -> None:
    folder = found[0] / "lr_finder"
    overlay = str(folder / "overlay.yaml")
    program = "from ds_pretrain.cli import main; main()"
    command = [sys.executable, "-c", program, "plan", "--json", "--config", str(base), "--config", overlay]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert planned.returncode == 0, planned.stderr
    lengths = json.loads((folder / "results.json").read_text(encoding="utf-8"))["lengths"]
    assert [stage["peak_lr"] for stage in json.loads(planned.stdout)["stages"]] == [
        float(f"{each['suggestion']:.2e}") for each in lengths
    ]
    before, after = build_plan(load_recipe([base])), build_plan(load_recipe([base, Path(overlay)]))
    assert [stage.grad_clip for stage in after.stages] == [stage.grad_clip for stage in before.stages]


def test_only_its_own_folder_is_written(found: tuple[Path, str], base: Path) -> None:
    run, printed = found
    assert {path.name for path in run.iterdir()} == {"lr_finder"}
    assert {path.name for path in (run / "lr_finder").iterdir()} == {
        "results.json", "overlay.yaml", "lr_finder.png", "deepspeed.log",
    }  # fmt: skip
    assert printed.count("learning rates found") == 1  # rank 0 alone prints
    assert f"launch/pretrain.py --config {base}" in printed
    assert f"--config {run / 'lr_finder/overlay.yaml'}" in printed


def test_a_folder_that_cannot_be_made_is_named_before_anything_is_swept(base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    out = tmp_path / "file/out"
    result = launch(ROOT / "launch/find_lr.py", "--config", str(base), f"run.output_dir={tmp_path}", "--out", str(out))
    assert result.returncode == 2
    assert result.stderr.count(f"{out}: cannot be made (Not a directory); choose another with --out") == 1
    assert "Traceback" not in result.stderr


def test_bad_input_ends_with_one_message(base: Path, tmp_path: Path) -> None:
    overrides = ["lr_finder.end_lr=1e-9", f"run.output_dir={tmp_path}"]
    result = launch(ROOT / "launch/find_lr.py", "--config", str(base), *overrides, "--out", str(tmp_path / "out"))
    assert result.returncode == 2
    assert result.stderr.count("lr_finder.end_lr: found 1e-09; allowed: more than lr_finder.start_lr, 1e-05") == 1
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
