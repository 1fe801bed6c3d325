"""The planned learning rate as a small curve for the terminal."""

from __future__ import annotations

import numpy as np
import plotext

from ds_pretrain.curriculum import Plan
from ds_pretrain.schedules import LearningRateSchedule

HEIGHT = 10
_MOST_COLUMNS = 100
# braille gives two points a column
_POINTS = 2 * _MOST_COLUMNS


def lr_curve(plan: Plan, schedule: LearningRateSchedule, columns: int) -> str:
    """Draws the learning rate over the steps of a plan, with the starts of its stages as ticks.

    Args:
        plan: the resolved stages.
        schedule: their learning rates.
        columns: width of the terminal, in characters.

    Returns:
        Lines of plain text, without colours.
    """
    spread = range(0, plan.total_steps, max(1, plan.total_steps // _POINTS))
    ends = [stage.end_step - 1 for stage in plan.stages]
    steps = sorted({*spread, *(stage.start_step for stage in plan.stages), *ends})
    rates = schedule.rates(np.array(steps)).tolist()
    starts = [stage.start_step for stage in plan.stages]
    ticks = [*(starts if len(starts) <= 8 else starts[:1]), plan.total_steps]
    peak = max(rates)
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(min(columns, _MOST_COLUMNS), HEIGHT)
    plotext.plot(steps, rates, marker="braille")
    plotext.ylim(0, peak)
    plotext.yticks([0, peak / 2, peak], ["0", f"{peak / 2:.2g}", f"{peak:.3g}"])
    plotext.xticks(ticks, [f"{tick:,}" for tick in ticks])
    plotext.frame(False)
    plotext.title("learning rate over steps")
    drawn: str = plotext.uncolorize(plotext.build())
    return "\n".join(line.rstrip() for line in drawn.splitlines())
