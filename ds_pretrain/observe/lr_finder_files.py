"""What the learning-rate finder leaves: results.json, lr_finder.png and overlay.yaml."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum import Plan
from ds_pretrain.curriculum.lr_overlay import Shape, peak_lr_overlay
from ds_pretrain.errors import UserError
from ds_pretrain.schedules.lr_sweep import Finding, SweepPoint

RESULTS = "results.json"
PICTURE = "lr_finder.png"
OVERLAY = "overlay.yaml"
_DIGITS = 3


@dataclass(frozen=True)
class LengthResult:
    """Both sweeps of one length and batch, and what they say."""

    search: tuple[SweepPoint, ...]
    climb: tuple[SweepPoint, ...]
    finding: Finding


def write_results(folder: Path, recipe: Recipe, plan: Plan, found: Mapping[Shape, LengthResult]) -> None:
    """Writes all three files.

    Args:
        folder: where to; made where it is missing.
        recipe, plan: what was swept.
        found: the result of every shape of the plan, in order.

    Raises:
        UserError: the folder cannot be written.
    """
    from ds_pretrain.observe.lr_finder_plot import plot_finder

    document = {
        "settings": recipe.lr_finder.model_dump(mode="json"),
        "world_size": plan.world_size,
        "lengths": [
            {
                "seq_len": seq_len,
                "batch_size": batch_size,
                **asdict(result.finding),
                "search": _points(result.search),
                "climb": _points(result.climb),
            }
            for (seq_len, batch_size), result in found.items()
        ],
    }
    overlay = peak_lr_overlay(recipe, plan, {shape: rounded(found[shape].finding.suggestion) for shape in found})
    heading = (
        "# Peak learning rates found by sweeps; to be given after the recipe: --config RECIPE --config this file\n"
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
    """A rate in as many digits as a sweep is worth."""
    return float(f"{rate:.{_DIGITS - 1}e}")


def _points(points: Sequence[SweepPoint]) -> list[dict[str, float | bool | None]]:
    return [
        {"lr": point.lr, "loss": point.loss if math.isfinite(point.loss) else None, "bad": point.bad}
        for point in points
    ]
