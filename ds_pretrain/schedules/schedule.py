"""The learning rate of every step of a plan, as a pure function of (step, tokens).

``scope: stage`` restarts the shape in every stage, between the stage's peak and its floor. ``scope: run`` is one
curve over the whole run, from the end of the first stage's warmup, times each stage's multiplier; a later warmup
aims at the value that the curve will have where that warmup ends, so that the two meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ds_pretrain.config import Schedule
from ds_pretrain.curriculum.plan import Plan, StagePlan
from ds_pretrain.schedules.shapes import SHAPES, between
from ds_pretrain.schedules.warmup import linear_warmup


@dataclass(frozen=True)
class ScheduledStep:
    """A step's place on the schedule.

    Args:
        step: optimizer step, from 0.
        tokens: tokens trained on before the step.
        stage: index of the stage.
        lr: the learning rate that the step uses.
    """

    step: int
    tokens: int
    stage: int
    lr: float


class LearningRateSchedule:
    """Planned learning rate; holds no state that a call changes, so restarts and skipped steps cannot shift it.

    Args:
        plan: the stages, with peaks and warmup lengths.
        schedule: type, scope and floor of the shape.
    """

    def __init__(self, plan: Plan, schedule: Schedule) -> None:
        self._plan = plan
        self._shape = SHAPES[schedule.type]
        self._scope = schedule.scope
        self._min_ratio = schedule.min_lr_ratio
        self._curve_start = _warmup_end(plan.stages[0])
        self._targets: list[float] = []
        self._entries: list[float] = []
        entry = 0.0
        for stage in plan.stages:  # in order: a stage is entered at the planned rate of the step before
            self._targets.append(self._after_warmup(stage, _warmup_end(stage)))
            self._entries.append(entry)
            last = stage.end_step - 1
            entry = self.lr(last, stage.tokens_before(last))

    def lr(self, step: int, tokens: int) -> float:
        """The planned learning rate.

        Args:
            step: optimizer step, from 0; it decides the stage and the place in the warmup.
            tokens: tokens trained on before the step; they decide the place on the shape.

        Returns:
            The rate for a group with multiplier 1.
        """
        stage = self._plan.stage_at(step)
        k = step - stage.start_step
        if k < stage.warmup_steps:
            return linear_warmup(self._entries[stage.index], self._targets[stage.index], k, stage.warmup_steps)
        return self._after_warmup(stage, tokens)

    def __iter__(self) -> Iterator[ScheduledStep]:
        """Every step of the plan, in order."""
        for stage in self._plan.stages:
            for step in range(stage.start_step, stage.end_step):
                tokens = stage.tokens_before(step)
                yield ScheduledStep(step, tokens, stage.index, self.lr(step, tokens))

    def _after_warmup(self, stage: StagePlan, tokens: int) -> float:
        if self._scope == "stage":
            start, end = _warmup_end(stage), stage.end_tokens
        else:
            start, end = self._curve_start, self._plan.total_tokens
        # a warmup that fills its span leaves no room for a shape: its target is the peak
        progress = (tokens - start) / (end - start) if end > start else 0.0
        share = self._shape(min(max(progress, 0.0), 1.0))
        return between(share, stage.peak_lr, self._min_ratio * stage.peak_lr)


def _warmup_end(stage: StagePlan) -> int:
    """Tokens trained on when the stage's warmup is over."""
    return stage.tokens_before(stage.start_step + stage.warmup_steps)
