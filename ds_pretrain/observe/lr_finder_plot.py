"""The sweeps of the learning-rate finder as a picture: a panel a length, loss over learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ds_pretrain.curriculum.lr_overlay import Shape
from ds_pretrain.observe.lr_finder_files import LengthResult
from ds_pretrain.schedules.lr_sweep import SweepPoint, smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKS = (
    ("steepest", "tab:green", ":", "steepest descent"),
    ("suggestion", "tab:blue", "-", "suggestion"),
    ("edge", "tab:red", "--", "edge of stability"),
)
_MAX_COLUMNS = 4


def plot_finder(found: Mapping[Shape, LengthResult], title: str, smoothing: float, path: Path) -> None:
    """Draws the sweeps, 1200 x 800 pixels, or higher where there are more than eight lengths.

    Args:
        found: the result of every shape.
        title: name of the run.
        smoothing: share of the past in the smoothed loss.
        path: file to write, a PNG.
    """
    from matplotlib.figure import Figure

    columns = min(_MAX_COLUMNS, math.ceil(math.sqrt(len(found))))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(12, max(8, 4 * rows)), dpi=100, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).reshape(-1)
    for axes in panels[len(found) :]:
        axes.set_visible(False)
    for axes, ((seq_len, batch_size), result) in zip(panels, found.items(), strict=False):
        for points, color, name in ((result.search, "0.55", "search"), (result.climb, "black", "climb")):
            _curve(axes, points, smoothing, color, name)
        for key, color, style, name in _MARKS:
            rate = getattr(result.finding, key)
            axes.axvline(rate, color=color, linestyle=style, linewidth=1.8, label=f"{name} {rate:.2g}")
        bound = result.finding.bound
        axes.set_title(f"length {seq_len}, batch {batch_size}" + ("" if bound == "exact" else f" (edge {bound})"))
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss, nats per token")
        axes.tick_params(labelbottom=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize="small", frameon=False, loc="lower left")
    figure.suptitle(f"{title}: learning-rate sweeps (thin: loss of each step, thick: smoothed)")
    figure.savefig(path)


def _curve(axes: Axes, points: Sequence[SweepPoint], smoothing: float, color: str, name: str) -> None:
    finite = [point for point in points if not point.bad]
    rates, losses = [point.lr for point in finite], [point.loss for point in finite]
    axes.plot(rates, losses, color=color, linewidth=0.6, alpha=0.6)
    axes.plot(rates, smoothed(losses, smoothing), color=color, linewidth=2, label=name)
