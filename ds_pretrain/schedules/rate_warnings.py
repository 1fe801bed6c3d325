"""What tends to go wrong with a plan's learning rates: checks of boundaries, warmups, ends and units. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ds_pretrain.config import Recipe, Schedule
from ds_pretrain.config.optimization import RISING_TYPES
from ds_pretrain.curriculum import Plan, StagePlan
from ds_pretrain.curriculum.unfreezing import unfreezes
from ds_pretrain.schedules.schedule import LearningRateSchedule
from ds_pretrain.schedules.troubles import Trouble

LARGEST_JUMP = 4.0
# of the way from peak to floor that may be left at the end
_LEFT = 0.05
# their ends are wherever their parameters, or their authors, put them
_ENDS_TO_REACH = frozenset(
    {"step", "multistep", "exponential", "inverse_sqrt", "cosine_restarts", "triangular", "triangular2", "exp_range",
     "custom"}
)  # fmt: skip
# Muon leaves embeddings, norms and head to AdamW
_ADAMS = frozenset({"adamw", "adam", "lamb", "muon"})


@dataclass(frozen=True)
class _Boundary:
    """What the planned learning rate does where a stage begins.

    Args:
        stage: the stage that begins.
        before: rate of the last step before it.
        after: rate at which its warmup ends.
        peaks: its peak over that of the stage before; 0 where one of them is 0.
    """

    stage: StagePlan
    before: float
    after: float
    peaks: float

    @property
    def ratio(self) -> float:
        """Larger rate over smaller; 1 where one of them is zero, since a rate from zero has no ratio."""
        if min(self.before, self.after) <= 0.0:
            return 1.0
        return max(self.after / self.before, self.before / self.after)

    @property
    def is_of_the_curve(self) -> bool:
        """Whether the curve alone moves the rate so far, the multipliers being near each other."""
        return 1.0 / LARGEST_JUMP <= self.peaks <= LARGEST_JUMP


def _boundaries(plan: Plan, schedule: LearningRateSchedule) -> list[_Boundary]:
    pairs = list(pairwise(plan.stages))
    steps = [(old.end_step - 1, min(stage.start_step + stage.warmup_steps, stage.end_step - 1)) for old, stage in pairs]
    rates = schedule.rates(np.array(steps, dtype=np.int64).ravel()).reshape(-1, 2).tolist()
    return [
        _Boundary(stage, before, after, stage.peak_lr / old.peak_lr if old.peak_lr > 0.0 else 0.0)
        for (old, stage), (before, after) in zip(pairs, rates, strict=True)
    ]


def _is_led(recipe: Recipe, stage: StagePlan) -> bool:
    """Whether a curve that starts anew may do so: by its nature, or by a warmup over which Adam settles."""
    by_nature = recipe.schedule.type in RISING_TYPES or recipe.schedule.type == "cosine_restarts"
    return by_nature or stage.warmup_steps >= _adam_memory(recipe)


def jumps(recipe: Recipe, plan: Plan, schedule: LearningRateSchedule) -> Iterator[Trouble]:
    """A boundary where the rate that the run really has is multiplied by much: by multipliers, or by a bare restart.

    What the curve itself does is meant where it falls, and where it rises under a warmup that is long enough.
    """
    for boundary in _boundaries(plan, schedule):
        rises = boundary.after > boundary.before
        meant = boundary.is_of_the_curve and (not rises or _is_led(recipe, boundary.stage))
        if boundary.ratio > LARGEST_JUMP and not meant:
            yield Trouble(
                boundary.stage.index,
                boundary.ratio,
                f"the learning rate jumps {boundary.ratio:.1f} times, from {boundary.before:.2g} to "
                f"{boundary.after:.2g} {_way(boundary.stage)}; put a stage between, bring the multipliers closer "
                "together, or lengthen the warmup",
            )


def restarts(recipe: Recipe, plan: Plan, schedule: LearningRateSchedule) -> Iterator[Trouble]:
    """A rise as large as a jump, by a curve that starts anew: meant, but good to know."""
    for boundary in _boundaries(plan, schedule):
        meant = boundary.is_of_the_curve and boundary.after > boundary.before and _is_led(recipe, boundary.stage)
        if boundary.ratio > LARGEST_JUMP and meant:
            yield Trouble(
                boundary.stage.index,
                boundary.ratio,
                f"the schedule starts anew: the learning rate goes from {boundary.before:.2g} to "
                f"{boundary.after:.2g}, {boundary.ratio:.1f} times, {_way(boundary.stage)}",
            )


def _way(stage: StagePlan) -> str:
    return f"over {stage.warmup_steps} steps of warmup" if stage.warmup_steps else "without a warmup"


def short_warmup(recipe: Recipe, plan: Plan, schedule: LearningRateSchedule) -> Iterator[Trouble]:
    """A warmup over which Adam's second moment cannot settle.

    That of the first stage, whose moments begin at zero, and those of stages that unfreeze layers, whose moments do.
    Of other stages only a warmup that leads up: the moments it meets describe the gradients of the stage before.
    Without a warmup such a stage asks for nothing to settle; how far its rate jumps is another check.
    """
    if recipe.optimizer.type not in _ADAMS:
        return
    memory = _adam_memory(recipe)
    rising = recipe.schedule.type in RISING_TYPES
    reasons = {} if rising else {0: ""}
    if not rising and recipe.curriculum.pacing is None:
        for boundary in _boundaries(plan, schedule):
            if boundary.stage.warmup_steps and boundary.after > boundary.before:
                reasons[boundary.stage.index] = ", still those of the stage before"
    for old, stage in pairwise(plan.stages):
        if unfreezes(old, stage):
            reasons[stage.index] = ", which begin anew for the layers that it unfreezes"
    for index, reason in reasons.items():
        steps = plan.stages[index].warmup_steps
        if steps < memory:
            yield Trouble(
                index,
                -steps,
                f"the warmup of {steps} steps is shorter than the {memory} steps, 1 / (1 - beta2), over which Adam "
                f"averages squared gradients{reason}; lengthen schedule.warmup, or the stage's warmup_steps",
            )


def _adam_memory(recipe: Recipe) -> int:
    """Steps over which Adam's second moment averages, 1 / (1 - beta2)."""
    return math.ceil(1.0 / (1.0 - recipe.optimizer.betas[1]) - 1e-9)


def unreached_floor(recipe: Recipe, plan: Plan, schedule: LearningRateSchedule) -> Iterator[Trouble]:
    if recipe.schedule.type not in _ENDS_TO_REACH:
        return
    ends = plan.stages if recipe.schedule.scope == "stage" else plan.stages[-1:]
    for stage in ends:
        if stage.peak_lr <= 0.0:
            continue
        last = stage.end_step - 1
        before, share = schedule.rates(np.array([max(last - 1, stage.start_step), last])) / stage.peak_lr
        # a curve of few steps ends one step before its end
        if share - max(before - share, 0.0) > recipe.schedule.min_lr_ratio + _LEFT:
            yield Trouble(
                stage.index,
                share,
                f"schedule {recipe.schedule.type} ends at {share:.0%} of the peak, above its floor min_lr_ratio "
                f"({recipe.schedule.min_lr_ratio:.0%}); change its parameters if it should get there",
            )


def lengths_of_steps(recipe: Recipe, plan: Plan, _: LearningRateSchedule) -> Iterator[Trouble]:
    """A length in tokens that is shorter than a step, as one is that was meant in steps."""
    if recipe.schedule.by == "steps" or not (lengths := _stated_lengths(recipe.schedule)):
        return
    key = min(lengths, key=lambda key: lengths[key])
    for stage in plan.stages:
        if lengths[key] < stage.tokens_per_step:
            yield Trouble(
                stage.index,
                stage.tokens_per_step,
                f"schedule.{key} makes {lengths[key]:,.4g} tokens, less than one step of {stage.tokens_per_step:,} "
                "tokens; give schedule.by: steps if steps are meant, else a length in tokens",
            )


def _stated_lengths(schedule: Schedule) -> dict[str, float]:
    """Lengths that a recipe states itself, by key, in the unit of ``schedule.by``."""
    keys = ("step_size", "decay_every", "t_0", "step_size_up", "step_size_down", "timescale")
    lengths = {key: value for key in keys if (value := getattr(schedule, key)) is not None}
    if schedule.milestones:
        lengths["milestones"] = min(schedule.milestones)
    if schedule.k is not None:
        lengths["k"] = 1.0 / schedule.k  # in which the rate falls by e
    if schedule.type == "exp_range" and schedule.gamma is not None and schedule.gamma < 1.0:
        lengths["gamma"] = -1.0 / math.log(schedule.gamma)
    return lengths
