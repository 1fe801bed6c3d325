"""The plan as a picture: learning rate, sequence length, batch size and clip over the tokens of the run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_pretrain.curriculum import Plan, StagePlan
from ds_pretrain.curriculum.unfreezing import fresh_share
from ds_pretrain.errors import UserError
from ds_pretrain.schedules import LearningRateSchedule

_POINTS = 2000
_SUFFIXES = (".png", ".svg", ".pdf")


def plot_plan(
    plan: Plan, schedule: LearningRateSchedule, groups: Sequence[dict[str, Any]], title: str, path: Path
) -> None:
    """Draws a plan, 1200 x 800 pixels as PNG.

    Args:
        plan: the resolved stages.
        schedule: their learning rates.
        groups: what ``group_rows`` tells of the parameter groups, each drawn where it is trained; none for one curve.
        title: name of the run.
        path: where to, by its ending as PNG, SVG or PDF.

    Raises:
        UserError: another ending.
    """
    if path.suffix not in _SUFFIXES:
        raise UserError(f"--plot: found {str(path)!r}; allowed: a file that ends in {', '.join(_SUFFIXES)}")
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    rate, length, batch, clip = figure.subplots(4, 1, sharex=True, height_ratios=[3, 1, 1, 1])
    steps = _shown_steps(plan)
    tokens = [plan.tokens_before(step) for step in steps.tolist()]
    rates = schedule.rates(steps)
    curves = _curves(groups, plan, steps)
    shades = colormaps["viridis"](np.linspace(0.0, 0.9, len(curves)))
    for shade, (label, factors) in zip(shades, curves.items(), strict=True):
        rate.plot(tokens, rates * factors, color=tuple(shade) if groups else "tab:blue", label=label)
    if groups:
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
    # as far again as the last stage, so that ticks beyond the end do not pile up at it
    edges.append(2 * edges[-1] - edges[-2])
    corners.append(2 * corners[-1] - corners[-2])
    above = rate.secondary_xaxis(
        "top", functions=(lambda at: np.interp(at, edges, corners), lambda step: np.interp(step, corners, edges))
    )
    above.xaxis.set_major_formatter(EngFormatter(sep=""))
    above.set_xlabel("steps")
    figure.savefig(path)


def _curves(groups: Sequence[dict[str, Any]], plan: Plan, steps: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Factors on the learning rate at some steps, by label; groups that always have the same ones share a label.

    A factor is nan where the stage freezes the group. What a stage unfreezes warms up from zero, apart from what was
    trained before, as the optimizer's groups do.
    """
    if not groups:
        return {"": np.ones(len(steps))}
    sharing: dict[tuple[float, int, tuple[int, ...]], list[str]] = {}
    for row in groups:
        name = row["name"].removesuffix(".decay").removesuffix(".no_decay").removesuffix(".frozen")
        stages_since: dict[int, list[int]] = {}
        for stage, since in enumerate(row["trained_since"]):
            for first in since:
                stages_since.setdefault(first, []).append(stage)
        for first, trained in stages_since.items() or [(0, [])]:
            sharing.setdefault((row["multiplier"], first, tuple(trained)), []).append(name)
    curves = {}
    for (multiplier, since, stages), names in sorted(sharing.items(), key=lambda item: (-item[0][0], item[0][1:])):
        different = list(dict.fromkeys(names))
        shown = ", ".join(different[:3]) + (f" and {len(different) - 3} more" if len(different) > 3 else "")
        how = f"x {multiplier:.3g}{f', from stage {since}' if since else ''}" if stages else "frozen"
        curves[f"{shown} ({how})"] = multiplier * _shares(plan, since, stages, steps)
    return curves


def _shares(plan: Plan, since: int, stages: Collection[int], steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 in some stages, rising to it in the first of them, nan in the others."""
    shares = np.full(len(steps), np.nan)
    for index, step in enumerate(steps.tolist()):
        stage = plan.stage_at(step)
        if stage.index in stages:
            shares[index] = fresh_share(stage, step) if stage.index == since else 1.0
    return shares


def _shown_steps(plan: Plan) -> NDArray[np.int64]:
    """Evenly spread steps, and every stage's first, last and end of warmup, which must not be missed."""
    spread = range(0, plan.total_steps, max(1, plan.total_steps // _POINTS))
    corners = {
        step
        for stage in plan.stages
        for step in (stage.start_step, stage.start_step + stage.warmup_steps, stage.end_step - 1)
        if step < plan.total_steps
    }
    return np.array(sorted(corners.union(spread)))


def _labelled(plan: Plan) -> list[StagePlan | None]:
    """The stages that are wide enough for a number."""
    return [
        stage if (stage.end_tokens - stage.start_tokens) / plan.total_tokens > 0.04 else None for stage in plan.stages
    ]
