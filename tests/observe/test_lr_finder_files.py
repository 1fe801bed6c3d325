"""What the learning-rate finder shows and leaves, from trials made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from support import recipe

from ds_pretrain.config import Recipe, load_recipe
from ds_pretrain.curriculum import build_plan
from ds_pretrain.curriculum.lr_shapes import Shape, measured_shapes, shapes
from ds_pretrain.errors import UserError
from ds_pretrain.observe.lr_finder_files import ShapeResult, rounded, write_results
from ds_pretrain.observe.lr_finder_table import finder_table
from ds_pretrain.schedules.lr_sweep import SweepPoint, sweep_rates
from ds_pretrain.schedules.lr_trials import Baselines, Trial, judge
from ds_pretrain.schedules.schedule import LearningRateSchedule

SETTINGS = {"steps": 20, "smoothing": 0.5, "trial_steps": 8}
STAGES = [{"step": 4 * index, "seq_len": 16 * (index + 1)} for index in range(3)]
RECIPE = recipe(curriculum={"stages": STAGES}, lr_finder=SETTINGS)
BASELINES = Baselines(first=8.0, frequencies=6.0)


def tried(losses: Mapping[float, float], given: Recipe = RECIPE) -> ShapeResult:
    """Trials that begin at 8.0 and end at a loss, or at a number that is not finite."""
    sweep = [SweepPoint(lr, 8.0 - 0.1 * step) for step, lr in enumerate(sweep_rates(given.lr_finder))]
    trials = [
        Trial(peak, (SweepPoint(peak, 8.0), SweepPoint(peak, loss, bad=loss == math.inf)), loss)
        for peak, loss in losses.items()
    ]
    return ShapeResult(tuple(sweep), tuple(trials), BASELINES, judge(trials, BASELINES, given.lr_finder))


EXACT = {2e-3: 5.0, 4e-3: 5.2, 1e-3: 5.5, 8e-3: math.inf}
HIGHER = {4e-3: 5.0, 8e-3: 4.9, 1.6e-2: 4.8}
NOTHING = {2e-3: 6.5, 1e-3: 6.2, 5e-4: 6.4, 4e-3: 9.0}


def results(given: Recipe = RECIPE) -> dict[Shape, ShapeResult]:
    return dict(
        zip(shapes(given, build_plan(given)), (tried(losses) for losses in (EXACT, HIGHER, NOTHING)), strict=True)
    )


def test_all_three_files(tmp_path: Path) -> None:
    plan = build_plan(RECIPE)
    write_results(tmp_path / "new/folder", RECIPE, plan, results())
    document = json.loads((tmp_path / "new/folder/results.json").read_text(encoding="utf-8"))
    assert document["settings"]["steps"] == 20
    first, second, third = document["lengths"]
    assert (first["seq_len"], first["batch_size"], first["stages"]) == (16, 8, [0])
    assert (first["highest_stable"], first["suggestion"]) == (4e-3, 2e-3)
    assert first["edge"] == pytest.approx(4e-3 * 2**0.375)  # of 0.8 learned at 4e-3 and nothing above, half of 1.0
    assert first["divisor"] == first["edge"] / 2e-3
    assert document["peak_lrs"] == [2e-3, 8e-3, 1e-3]
    assert first["frequency_loss"] == first["baseline"] == 6.0
    broken = first["trials"][3]
    assert (broken["peak_lr"], broken["loss"]) == (8e-3, None)
    assert broken["points"][-1] == {"lr": 8e-3, "loss": None, "bad": True}
    assert (second["edge_bound"], second["suggestion"]) == ("at least", 8e-3)
    assert (third["knows_frequencies"], third["baseline"]) == (False, 8.0)
    overlay = load_recipe([tmp_path / "new/folder/overlay.yaml"], _required())
    assert overlay.curriculum.stages is not None
    assert [stage.peak_lr for stage in overlay.curriculum.stages] == [2e-3, 8e-3, 1e-3]
    png = (tmp_path / "new/folder/lr_finder.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")) == (1200, 800)


def _required() -> list[str]:
    return [
        "model.architecture=llama", "data.train=corpus", "data.max_seq_len=64", "optimizer.lr=1",
        "curriculum.total_steps=12",
    ]  # fmt: skip


def test_the_largest_rate_is_the_suggestion_also_where_the_shape_decides_the_peak(tmp_path: Path) -> None:
    noam = {"type": "noam", "d_model": 64, "noam_warmup": 4, "scope": "stage"}
    given = recipe(curriculum={"stages": STAGES}, lr_finder=SETTINGS, schedule=noam)
    plan = build_plan(given)
    write_results(tmp_path, given, plan, results(given))
    after = load_recipe([tmp_path / "overlay.yaml"], [*_required(), *(f"schedule.{key}={noam[key]}" for key in noam)])
    schedule = LearningRateSchedule(build_plan(after), after.schedule)
    largest = [max(step.lr for step in schedule if step.stage == stage) for stage in range(3)]
    assert largest == pytest.approx([2e-3, 8e-3, 1e-3], rel=0.01)


def test_lengths_of_a_pacing_function_between_those_measured_get_rates_between(tmp_path: Path) -> None:
    pacing = {"kind": "linear", "start_seq_len": 8, "steps": 70, "multiple": 8}
    given = recipe(curriculum={"pacing": pacing, "total_steps": 80}, lr_finder=SETTINGS)
    plan = build_plan(given)
    wanted = measured_shapes(given, plan)
    assert [shape.seq_len for shape in wanted] == [8, 16, 32, 64]
    assert [stage.seq_len for stage in plan.stages] == [8, 16, 24, 32, 40, 48, 56, 64]
    losses = (
        {peak: 5.0, 2 * peak: 5.5, peak / 2: 5.5, 4 * peak: 5.7, 8 * peak: 9.0} for peak in (8e-3, 4e-3, 2e-3, 1e-3)
    )
    write_results(tmp_path, given, plan, dict(zip(wanted, map(tried, losses), strict=True)))
    peaks = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["peak_lrs"]
    # here the rate falls as the length grows: 0.064 / length
    assert peaks == pytest.approx([0.064 / length for length in (8, 16, 24, 32, 40, 48, 56, 64)], rel=0.01)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"file.*: cannot be written"):
        write_results(tmp_path / "file", RECIPE, build_plan(RECIPE), results())


def test_the_table_says_what_a_finding_is_worth() -> None:
    console = Console(file=StringIO(), width=100)
    console.print(finder_table("mine", results()))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [line.split() for line in text.splitlines()]
    assert ["16", "8", "all", "0.00519", "0.002", "0.002", "2.59", "4", "5.000"] in rows
    assert ["32", "8", "all", "≥", "0.016", "≥", "0.016", "0.008", "2", "3", "4.800"] in rows
    text = " ".join(text.split())
    assert text.count("warning:") == 2
    assert "length 32, batch 8: the highest rate tried still trains; raise lr_finder.end_lr" in text
    assert "length 48, batch 8: no trial learned more than how often each token occurs" in text


def test_rates_have_three_digits() -> None:
    assert rounded(0.00407499488) == 0.00407
    assert rounded(1.23456e-7) == 1.23e-7
