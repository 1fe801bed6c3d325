"""Every type of schedule against torch's or transformers' scheduler, as a recipe's learning rate at base 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from support import recipe
from torch.optim import lr_scheduler

from ds_pretrain.curriculum import build_plan
from ds_pretrain.schedules import LearningRateSchedule, cycles, shapes

STEPS = 2000
WARMUP = 100
EXACT = {"abs": 1e-12, "rel": 0}
Settings = dict[str, Any]


def planned(schedule: Settings, warmup_steps: int = 0) -> LearningRateSchedule:
    """A run of ``STEPS`` steps after its warmup, with a floor of 0 where the type has a floor."""
    total = STEPS + warmup_steps
    found = recipe(
        curriculum={"total_steps": total, "batch_size": 8},
        optimizer={"lr": 1.0},
        schedule={"min_lr_ratio": 0.0, "by": "steps", "warmup": {"steps": warmup_steps}, **schedule},
    )
    return LearningRateSchedule(build_plan(found), found.schedule)


def rates(schedule: Settings, warmup_steps: int = 0) -> list[float]:
    """Learning rates after the warmup."""
    return [row.lr for row in planned(schedule, warmup_steps)][warmup_steps:]


def reference(make: Callable[[torch.optim.Optimizer], Any], skipped: int = 0, momentum: str = "") -> list[float]:
    """What a scheduler of theirs does to a rate of 1, or to a momentum."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = make(optimizer)
    found = []
    for _ in range(STEPS + skipped):
        found.append(float(optimizer.param_groups[0][momentum or "lr"]))
        optimizer.step()
        scheduler.step()
    return found[skipped:]


TORCH: dict[str, tuple[Settings, Callable[[Any], Any]]] = {
    "constant": ({"type": "constant"}, lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
    "step": ({"type": "step", "step_size": 300, "gamma": 0.5}, lambda o: lr_scheduler.StepLR(o, 300, gamma=0.5)),
    "multistep": (
        {"type": "multistep", "milestones": [250, 900, 1700], "gamma": 0.3},
        lambda o: lr_scheduler.MultiStepLR(o, [250, 900, 1700], gamma=0.3),
    ),
    "exponential": (
        {"type": "exponential", "gamma": 0.998, "decay_every": 1},
        lambda o: lr_scheduler.ExponentialLR(o, gamma=0.998),
    ),
    "linear": (
        {"type": "linear", "min_lr_ratio": 0.1},
        lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.1, total_iters=STEPS),
    ),
    "polynomial": (
        {"type": "polynomial", "power": 2.5},
        lambda o: lr_scheduler.PolynomialLR(o, total_iters=STEPS, power=2.5),
    ),
    "cosine": (
        {"type": "cosine", "min_lr_ratio": 0.1},
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS, eta_min=0.1),
    ),
    "restarts": (
        {"type": "cosine_restarts", "t_0": 300, "min_lr_ratio": 0.05},
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=300, eta_min=0.05),
    ),
    "growing restarts": (
        {"type": "cosine_restarts", "t_0": 100, "t_mult": 2},
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=100, T_mult=2),
    ),
    **{
        kind: (
            {"type": kind, "step_size_up": 150, "step_size_down": 250, "min_lr_ratio": 0.1, **more},
            lambda o, kind=kind, more=more: lr_scheduler.CyclicLR(
                o,
                base_lr=0.1,
                max_lr=1.0,
                step_size_up=150,
                step_size_down=250,
                mode=kind,
                cycle_momentum=False,
                **more,
            ),
        )
        for kind, more in (("triangular", {}), ("triangular2", {}), ("exp_range", {"gamma": 0.9994}))
    },
}


@pytest.mark.parametrize("name", TORCH)
def test_torch(name: str) -> None:
    settings, make = TORCH[name]
    assert rates(settings) == pytest.approx(reference(make), **EXACT)


TRANSFORMERS: dict[str, tuple[Settings, Callable[[Any], Any]]] = {
    "linear": (
        {"type": "linear"},
        lambda o: transformers.get_linear_schedule_with_warmup(o, WARMUP, WARMUP + STEPS),
    ),
    "constant": ({"type": "constant"}, lambda o: transformers.get_constant_schedule_with_warmup(o, WARMUP)),
    "cosine": (
        {"type": "cosine"},
        lambda o: transformers.get_cosine_schedule_with_warmup(o, WARMUP, WARMUP + STEPS),
    ),
    "hard restarts": (
        {"type": "cosine_restarts", "t_0": STEPS / 4},
        lambda o: transformers.get_cosine_with_hard_restarts_schedule_with_warmup(o, WARMUP, WARMUP + STEPS, 4),
    ),
    "polynomial": (
        {"type": "polynomial", "power": 2.0, "min_lr_ratio": 0.01},
        lambda o: transformers.get_polynomial_decay_schedule_with_warmup(
            o, WARMUP, WARMUP + STEPS, lr_end=0.01, power=2.0
        ),
    ),
    "inverse_sqrt": (
        {"type": "inverse_sqrt"},
        lambda o: transformers.get_inverse_sqrt_schedule(o, WARMUP),
    ),
    "inverse_sqrt with a timescale": (
        {"type": "inverse_sqrt", "timescale": 700},
        lambda o: transformers.get_inverse_sqrt_schedule(o, WARMUP, timescale=700),
    ),
    **{
        f"wsd {shape}": (
            {"type": "wsd", "decay_fraction": 0.25, "decay_shape": shape, "min_lr_ratio": 0.1},
            lambda o, shape=shape: transformers.get_wsd_schedule(
                o, WARMUP, STEPS // 4, WARMUP + STEPS, decay_type=shape, min_lr_ratio=0.1
            ),
        )
        for shape in ("linear", "cosine", "1-sqrt")
    },
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    settings, make = TRANSFORMERS[name]
    assert rates(settings, WARMUP) == pytest.approx(reference(make, WARMUP), **EXACT)


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pct_start": 0.13, "div_factor": 10.0, "final_div_factor": 300.0, "base_momentum": 0.7, "max_momentum": 0.98},
    ],
)
def test_one_cycle(settings: Settings, anneal: str, three_phase: bool) -> None:
    # theirs may be stepped once more than there are steps
    def exact(optimizer: torch.optim.Optimizer) -> Any:
        scheduler = lr_scheduler.OneCycleLR(
            optimizer, 1.0, total_steps=STEPS, anneal_strategy=anneal, three_phase=three_phase, **settings
        )
        scheduler.total_steps += 1
        return scheduler

    ours = {"type": "one_cycle", "anneal_strategy": anneal, "three_phase": three_phase, **settings}
    assert rates(ours) == pytest.approx(reference(exact), **EXACT)
    schedule = planned(ours)
    momenta = [schedule.momentum(step, 0) for step in range(STEPS)]
    assert momenta == pytest.approx(reference(exact, momentum="momentum"), **EXACT)
    assert momenta[0] == pytest.approx(settings.get("max_momentum", 0.95))
    lowest = min(value for value in momenta if value is not None)
    assert lowest == pytest.approx(settings.get("base_momentum", 0.85))


def test_only_one_cycle_moves_the_momentum() -> None:
    assert planned({"type": "cosine"}).momentum(10, 0) is None
    assert planned({"type": "one_cycle", "cycle_momentum": False}).momentum(10, 0) is None


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        # 512^-0.5 = 0.04419417382; 1000^-1.5 = 3.16227766e-5
        (0, 1.397542486e-6),
        (499, 6.987712429e-4),
        (998, 1.396144943e-3),
        (999, 1.397542486e-3),  # 0.04419417382 / sqrt(1000)
        (1000, 1.396844239e-3),
        (1999, 9.882117688e-4),  # 0.04419417382 / sqrt(2000)
    ],
)
def test_noam(step: int, expected: float) -> None:
    found = rates({"type": "noam", "noam_warmup": 1000})
    assert found[step] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("step", "expected"), [(0, 1.0), (1, 0.9980019986673331), (1000, 0.1353352832366127)])
def test_exponential_rate(step: int, expected: float) -> None:
    assert rates({"type": "exponential", "k": 0.002})[step] == pytest.approx(expected, abs=1e-15)


def test_a_decay_stops_at_the_floor() -> None:
    assert rates({"type": "exponential", "gamma": 0.5, "decay_every": 100, "min_lr_ratio": 0.2})[-1] == 0.2


DEFAULTS = [
    "constant", "step", "multistep", "exponential", "linear", "polynomial", "cosine", "cosine_restarts", "triangular",
    "triangular2", "exp_range", "one_cycle", "noam", "inverse_sqrt", "wsd", "plateau",
]  # fmt: skip


@pytest.mark.parametrize("scope", ["run", "stage"])
@pytest.mark.parametrize("by", ["tokens", "steps"])
@pytest.mark.parametrize("name", DEFAULTS)
def test_every_type_plans_with_defaults(name: str, by: str, scope: str) -> None:
    found = recipe(
        curriculum={
            "total_steps": 60,
            "stages": [
                {"step": 0, "seq_len": 16, "batch_size": 32},
                {"step": 20, "seq_len": 64, "batch_size": 16, "lr_multiplier": 0.5},
            ],
        },
        data={"train": [{"path": "corpus"}], "validation": [{"path": "held-out"}], "max_seq_len": 64},
        evaluation={"every_steps": 10},
        schedule={"type": name, "by": by, "scope": scope},
    )
    plan = build_plan(found)
    schedule = LearningRateSchedule(plan, found.schedule)
    rows = list(schedule)
    peaks = [stage.peak_lr for stage in plan.stages]
    assert len(rows) == 60
    assert all(0.0 < row.lr <= peaks[row.stage] * (1 + 1e-12) for row in rows)
    # the same whoever asks first
    assert [schedule.lr(row.step, row.tokens) for row in reversed(rows)] == [row.lr for row in reversed(rows)]


def test_a_rise_of_its_own_takes_the_place_of_the_warmup() -> None:
    for name in ("one_cycle", "noam", "triangular"):
        assert build_plan(recipe(schedule={"type": name})).stages[0].warmup_steps == 0
        stated = recipe(schedule={"type": name, "warmup": {"steps": 3}})
        assert build_plan(stated).stages[0].warmup_steps == 3
    assert build_plan(recipe(schedule={"type": "cosine"})).stages[0].warmup_steps == 1


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=20),
    st.sampled_from(
        [
            shapes.linear,
            shapes.cosine,
            shapes.constant,
            lambda p: shapes.polynomial(p, 1.7),
            lambda p: shapes.wsd(p, 0.3, "1-sqrt"),
            lambda p: shapes.step(p, 0.21, 0.5),
            lambda p: shapes.multistep(p, [0.2, 0.7], 0.5),
            lambda p: shapes.exponential(p, 0.1, 0.5),
            lambda p: shapes.inverse_sqrt(p, 0.3),
            lambda p: shapes.cosine_restarts(p, 0.1, 1.5),
            lambda p: shapes.noam(1.0 + p * 100, 64.0, 30.0),
            lambda p: cycles.cycle_share(p, "exp_range", 0.1, 0.2, 0.5),
            lambda p: cycles.OneCycle(1.0, 0.01, 0.3, 25.0, 1e4, True, "cos").factor(p),
        ]
    ),
)
def test_arrays_and_numbers_agree(places: list[float], shape: Callable[[Any], Any]) -> None:
    values = shape(np.array(places))
    assert values.tolist() == pytest.approx([float(shape(place)) for place in places], abs=1e-14)
    assert all(0.0 <= value <= 1.0 + 1e-12 for value in values)


def test_a_function_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "my_shapes.py").write_text(
        "def halves(progress):\n    return 1.0 if progress < 0.5 else 0.25\n\n"
        "def high(progress):\n    return 2 * progress\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = rates({"type": "custom", "function": "my_shapes.halves"})
    assert (found[0], found[999], found[1000], found[1999]) == (1.0, 1.0, 0.25, 0.25)
    with pytest.raises(ValueError, match=r"my_shapes.high.*returned 1\.00"):
        rates({"type": "custom", "function": "my_shapes.high"})
    with pytest.raises(
        ValueError, match=r"schedule\.function: found 'my_shapes.none', which cannot be imported: Attribute"
    ):
        rates({"type": "custom", "function": "my_shapes.none"})


def test_cosine_by_stage_restarts_at_every_peak() -> None:
    found = recipe(
        curriculum={
            "total_steps": 8,
            "stages": [{"step": 0, "seq_len": 16, "batch_size": 4}, {"step": 4, "seq_len": 64, "lr_multiplier": 0.5}],
            "batch_size": 4,
        },
        optimizer={"lr": 1.0},
        schedule={"scope": "stage", "min_lr_ratio": 0.0, "warmup": {"steps": 0}},
    )
    found_rates = [row.lr for row in LearningRateSchedule(build_plan(found), found.schedule)]
    quarter = [1.0, 0.5 * (1 + math.sqrt(0.5)), 0.5, 0.5 * (1 - math.sqrt(0.5))]
    assert found_rates == pytest.approx([*quarter, *(0.5 * value for value in quarter)], abs=1e-15)
