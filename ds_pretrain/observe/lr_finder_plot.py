"""What the learning-rate finder found as a picture: a panel a shape, loss over learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ds_pretrain.curriculum.lr_shapes import Shape
from ds_pretrain.observe.lr_finder_files import ShapeResult
from ds_pretrain.schedules.lr_sweep import smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKS = (("suggestion", "tab:blue", "-", "suggestion"), ("edge", "tab:red", "--", "edge: highest rate that trains"))
_MAX_COLUMNS = 4


def plot_finder(found: Mapping[Shape, ShapeResult], title: str, smoothing: float, path: Path) -> None:
    """Draws sweeps and trials, 1200 x 800 pixels, or higher where there are more than eight shapes.

    Args:
        found: the result of every shape.
        title: name of the run.
        smoothing: share of the past in a sweep's smoothed loss.
        path: file to write, a PNG.
    """
    from matplotlib.figure import Figure

    columns = min(_MAX_COLUMNS, math.ceil(math.sqrt(len(found))))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(12, max(8, 4 * rows)), dpi=100, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).reshape(-1)
    for axes in panels[len(found) :]:
        axes.set_visible(False)
    for axes, (shape, result) in zip(panels, found.items(), strict=False):
        _panel(axes, shape, result, smoothing)
    figure.suptitle(f"{title}: short trainings at several peak rates, and the sweep that led to them")
    figure.savefig(path)


def _panel(axes: Axes, shape: Shape, result: ShapeResult, smoothing: float) -> None:
    finding = result.finding
    sweep = [point for point in result.sweep if not point.bad]
    losses = smoothed([point.loss for point in sweep], smoothing)
    axes.plot([point.lr for point in sweep], losses, color="0.65", linewidth=1.2, label="sweep, smoothed")
    trials = sorted((trial.peak_lr, trial.loss) for trial in result.trials if math.isfinite(trial.loss))
    rates, ends = [rate for rate, _ in trials], [loss for _, loss in trials]
    axes.plot(rates, ends, "o", color="black", label="end of a short training")
    better = dict(reversed(trials))  # of two trials at a rate
    axes.plot(list(better), list(better.values()), color="black")
    for key, color, style, name in _MARKS:
        rate = getattr(finding, key)
        axes.axvline(rate, color=color, linestyle=style, linewidth=1.8, label=f"{name}, {rate:.2g}")
    name = "knowing only how often tokens occur" if finding.knows_frequencies else "before training"
    axes.axhline(finding.baseline, color="0.3", linestyle=":", label=f"{name}, {finding.baseline:.2f}")
    axes.set_title(f"length {shape.seq_len}, batch {shape.batch_size}" + _layers(shape) + _bound(finding.edge_bound))
    axes.set_xscale("log")
    axes.set_xlabel("learning rate (of a training: its peak)")
    axes.set_ylabel("loss, nats per token")
    axes.tick_params(labelbottom=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize="small", framealpha=0.9, edgecolor="none", loc="upper right")


def _layers(shape: Shape) -> str:
    return "" if shape.trainable_layers is None else f", top {shape.trainable_layers} layers"


def _bound(bound: str) -> str:
    return "" if bound == "exact" else f" (edge {bound})"
