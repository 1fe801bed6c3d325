"""The picture of every schedule is drawn by the script that the page names."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import get_args

from launches import ROOT
from PIL import Image, ImageChops

from ds_pretrain.config.optimization import ScheduleType


def test_the_page_shows_what_the_script_draws(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "docs/schedules.py"))
    # plateau and custom have no course of their own
    assert {name.split(",")[0] for name in script["TYPES"]} == set(get_args(ScheduleType)) - {"plateau", "custom"}
    script["main"](tmp_path / "schedules.png")
    with Image.open(tmp_path / "schedules.png") as drawn, Image.open(ROOT / "docs/schedules.png") as shown:
        assert drawn.size == shown.size == (1200, 800)
        # fonts and their edges may differ from machine to machine
        different = ImageChops.difference(drawn.convert("L"), shown.convert("L")).point(
            lambda value: 255 * (value > 64)
        )
        assert different.histogram()[255] < 0.01 * 1200 * 800
    page = (ROOT / "docs/learning-rates.md").read_text(encoding="utf-8")
    assert "python docs/schedules.py" in page
    assert all(f"`{kind}`" in page for kind in get_args(ScheduleType))
    for row in ("| 0.99 | 0.99 | 0.94 | 0.89 |", "| 0.95 | 0.95 | 0.74 | 0.54 |"):
        assert row in page
