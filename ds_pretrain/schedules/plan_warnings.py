"""What tends to go wrong, told from a plan before a run: pure, from recipe and plan to sentences.

A sentence names the stages that it is about, and what to do. Stages with the same trouble share one sentence, which
describes the worst of them, so that a pacing function of hundreds of stages is no flood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ds_pretrain.config import Recipe
from ds_pretrain.config.optimization import RISING_TYPES
from ds_pretrain.curriculum import Plan
from ds_pretrain.schedules.schedule import LearningRateSchedule

LARGEST_JUMP = 4.0
FEWEST_STEPS = 50
LARGEST_IMBALANCE = 2.0
LARGEST_FROM_RULE = 2.0
# of the way from peak to floor that may be left at the end
_LEFT = 0.05
# their ends are wherever their parameters put them
_ENDS_TO_REACH = frozenset({"step", "multistep", "exponential", "inverse_sqrt", "cosine_restarts"})
_ADAMS = frozenset({"adamw", "adam", "lamb", "schedule_free_adamw"})


@dataclass(frozen=True)
class _Trouble:
    """Something wrong with a stage.

    Args:
        stage: its index.
        size: how bad it is; only the worst is described.
        text: what is wrong, after "stage 3: " or "stages 3 to 5: ".
    """

    stage: int
    size: float
    text: str


def plan_warnings(recipe: Recipe, plan: Plan) -> tuple[str, ...]:
    """Sentences on what tends to go wrong with a plan.

    Args:
        recipe: a checked recipe.
        plan: its resolved stages.

    Returns:
        One sentence a kind of trouble; the last may be no trouble but a ``note: …``.

    Raises:
        RecipeError: the schedule's own function cannot be used.
    """
    schedule = LearningRateSchedule(plan, recipe.schedule)
    found = (list(check(recipe, plan, schedule)) for check in _CHECKS)
    note = [f"note: {_sentence(stated)}"] if (stated := list(_far_from_rule(recipe, plan))) else []
    return (*(_sentence(troubles) for troubles in found if troubles), *note)


def _jumps(_: Recipe, plan: Plan, __: LearningRateSchedule) -> Iterator[_Trouble]:
    """A stage that multiplies the curve very differently; what the curve itself does, such as a restart, is meant."""
    for before, stage in pairwise(plan.stages):
        if min(before.peak_lr, stage.peak_lr) <= 0.0:
            continue
        ratio = max(stage.peak_lr / before.peak_lr, before.peak_lr / stage.peak_lr)
        if ratio > LARGEST_JUMP:
            yield _Trouble(
                stage.index,
                ratio,
                f"the peak learning rate jumps {ratio:.1f} times, from {before.peak_lr:.2g} to {stage.peak_lr:.2g}; "
                "put a stage between, or bring the multipliers closer together",
            )


def _filling_warmups(recipe: Recipe, plan: Plan, _: LearningRateSchedule) -> Iterator[_Trouble]:
    """A warmup that takes the whole stage, as asked or cut; pacing's small stages are meant to be led so."""
    if recipe.curriculum.pacing is not None:
        return
    for stage in plan.stages:
        if stage.warmup_steps == stage.num_steps > 1:
            yield _Trouble(
                stage.index,
                stage.num_steps,
                f"the warmup takes all of the stage's {stage.num_steps} steps, so that its schedule never starts; "
                "shorten schedule.warmup, or give the stage its own warmup_steps",
            )


def _short_warmup(recipe: Recipe, plan: Plan, _: LearningRateSchedule) -> Iterator[_Trouble]:
    """A first warmup over which Adam's second moment cannot settle; in later stages it has long settled."""
    first = plan.stages[0]
    if recipe.optimizer.type not in _ADAMS or recipe.schedule.type in RISING_TYPES:
        return
    memory = math.ceil(1.0 / (1.0 - recipe.optimizer.betas[1]) - 1e-9)
    if first.warmup_steps < memory:
        yield _Trouble(
            0,
            1.0,
            f"the warmup of {first.warmup_steps} steps is shorter than the {memory} steps, 1 / (1 - beta2), over which "
            "Adam averages squared gradients; lengthen schedule.warmup",
        )


def _short_stages(recipe: Recipe, plan: Plan, _: LearningRateSchedule) -> Iterator[_Trouble]:
    if recipe.curriculum.pacing is not None:
        return
    for stage in plan.stages:
        if stage.num_steps < FEWEST_STEPS:
            yield _Trouble(
                stage.index,
                -stage.num_steps,
                f"{stage.num_steps} steps are few for a stage ({FEWEST_STEPS} or more); join it with its neighbour",
            )


def _unbalanced(_: Recipe, plan: Plan, __: LearningRateSchedule) -> Iterator[_Trouble]:
    """Micro batches of very unlike sizes: the small ones leave the device idle, the large ones decide its memory."""
    tokens = {stage.index: stage.micro_batch_size * stage.blocks_per_row * stage.seq_len for stage in plan.stages}
    largest = max(tokens.values())
    for index, held in tokens.items():
        if largest > LARGEST_IMBALANCE * held:
            yield _Trouble(
                index,
                largest / held,
                f"a micro batch holds {held:,} tokens, where the largest of the run holds {largest:,}; "
                "raise batch_size, or let micro_batch_size be auto",
            )


def _unreached_floor(recipe: Recipe, plan: Plan, schedule: LearningRateSchedule) -> Iterator[_Trouble]:
    if recipe.schedule.type not in _ENDS_TO_REACH:
        return
    ends = plan.stages if recipe.schedule.scope == "stage" else plan.stages[-1:]
    for stage in ends:
        last = stage.end_step - 1
        share = schedule.lr(last, stage.tokens_before(last)) / stage.peak_lr if stage.peak_lr > 0 else 0.0
        if share > recipe.schedule.min_lr_ratio + _LEFT:
            yield _Trouble(
                stage.index,
                share,
                f"schedule {recipe.schedule.type} ends at {share:.0%} of the peak, above its floor min_lr_ratio "
                f"({recipe.schedule.min_lr_ratio:.0%}); change its parameters if it should get there",
            )


def _far_from_rule(recipe: Recipe, plan: Plan) -> Iterator[_Trouble]:
    """Multipliers that a recipe states itself and that the square-root rule would not give."""
    stated = [stage for stage in recipe.curriculum.stages or () if stage.lr_multiplier is not None]
    if not stated:
        return
    for stage in plan.stages:
        if stage.lr_multiplier <= 0.0:
            continue
        ratio = max(stage.lr_multiplier / stage.formula_multiplier, stage.formula_multiplier / stage.lr_multiplier)
        if ratio > LARGEST_FROM_RULE:
            yield _Trouble(
                stage.index,
                ratio,
                f"lr_multiplier is {stage.lr_multiplier:.3g}, where the rule "
                f"sqrt(batch / 32) x min(2048 / len, 4) gives {stage.formula_multiplier:.3g}",
            )


_CHECKS: tuple[Callable[[Recipe, Plan, LearningRateSchedule], Iterator[_Trouble]], ...] = (
    _jumps,
    _filling_warmups,
    _short_warmup,
    _short_stages,
    _unbalanced,
    _unreached_floor,
)


def _sentence(troubles: Sequence[_Trouble]) -> str:
    worst = max(troubles, key=lambda trouble: trouble.size)
    if len(troubles) == 1:
        return f"stage {worst.stage}: {worst.text}"
    return f"stages {_spans([trouble.stage for trouble in troubles])}, worst in stage {worst.stage}: {worst.text}"


def _spans(stages: Sequence[int]) -> str:
    """Indices as a reader says them: ``0, 3 to 5``."""
    rows: list[list[int]] = []
    for stage in stages:
        if rows and stage == rows[-1][-1] + 1:
            rows[-1].append(stage)
        else:
            rows.append([stage])
    return ", ".join(f"{row[0]} to {row[-1]}" if len(row) > 1 else str(row[0]) for row in rows)
