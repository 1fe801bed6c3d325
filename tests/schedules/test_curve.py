"""Every type, over spans of every size: bounds, floors, clocks, and functions of a user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import recipe

from ds_pretrain.config import Recipe
from ds_pretrain.config.optimization import ScheduleType
from ds_pretrain.curriculum import Plan, build_plan
from ds_pretrain.schedules import LearningRateSchedule
from ds_pretrain.schedules.curve import function_problems
from ds_pretrain.schedules.cycles import OneCycle
from ds_pretrain.schedules.warmup import WarmupShape

TYPES = [kind for kind in get_args(ScheduleType) if kind != "custom"]
# validation for plateau
VALIDATED = {"train": [{"path": "corpus"}], "validation": [{"path": "held-out"}], "max_seq_len": 64}


def planned(schedule: dict[str, Any], stages: list[dict[str, Any]], total: int) -> tuple[Recipe, Plan]:
    made = recipe(
        data=VALIDATED,
        curriculum={"total_steps": total, "batch_size": 8, "stages": stages},
        optimizer={"lr": 1.0},
        schedule=schedule,
    )
    return made, build_plan(made)


@given(
    st.sampled_from(TYPES),
    st.sampled_from(["run", "stage"]),
    st.sampled_from(["tokens", "steps"]),
    st.integers(2, 30),
    st.integers(0, 31),
    st.integers(0, 31),
    st.booleans(),
)
def test_rates_stay_between_nothing_and_the_peak(
    kind: str, scope: str, by: str, total: int, first_warmup: int, warmup: int, three_phase: bool
) -> None:
    # a warmup may fill its stage, and a stage may have one step
    stages = [
        {"step": 0, "seq_len": 16, "warmup_steps": first_warmup},
        {"step": total // 2, "seq_len": 64, "lr_multiplier": 0.5, "warmup_steps": warmup},
    ]
    more = {"three_phase": three_phase} if kind == "one_cycle" else {}
    made, plan = planned({"type": kind, "scope": scope, "by": by, **more}, stages, total)
    schedule = LearningRateSchedule(plan, made.schedule)
    rows = list(schedule)
    assert len(rows) == total
    for row in rows:
        stage = plan.stages[row.stage]
        warming = row.step - stage.start_step < stage.warmup_steps
        # a warmup comes from the stage before, up or down
        assert (0.0 if warming else stage.min_lr) <= row.lr <= (1.0 if warming else stage.peak_lr)
        momentum = schedule.momentum(row.step, row.tokens)
        assert momentum is None or 0.85 - 1e-12 <= momentum <= 0.95 + 1e-12
    assert [schedule.lr(row.step, row.tokens) for row in reversed(rows)] == [row.lr for row in reversed(rows)]


@pytest.mark.parametrize("kind", TYPES)
def test_tokens_and_steps_are_one_clock_where_batches_do_not_change(kind: str) -> None:
    rates = []
    for by in ("tokens", "steps"):
        made, plan = planned({"type": kind, "by": by, "warmup": {"steps": 7}}, [{"step": 0, "seq_len": 64}], 300)
        rates.append([row.lr for row in LearningRateSchedule(plan, made.schedule)])
    assert rates[0] == pytest.approx(rates[1], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("shape", get_args(WarmupShape))
@pytest.mark.parametrize("kind", TYPES)
def test_rates_of_many_steps_at_once_are_those_of_each(kind: str, shape: str) -> None:
    stages = [{"step": 0, "seq_len": 16}, {"step": 700, "seq_len": 64, "lr_multiplier": 0.3}]
    made, plan = planned({"type": kind, "scope": "stage", "warmup": {"steps": 90, "shape": shape}}, stages, 2000)
    schedule = LearningRateSchedule(plan, made.schedule)
    each = [schedule.lr(step, plan.tokens_before(step)) for step in range(2000)]
    assert schedule.rates(np.arange(2000)).tolist() == each
    some = np.array([0, 89, 90, 699, 700, 701, 789, 790, 1999])
    assert schedule.rates(some).tolist() == [each[step] for step in some]
    assert schedule.rates(some[:0]).tolist() == []
    assert [schedule.highest(stage) for stage in plan.stages] == [max(each[:700]), max(each[700:])]


def test_a_function_of_ones_own_is_asked_for_many_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "of_numbers.py").write_text(
        "def shape(progress): return 1.0 if progress < 0.5 else 0.5\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = {"type": "custom", "function": "of_numbers.shape", "min_lr_ratio": 0.0, "warmup": {"steps": 0}}
    made, plan = planned(settings, [{"step": 0}], 10)
    assert LearningRateSchedule(plan, made.schedule).rates(np.arange(10)).tolist() == [1.0] * 5 + [0.5] * 5


@pytest.mark.parametrize(
    ("schedule", "floor"),
    [
        ({"type": "constant"}, 1.0),
        ({"type": "plateau", "min_lr_ratio": 0.02}, 0.02),
        ({"type": "one_cycle", "div_factor": 10.0, "final_div_factor": 50.0}, 0.002),
        ({"type": "noam"}, 0.0),
        ({"type": "linear", "min_lr_ratio": 0.25}, 0.25),
        ({"type": "wsd", "min_lr_ratio": 0.0}, 0.0),
    ],
)
def test_the_plan_tells_the_floor_of_the_type(schedule: dict[str, Any], floor: float) -> None:
    _, plan = planned(schedule, [{"step": 0}, {"step": 10, "lr_multiplier": 0.5}], 20)
    assert [stage.min_lr for stage in plan.stages] == pytest.approx([floor, 0.5 * floor])


def test_one_cycle_ends_at_its_floor() -> None:
    made, plan = planned({"type": "one_cycle"}, [{"step": 0}], 50)
    assert list(LearningRateSchedule(plan, made.schedule))[-1].lr == pytest.approx(plan.stages[0].min_lr)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("length", [3.0, 40.0])
def test_one_cycle_stays_where_it_ended(anneal: Literal["cos", "linear"], length: float) -> None:
    # a warmup that lasts to the end of the run aims beyond the cycle's last step
    cycle = OneCycle(length, 1.0, 0.3, 25.0, 1e4, False, anneal)
    assert cycle.factor(length) == pytest.approx(4e-6, rel=1e-6)
    assert cycle.momentum(length, 0.85, 0.95) == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("own_shapes.rising", "returned 1.5 at 0.75"),
        ("own_shapes.hole", "returned nan at 0.5"),
        ("own_shapes.broken", "cannot be used at 0: ZeroDivisionError"),
        ("own_shapes.missing", "cannot be imported: AttributeError"),
        ("no_such_package.shape", "cannot be imported: ModuleNotFoundError"),
        (".shape", "cannot be imported: ValueError"),
        ("own_shapes.fine", None),
    ],
)
def test_a_function_of_ones_own_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, function: str, reason: str | None
) -> None:
    (tmp_path / "own_shapes.py").write_text(
        "def rising(progress): return 2 * progress if progress >= 0.75 else 0.5\n"
        "def hole(progress): return float('nan') if progress == 0.5 else 1.0\n"
        "def broken(progress): return 1 / 0\n"
        "def fine(progress): return 1.0 - progress\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    problems = function_problems(recipe(schedule={"type": "custom", "function": function}).schedule)
    assert len(problems) == (0 if reason is None else 1)
    if reason is not None:
        assert problems[0].path == "schedule.function"
        assert problems[0].message.startswith(f"found {function!r}, which {reason}")
        assert "PYTHONPATH" in problems[0].message
