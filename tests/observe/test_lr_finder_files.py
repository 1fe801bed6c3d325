"""What the learning-rate finder shows and leaves, from sweeps made by hand."""

from __future__ import annotations

import json
import math
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from support import recipe

from ds_pretrain.config import LrFinder, load_recipe
from ds_pretrain.curriculum import build_plan
from ds_pretrain.errors import UserError
from ds_pretrain.observe.lr_finder_files import LengthResult, rounded, write_results
from ds_pretrain.observe.lr_finder_table import finder_table
from ds_pretrain.schedules.lr_sweep import Finding, SweepPoint, climb_rates, find_rates, search_rates

RECIPE = recipe(
    curriculum={"stages": [{"step": 4 * index, "seq_len": 16 * (index + 1)} for index in range(3)]},
    lr_finder={"steps": 20, "warm_start_steps": 10, "smoothing": 0.5},
)
SETTINGS: LrFinder = RECIPE.lr_finder


def swept(turn: int) -> LengthResult:
    """A loss that falls up to a step of the climb, and is no number two steps later."""
    search = [SweepPoint(lr, 8.0 - 0.1 * step) for step, lr in enumerate(search_rates(SETTINGS))]
    losses = [8.0 - 0.1 * min(step, 2 * turn - step) if step < turn + 2 else math.nan for step in range(30)]
    rates = climb_rates(SETTINGS, 1e-4)
    climb = [SweepPoint(lr, loss, math.isnan(loss)) for lr, loss in zip(rates, losses[: turn + 3], strict=False)]
    return LengthResult(tuple(search), tuple(climb), find_rates(search, climb, SETTINGS))


FOUND = {(16 * (index + 1), 8): swept(turn) for index, turn in enumerate((5, 15, 30))}


def test_all_three_files(tmp_path: Path) -> None:
    plan = build_plan(RECIPE)
    write_results(tmp_path / "new/folder", RECIPE, plan, FOUND)
    results = json.loads((tmp_path / "new/folder/results.json").read_text(encoding="utf-8"))
    assert results["settings"]["steps"] == 20
    second = results["lengths"][1]
    finding = FOUND[32, 8].finding
    assert (second["seq_len"], second["batch_size"], second["edge"]) == (32, 8, finding.edge)
    assert second["climb"][-1] == {"lr": FOUND[32, 8].climb[-1].lr, "loss": None, "bad": True}
    assert second["climb"][0] == {"lr": FOUND[32, 8].climb[0].lr, "loss": 8.0, "bad": False}
    overlay = load_recipe([tmp_path / "new/folder/overlay.yaml"], _required())
    assert overlay.curriculum.stages is not None
    assert [stage.peak_lr for stage in overlay.curriculum.stages] == [
        rounded(each.finding.suggestion) for each in FOUND.values()
    ]
    png = (tmp_path / "new/folder/lr_finder.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")) == (1200, 800)


def _required() -> list[str]:
    return [
        "model.architecture=llama", "data.train=corpus", "data.max_seq_len=64", "optimizer.lr=1",
        "curriculum.total_steps=12",
    ]  # fmt: skip


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"file.*: cannot be written"):
        write_results(tmp_path / "file", RECIPE, build_plan(RECIPE), FOUND)


def test_the_table_says_what_an_edge_is_worth() -> None:
    endings = {"search_ending": "stalled", "climb_ending": "end of the sweep"}
    bounds = {
        (16, 8): Finding(1e-3, 1.234e-2, 4.1133e-3, "exact", "diverged", "diverged"),
        (32, 8): Finding(1e-3, 0.5, 0.1667, "at least", **endings),  # type: ignore[arg-type]
        (64, 8): Finding(1e-5, 1e-5, 0.3333e-5, "at most", "not finite", "not finite"),
    }
    found = {shape: LengthResult((), (), finding) for shape, finding in bounds.items()}
    console = Console(file=StringIO(), width=100)
    console.print(finder_table("mine", found))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [line.split() for line in text.splitlines()]
    assert ["16", "8", "1.00e-03", "1.23e-02", "4.11e-03", "diverged,", "step", "0"] in rows
    assert any(row[:5] == ["32", "8", "1.00e-03", "≥", "5.00e-01"] for row in rows)
    assert any(row[:5] == ["64", "8", "1.00e-05", "≤", "1.00e-05"] for row in rows)
    assert text.count("warning:") == 2
    assert "length 32, batch 8: the loss had not left its minimum" in " ".join(text.split())
    assert "lower lr_finder.start_lr" in " ".join(text.split())


def test_rates_have_three_digits() -> None:
    assert rounded(0.00407499488) == 0.00407
    assert rounded(1.23456e-7) == 1.23e-7
