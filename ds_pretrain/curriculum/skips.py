"""Which data a step reads, once rollbacks have left out the data of some steps.

A rollback goes back from one step to an earlier one, and the steps in between are taken again, with other data: the
data that led to the rollback is not read a second time. Every other step keeps the data that the plan gives it. The
other data comes from beyond the plan's end: the k-th rollback's from where that of the one before it ends. So, whatever
the order of rollbacks and stages, what was read before stays as it was, no position is read twice by the steps that
count, and the positions left out are those of the steps that were taken back, and no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ds_pretrain.curriculum.plan import StagePlan


@dataclass(frozen=True)
class Skip:
    """What one rollback leaves out: the data that the steps it took back have read.

    Args:
        step: first step whose data is left out, from 0: the step that the run went back to.
        steps: how many steps; they may belong to several stages.
    """

    step: int
    steps: int

    def __post_init__(self) -> None:
        if self.step < 0 or self.steps < 1:
            raise ValueError(f"skip: found step {self.step} and {self.steps} steps; at least 0 and 1")

    @property
    def end(self) -> int:
        """The step after the last one."""
        return self.step + self.steps


def reading_at(step: int, skips: Sequence[Skip]) -> int:
    """Which part of the stream a step's rows are taken from.

    Args:
        step: step of the run, from 0.
        skips: in the order of the rollbacks; a later one takes back what an earlier one gave.

    Returns:
        0 for what the plan gives the step's stage; k for what the k-th rollback put in its place.
    """
    return next((k for k in range(len(skips), 0, -1) if skips[k - 1].step <= step < skips[k - 1].end), 0)


def skipped_positions(stages: Sequence[StagePlan], skips: Sequence[Skip]) -> int:
    """Stream positions that rollbacks have left out.

    Args:
        stages: the plan's.
        skips: what the rollbacks left out.
    """
    return sum(_positions(stages, skip.step, skip.end) for skip in skips)


def cursor_before(stages: Sequence[StagePlan], step: int, skips: Sequence[Skip] = ()) -> int:
    """The cursor before a step: stream positions consumed by the steps that count, and those left out.

    Args:
        stages: the plan's.
        step: step of the run, from 0, up to the end of the last stage.
        skips: what all rollbacks so far left out.
    """
    return _planned(stages, step) + skipped_positions(stages, skips)


def _planned(stages: Sequence[StagePlan], step: int) -> int:
    stage = next((stage for stage in stages if step < stage.end_step), stages[-1])
    return stage.cursor_before(step)


def _positions(stages: Sequence[StagePlan], first: int, last: int) -> int:
    return _planned(stages, last) - _planned(stages, first)
