"""The plan as a picture: learning rate, sequence length, batch size and clip over the tokens of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ds_pretrain.curriculum import Plan, StagePlan
from ds_pretrain.errors import UserError
from ds_pretrain.schedules import LearningRateSchedule

_POINTS = 2000
_SUFFIXES = (".png", ".svg", ".pdf")


def plot_plan(
    plan: Plan, schedule: LearningRateSchedule, multipliers: Mapping[str, float], title: str, path: Path
) -> None:
    """Draws a plan, 1200 x 800 pixels as PNG.

    Args:
        plan: the resolved stages.
        schedule: their learning rates.
        multipliers: factor of every parameter group on the learning rate, by name; none for a single curve.
        title: name of the run.
        path: where to, by its ending as PNG, SVG or PDF.

    Raises:
        UserError: another ending.
    """
    if path.suffix not in _SUFFIXES:
        raise UserError(f"--plot: found {str(path)!r}; allowed: a file that ends in {', '.join(_SUFFIXES)}")
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    rate, length, batch, clip = figure.subplots(4, 1, sharex=True, height_ratios=[3, 1, 1, 1])
    steps = _shown_steps(plan)
    tokens = [plan.tokens_before(step) for step in steps]
    rates = [schedule.lr(step, at) for step, at in zip(steps, tokens, strict=True)]
    for label, multiplier, color in _curves(multipliers):
        rate.plot(tokens, [multiplier * value for value in rates], color=color, label=label)
    if multipliers:
        rate.legend(fontsize="small", loc="upper right")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.set_title(f"{title}: {plan.total_steps:,} steps, {plan.total_tokens:,} tokens", loc="left")
    rows = (
        (length, "sequence length", [stage.seq_len for stage in plan.stages]),
        (batch, "batch size", [stage.batch_size for stage in plan.stages]),
        (clip, "gradient clip", [stage.grad_clip for stage in plan.stages]),
    )
    edges = [stage.start_tokens for stage in plan.stages] + [plan.total_tokens]
    for axes, name, values in rows:
        axes.stairs(values, edges, baseline=None, color="tab:orange", linewidth=2)
        axes.set_ylabel(name)
        axes.set_ylim(0, 1.25 * max(values))
        for stage, value in zip(_labelled(plan), values, strict=True):
            if stage is not None:
                axes.annotate(f" {value:g}", (stage.start_tokens, value), va="bottom")
    for axes in (rate, length, batch, clip):
        for edge in edges[1:-1]:
            axes.axvline(edge, color="0.8", linewidth=0.8, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    clip.set_xlim(0, plan.total_tokens)
    clip.xaxis.set_major_formatter(EngFormatter(sep=""))
    clip.set_xlabel("tokens")
    corners = [stage.start_step for stage in plan.stages] + [plan.total_steps]
    above = rate.secondary_xaxis(
        "top", functions=(lambda at: np.interp(at, edges, corners), lambda step: np.interp(step, corners, edges))
    )
    above.xaxis.set_major_formatter(EngFormatter(sep=""))
    above.set_xlabel("steps")
    figure.savefig(path)


def _curves(multipliers: Mapping[str, float]) -> list[tuple[str, float, object]]:
    """Label, factor and colour of every different factor, the groups that share it named together."""
    from matplotlib import colormaps

    names: dict[float, list[str]] = {}
    for name, multiplier in sorted(multipliers.items(), key=lambda item: -item[1]):
        names.setdefault(multiplier, []).append(name.removesuffix(".decay").removesuffix(".no_decay"))
    if not names:
        return [("", 1.0, "tab:blue")]
    shades = colormaps["viridis"](np.linspace(0.0, 0.9, len(names)))
    labelled: list[tuple[str, float, object]] = []
    for shade, (multiplier, sharing) in zip(shades, names.items(), strict=True):
        different = list(dict.fromkeys(sharing))
        shown = ", ".join(different[:3]) + (f" and {len(different) - 3} more" if len(different) > 3 else "")
        labelled.append((f"{shown} (x {multiplier:.3g})", multiplier, tuple(shade)))
    return labelled


def _shown_steps(plan: Plan) -> list[int]:
    """Evenly spread steps, and every stage's first, last and end of warmup, which must not be missed."""
    spread = range(0, plan.total_steps, max(1, plan.total_steps // _POINTS))
    corners = {
        step
        for stage in plan.stages
        for step in (stage.start_step, stage.start_step + stage.warmup_steps, stage.end_step - 1)
        if step < plan.total_steps
    }
    return sorted(corners.union(spread))


def _labelled(plan: Plan) -> list[StagePlan | None]:
    """The stages that are wide enough for a number."""
    return [
        stage if (stage.end_tokens - stage.start_tokens) / plan.total_tokens > 0.04 else None for stage in plan.stages
    ]
