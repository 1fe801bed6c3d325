from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
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
    plot_plan(plan, LearningRateSchedule(plan, published.schedule), (), "published", path)
    with Image.open(path) as picture:
        assert picture.size == (1200, 800)
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 100
    everywhere = [[0]] * len(plan.stages)
    groups = [
        {"name": name, "multiplier": multiplier, "trained_since": everywhere}
        for name, multiplier in (
            ("head.decay", 1.0),
            ("head.no_decay", 1.0),
            *((f"layer_{index}.decay", 0.9**index) for index in range(1, 13)),
        )
    ]
    plot_plan(plan, LearningRateSchedule(plan, published.schedule), groups, "published", tmp_path / "groups.svg")
    drawn = (tmp_path / "groups.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {text} -->" in drawn for text in ("head (x 1)", "layer_12 (x 0.282)", "steps", "tokens"))
    with pytest.raises(UserError, match=r"allowed: a file that ends in \.png, \.svg, \.pdf"):
        plot_plan(plan, LearningRateSchedule(plan, published.schedule), (), "published", tmp_path / "plan.bmp")


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


# the top layer, both layers, the top one again, everything; a head and an embedding beside them
UNFREEZING = [
    {"step": 0, "trainable_layers": 1, "warmup_steps": 2},
    {"step": 10, "trainable_layers": 2, "warmup_steps": 4},
    {"step": 20, "trainable_layers": 1, "warmup_steps": 0},
    {"step": 30, "warmup_steps": 5},
]
SINCE = {
    "head.decay": [[0], [0], [0], [0]],
    "layer_1.decay": [[0], [0], [0], [0]],
    "layer_0.decay": [[], [1], [], [3]],
    "embeddings.no_decay": [[], [], [], [3]],
    "patched.frozen": [[], [], [], []],
}


def test_what_is_frozen_is_not_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = recipe(
        curriculum={"total_steps": 40, "stages": UNFREEZING}, schedule={"type": "constant"}, optimizer={"lr": 1.0}
    )
    plan = build_plan(made)
    factors = {"head.decay": 1.0, "embeddings.no_decay": 0.5, "patched.frozen": 0.0}
    rows = [{"name": name, "multiplier": factors.get(name, 0.8), "trained_since": row} for name, row in SINCE.items()]
    drawn: dict[str, list[float]] = {}
    plot = Axes.plot

    def noted(axes: Axes, tokens: Any, rates: Any, **options: Any) -> Any:
        drawn[options["label"]] = list(rates)
        return plot(axes, tokens, rates, **options)

    monkeypatch.setattr(Axes, "plot", noted)
    plot_plan(plan, LearningRateSchedule(plan, made.schedule), rows, "unfreezing", tmp_path / "plan.png")
    nothing = [math.nan] * 10
    ones, first = [1.0] * 40, [0.5, *[1.0] * 39]
    expected = {
        "head (x 1)": first,
        "layer_1 (x 0.8)": [0.8 * rate for rate in first],
        "layer_0 (x 0.8, from stage 1)": [*nothing, 0.2, 0.4, 0.6, *[0.8] * 7, *nothing, *nothing],
        "layer_0 (x 0.8, from stage 3)": [*nothing * 3, 0.16, 0.32, 0.48, 0.64, *[0.8] * 6],
        "embeddings (x 0.5, from stage 3)": [*nothing * 3, 0.1, 0.2, 0.3, 0.4, *[0.5] * 6],
        "patched (frozen)": [math.nan] * 40,
    }
    expected = {name: [*rates, *ones][:40] if len(rates) < 39 else rates for name, rates in expected.items()}
    for name in ("layer_0 (x 0.8, from stage 3)", "embeddings (x 0.5, from stage 3)"):
        expected[name][-1] = expected[name][-2]
    assert list(drawn) == list(expected)
    for name, rates in expected.items():
        assert drawn[name] == pytest.approx(rates, nan_ok=True), name


def shown(document: dict[str, Any]) -> list[str]:
    console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(plan_table(document, "shown"))
    return console.export_text().splitlines()


def test_the_table_shows_what_is_trained() -> None:
    made = recipe(curriculum={"total_steps": 40, "stages": UNFREEZING}, schedule={"type": "constant"})
    lines = shown(plan_document(build_plan(made), made, "fp32"))
    assert lines[2].split()[-1] == "top"
    assert [line.split()[-1] for line in lines[4:8]] == ["1", "2", "1", "all"]
    assert lines[-1].strip() == "top: layers below the head that are trained; the others are frozen"


def test_the_table_shows_the_rates_that_are_reached() -> None:
    stages = [{"step": step, "lr_multiplier": 11.25 - step / 1e4} for step in (0, 20_000, 40_000)]
    made = recipe(
        PUBLISHED,
        curriculum={"total_steps": 100_000, "stages": [{**stage, "trainable_layers": 11} for stage in stages]},
        schedule={"type": "noam", "scope": "run", "warmup": {"steps": 0}, "d_model": 512, "noam_warmup": 25_000},
        optimizer={"lr": 2.0},
    )
    document = plan_document(build_plan(made), made, "bf16")
    # 2 x (512 x 25,000)^-0.5 times the multiplier; at step 20,000 it is there to 20,000 / 25,000
    top = 2 / math.sqrt(512 * 25_000)
    assert [stage["peak_lr"] for stage in document["stages"]] == pytest.approx([11.25 * top, 9.25 * top, 7.25 * top])
    assert [stage["max_lr"] for stage in document["stages"]] == pytest.approx(
        [11.25 * top * 0.8, 9.25 * top, 7.25 * top * math.sqrt(25_000 / 40_001)]
    )
    lines = shown(document)
    heading = lines[2].split()
    assert (heading[6:10], heading[-1]) == (["peak", "lr", "max", "lr"], "top")
    assert lines[4].split()[7:9] == [f"{11.25 * top:.3g}", f"{9.0 * top:.3g}"]
    assert max(map(len, lines)) <= 80
    assert all("…" not in line for line in lines)
