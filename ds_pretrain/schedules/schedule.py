"""The learning rate of every step of a plan, as a pure function of (step, tokens).

``scope: stage`` restarts the curve in every stage, between the stage's peak and its floor. ``scope: run`` is one
curve over the whole run, from the end of the first stage's warmup, times each stage's multiplier; a later warmup
aims at the value that the curve will have where that warmup ends, so that the two meet. The curve's time is counted
in tokens, or in optimizer steps with ``by: steps``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ds_pretrain.config import Schedule
from ds_pretrain.curriculum.plan import Plan, StagePlan
from ds_pretrain.schedules.curve import Curve, Span, curve, one_cycle
from ds_pretrain.schedules.warmup import warmup_lr


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
        schedule: type, scope, floor and warmup of the curve.

    Raises:
        RecipeError: a function of the user's own cannot be used.
    """

    def __init__(self, plan: Plan, schedule: Schedule) -> None:
        self._plan = plan
        self._schedule = schedule
        self._by_steps = schedule.by == "steps"
        whole_run = self._span(plan.stages[0], plan.stages[-1])
        self._spans: list[tuple[float, Span]] = [
            whole_run if schedule.scope == "run" else self._span(stage, stage) for stage in plan.stages
        ]
        self._curves: list[Curve] = [curve(schedule, span) for _, span in self._spans]
        self._targets: list[float] = []
        self._entries: list[float] = []
        entry = 0.0
        for stage in plan.stages:  # in order: a stage is entered at the planned rate of the step before
            warm = stage.start_step + stage.warmup_steps
            self._targets.append(self._after_warmup(stage, warm, stage.tokens_before(warm)))
            self._entries.append(entry)
            last = stage.end_step - 1
            entry = self.lr(last, stage.tokens_before(last))

    def lr(self, step: int, tokens: int) -> float:
        """The planned learning rate.

        Args:
            step: optimizer step, from 0; it decides the stage and the place in the warmup.
            tokens: tokens trained on before the step; they decide the place on the curve, unless steps do.

        Returns:
            The rate for a group with multiplier 1.
        """
        stage = self._plan.stage_at(step)
        k = step - stage.start_step
        if k < stage.warmup_steps:
            entry, target = self._entries[stage.index], self._targets[stage.index]
            return warmup_lr(self._schedule.warmup.shape, entry, target, k, stage.warmup_steps)
        return self._after_warmup(stage, step, tokens)

    def momentum(self, step: int, tokens: int) -> float | None:
        """The planned momentum, or Adam's first beta; None where the optimizer keeps its own.

        Args:
            step, tokens: as for ``lr``.
        """
        schedule = self._schedule
        if schedule.type != "one_cycle" or not schedule.cycle_momentum:
            return None
        start, span = self._spans[self._plan.stage_at(step).index]
        t = max(self._clock(step, tokens) - start, 0.0)
        return float(one_cycle(schedule, span).momentum(t, schedule.base_momentum, schedule.max_momentum))

    def __iter__(self) -> Iterator[ScheduledStep]:
        """Every step of the plan, in order."""
        for stage in self._plan.stages:
            for step in range(stage.start_step, stage.end_step):
                tokens = stage.tokens_before(step)
                yield ScheduledStep(step, tokens, stage.index, self.lr(step, tokens))

    def _after_warmup(self, stage: StagePlan, step: int, tokens: int) -> float:
        start, span = self._spans[stage.index]
        t = min(max(self._clock(step, tokens) - start, 0.0), span.length)
        return stage.peak_lr * float(self._curves[stage.index](t))

    def _clock(self, step: int, tokens: int) -> float:
        return float(step if self._by_steps else tokens)

    def _span(self, first: StagePlan, last: StagePlan) -> tuple[float, Span]:
        """From the end of the first stage's warmup to the end of the last stage: where it starts, and its lengths."""
        warm = first.start_step + first.warmup_steps
        begin = self._clock(first.start_step, first.start_tokens)
        start = self._clock(warm, first.tokens_before(warm))
        end = self._clock(last.end_step, last.end_tokens)
        return start, Span(end - start, float(1 if self._by_steps else last.tokens_per_step), start - begin)
