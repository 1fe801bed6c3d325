"""What the learning-rate finder leaves: results.json, lr_finder.png and overlay.yaml."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum import Plan
from ds_pretrain.curriculum.lr_overlay import peak_lr_overlay
from ds_pretrain.curriculum.lr_shapes import Shape, rate_between, shape_values, stage_shape
from ds_pretrain.errors import UserError
from ds_pretrain.schedules.lr_sweep import SweepPoint, steepest_rate, sweep_ending
from ds_pretrain.schedules.lr_trials import Baselines, Finding, Trial

RESULTS = "results.json"
PICTURE = "lr_finder.png"
OVERLAY = "overlay.yaml"
_DIGITS = 3


@dataclass(frozen=True)
class ShapeResult:
    """Sweep and trials of one shape, and what they say.

    Args:
        sweep: its points.
        trials: in the order in which they were made.
        baselines: losses that are not training.
        finding: what the trials say.
    """

    sweep: tuple[SweepPoint, ...]
    trials: tuple[Trial, ...]
    baselines: Baselines
    finding: Finding


def write_results(folder: Path, recipe: Recipe, plan: Plan, found: Mapping[Shape, ShapeResult]) -> None:
    """Writes all three files.

    Args:
        folder: where to; made where it is missing.
        recipe, plan: what was swept.
        found: the result of every shape that was measured, in order.

    Raises:
        UserError: the folder cannot be written.
    """
    from ds_pretrain.observe.lr_finder_plot import plot_finder

    rates = {shape: result.finding.suggestion for shape, result in found.items()}
    by_length = {shape.seq_len: rate for shape, rate in rates.items()}
    peaks = [
        rounded(rates[shape] if shape in rates else rate_between(by_length, stage.seq_len))
        for stage, shape in ((stage, stage_shape(recipe, stage)) for stage in plan.stages)
    ]
    document = {
        "settings": recipe.lr_finder.model_dump(mode="json"),
        "world_size": plan.world_size,
        "peak_lrs": peaks,
        "lengths": [_length(recipe, plan, shape, result) for shape, result in found.items()],
    }
    overlay = peak_lr_overlay(recipe, plan, peaks)
    heading = (
        "# Peak learning rates from short trainings; give it after the recipe: --config RECIPE --config this file\n"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULTS).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        (folder / OVERLAY).write_text(
            heading + yaml.safe_dump(overlay, sort_keys=False, default_flow_style=None, width=120), encoding="utf-8"
        )
        plot_finder(found, recipe.run.name, recipe.lr_finder.smoothing, folder / PICTURE)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written ({error.strerror})") from error


def rounded(rate: float) -> float:
    """A rate in as many digits as a measurement is worth."""
    return float(f"{rate:.{_DIGITS - 1}e}")


def _length(recipe: Recipe, plan: Plan, shape: Shape, result: ShapeResult) -> dict[str, Any]:
    return {
        **shape_values(shape),
        "stages": [stage.index for stage in plan.stages if stage_shape(recipe, stage) == shape],
        "steepest": steepest_rate(result.sweep, recipe.lr_finder),
        "sweep_ending": sweep_ending(result.sweep, recipe.lr_finder),
        "first_loss": _number(result.baselines.first),
        "frequency_loss": _number(result.baselines.frequencies),
        **asdict(result.finding),
        "sweep": _points(result.sweep),
        "trials": [
            {"peak_lr": trial.peak_lr, "loss": _number(trial.loss), "points": _points(trial.points)}
            for trial in result.trials
        ],
    }


def _points(points: Sequence[SweepPoint]) -> list[dict[str, float | bool | None]]:
    return [{"lr": point.lr, "loss": _number(point.loss), "bad": point.bad} for point in points]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
