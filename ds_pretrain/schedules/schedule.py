"""The learning rate of every step of a plan, as a pure function of (step, tokens).

``scope: stage`` restarts the curve in every stage, between the stage's peak and its floor. ``scope: run`` is one
curve over the whole run, from the end of the first stage's warmup, times each stage's multiplier; a later warmup
aims at the value that the curve will have where that warmup ends, so that the two meet. The curve's time is counted
in tokens, or in optimizer steps with ``by: steps``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ds_pretrain.config import Schedule
from ds_pretrain.curriculum.plan import Plan, StagePlan
from ds_pretrain.schedules.curve import Curve, Span, curve, one_cycle
from ds_pretrain.schedules.shapes import Values
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
            self._targets.append(float(self._after_warmup(stage, warm, stage.tokens_before(warm))))
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
        return float(self._rates(self._plan.stage_at(step), np.array([step]), np.array([tokens]))[0])

    def rates(self, steps: NDArray[np.int64]) -> NDArray[np.float64]:
        """The planned learning rates of many steps at once, to the bit those of ``lr``.

        Args:
            steps: optimizer steps, from 0, in ascending order; each at the tokens that the plan has before it.

        Returns:
            A rate for each step.
        """
        found = np.empty(len(steps))
        for stage in self._plan.stages:
            part = slice(*np.searchsorted(steps, (stage.start_step, stage.end_step)))
            here = steps[part]
            if not len(here):
                continue
            tokens = stage.start_tokens + (here - stage.start_step) * stage.tokens_per_step
            found[part] = self._rates(stage, here, tokens)
        return found

    def highest(self, stage: StagePlan) -> float:
        """The highest rate that any step of a stage uses, its warmup included."""
        return float(self.rates(np.arange(stage.start_step, stage.end_step)).max())

    @property
    def moves_momentum(self) -> bool:
        """Whether the schedule moves the momentum too, instead of leaving it to the optimizer."""
        return self._schedule.type == "one_cycle" and self._schedule.cycle_momentum

    def momentum(self, step: int, tokens: int) -> float | None:
        """The planned momentum, or Adam's first beta; None where the optimizer keeps its own.

        Args:
            step, tokens: as for ``lr``.
        """
        if not self.moves_momentum:
            return None
        schedule = self._schedule
        start, span = self._spans[self._plan.stage_at(step).index]
        t = np.maximum(self._clock(step, tokens) - start, 0.0)
        return float(one_cycle(schedule, span).momentum(t, schedule.base_momentum, schedule.max_momentum))

    def __iter__(self) -> Iterator[ScheduledStep]:
        """Every step of the plan, in order."""
        for stage in self._plan.stages:
            steps = np.arange(stage.start_step, stage.end_step)
            for step, lr in zip(steps.tolist(), self.rates(steps).tolist(), strict=True):
                yield ScheduledStep(step, stage.tokens_before(step), stage.index, lr)

    def _rates(self, stage: StagePlan, steps: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Rates of some steps of a stage, ascending: those of the warmup first."""
        k = steps - stage.start_step
        warm = int(np.searchsorted(k, stage.warmup_steps))
        shape, entry, target = self._schedule.warmup.shape, self._entries[stage.index], self._targets[stage.index]
        found = np.empty(len(steps))
        if warm:
            found[:warm] = warmup_lr(shape, entry, target, k[:warm], stage.warmup_steps)
        if warm < len(steps):
            found[warm:] = self._after_warmup(stage, steps[warm:], tokens[warm:])
        return found

    def _after_warmup(self, stage: StagePlan, step: Values, tokens: Values) -> Values:
        start, span = self._spans[stage.index]
        t = np.clip(self._clock(step, tokens) - start, 0.0, span.length)
        return stage.peak_lr * self._curves[stage.index](t)

    def _clock(self, step: Values, tokens: Values) -> Values:
        return step if self._by_steps else tokens

    def _time(self, stage: StagePlan, step: int) -> float:
        return float(step if self._by_steps else stage.tokens_before(step))

    def _span(self, first: StagePlan, last: StagePlan) -> tuple[float, Span]:
        """From the end of the first stage's warmup to the end of the last stage: where it starts, and its lengths."""
        start = self._time(first, first.start_step + first.warmup_steps)
        length = self._time(last, last.end_step) - start
        last_step = 1.0 if self._by_steps else float(last.tokens_per_step)
        return start, Span(length, last_step, start - self._time(first, first.start_step))
