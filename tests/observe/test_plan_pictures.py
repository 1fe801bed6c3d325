from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from support import PUBLISHED, recipe

from ds_pretrain.curriculum import build_plan
from ds_pretrain.engine.plan_files import plan_document
from ds_pretrain.errors import UserError
from ds_pretrain.observe.lr_curve import lr_curve
from ds_pretrain.observe.plan_plot import plot_plan
from ds_pretrain.observe.plan_table import plan_table, short
from ds_pretrain.schedules import LearningRateSchedule


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    published = recipe(PUBLISHED)
    document = plan_document(build_plan(published, 8), published, "bf16")
    console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(plan_table(document, "published"))
    lines = console.export_text().splitlines()
    assert lines[0].strip() == "published: 8 ranks, bf16"
    assert lines[4].split() == ["0", "0", "32.8M", "64", "256", "32", "1", "0.00678", "11.3", "11.3", "500", "5"]
    assert lines[8].split() == ["4", "20,000", "1.31B", "1024", "16", "2", "1", "0.00042", "0.7", "1.41", "100", "0.3"]
    assert "100,000 steps, 1,638,400,000 tokens" in lines[10]


def test_short_numbers() -> None:
    assert [short(number) for number in (999, 1000, 295_000, 1.31e9, 2.5e12)] == ["999", "1k", "295k", "1.31B", "2.5T"]


def test_the_picture_is_drawn_at_its_size(tmp_path: Path) -> None:
    published = recipe(PUBLISHED)
    plan = build_plan(published)
    path = tmp_path / "plan.png"
    plot_plan(plan, LearningRateSchedule(plan, published.schedule), {}, "published", path)
    with Image.open(path) as picture:
        assert picture.size == (1200, 800)
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 100
    groups = {"head.decay": 1.0, "head.no_decay": 1.0, **{f"layer_{index}.decay": 0.9**index for index in range(1, 13)}}
    plot_plan(plan, LearningRateSchedule(plan, published.schedule), groups, "published", tmp_path / "groups.svg")
    drawn = (tmp_path / "groups.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {text} -->" in drawn for text in ("head (x 1)", "layer_12 (x 0.282)", "steps", "tokens"))
    with pytest.raises(UserError, match=r"allowed: a file that ends in \.png, \.svg, \.pdf"):
        plot_plan(plan, LearningRateSchedule(plan, published.schedule), {}, "published", tmp_path / "plan.bmp")


def test_the_terminal_shows_a_curve() -> None:
    published = recipe(PUBLISHED)
    plan = build_plan(published)
    lines = lr_curve(plan, LearningRateSchedule(plan, published.schedule), 70).splitlines()
    assert len(lines) == 10
    assert lines[0].strip() == "learning rate over steps"
    assert lines[1].startswith("0.00678")
    assert lines[-1].split()[-1] == "100,000"
    assert max(len(line) for line in lines) <= 70
    assert "\x1b" not in "".join(lines)
