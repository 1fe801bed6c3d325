"""What tends to go wrong, told from a plan before a run: pure, from recipe and plan to sentences.

A sentence names the stages that it is about, and what to do. Stages with the same trouble share one sentence, which
describes the worst of them, so that a pacing function of hundreds of stages is no flood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ds_pretrain.config import Recipe, Schedule
from ds_pretrain.config.optimization import TYPES_WITHOUT_FLOOR
from ds_pretrain.curriculum import Plan
from ds_pretrain.errors import Problem, RecipeError
from ds_pretrain.schedules import rate_warnings
from ds_pretrain.schedules.schedule import LearningRateSchedule
from ds_pretrain.schedules.troubles import Trouble, sentence

FEWEST_STEPS = 50
LARGEST_IMBALANCE = 2.0
LARGEST_FROM_RULE = 2.0


def plan_warnings(recipe: Recipe, plan: Plan) -> tuple[str, ...]:
    """Sentences on what tends to go wrong with a plan.

    Args:
        recipe: a checked recipe.
        plan: its resolved stages.

    Returns:
        One sentence a kind of trouble; the last ones may be no trouble but a ``note: …``.

    Raises:
        RecipeError: the schedule's own function cannot be used.
    """
    schedule = LearningRateSchedule(plan, recipe.schedule)

    def sentences(checks: Sequence[_Check]) -> list[str]:
        found = (list(check(recipe, plan, schedule)) for check in checks)
        return [sentence(troubles) for troubles in found if troubles]

    return (*sentences(_CHECKS), *(f"note: {text}" for text in (*sentences(_NOTES), *_unused_floor(recipe.schedule))))


def rate_problems(recipe: Recipe, plan: Plan) -> Sequence[Problem]:
    """What makes the learning rates of a plan useless: all of them are zero.

    Args:
        recipe: a checked recipe.
        plan: its resolved stages.

    Returns:
        That problem; nothing where the schedule's own function cannot be used, which is a problem of its own.
    """
    try:
        schedule = LearningRateSchedule(plan, recipe.schedule)
    except RecipeError:
        return ()
    if any(schedule.highest(stage) > 0.0 for stage in plan.stages):
        return ()
    if all(stage.peak_lr == 0.0 for stage in plan.stages):
        return [
            Problem(
                "curriculum.stages",
                "found lr_multiplier 0 in every stage, so that nothing would be learned; give one of them more than 0",
            )
        ]
    return [
        Problem(
            "schedule.type",
            f"found {recipe.schedule.type}, whose learning rate is 0 at every step, so that nothing would be learned; "
            "give min_lr_ratio, or another type",
        )
    ]


def _filling_warmups(recipe: Recipe, plan: Plan, _: LearningRateSchedule) -> Iterator[Trouble]:
    """A warmup that takes the whole stage, as asked or cut.

    Pacing's small stages may be led so where one curve runs through all of them, but not where each draws its own.
    """
    if recipe.curriculum.pacing is not None and recipe.schedule.scope == "run":
        return
    for stage in plan.stages:
        if stage.warmup_steps == stage.num_steps > 1:
            yield Trouble(
                stage.index,
                stage.num_steps,
                f"the warmup takes all of the stage's {stage.num_steps} steps, so that its schedule never starts; "
                "shorten schedule.warmup, or give the stage its own warmup_steps",
            )


def _idle_stages(_: Recipe, plan: Plan, __: LearningRateSchedule) -> Iterator[Trouble]:
    """Stages that read their text and learn nothing from it."""
    for stage in plan.stages:
        if stage.peak_lr == 0.0:
            tokens = stage.end_tokens - stage.start_tokens
            yield Trouble(
                stage.index,
                tokens,
                f"the learning rate is 0, so that its {tokens:,} tokens are read and not learned from; "
                "give lr_multiplier more than 0, or leave the stage out",
            )


def _short_stages(recipe: Recipe, plan: Plan, _: LearningRateSchedule) -> Iterator[Trouble]:
    if recipe.curriculum.pacing is not None:
        return
    for stage in plan.stages:
        if stage.num_steps < FEWEST_STEPS:
            yield Trouble(
                stage.index,
                -stage.num_steps,
                f"{stage.num_steps} steps are few for a stage ({FEWEST_STEPS} or more); join it with its neighbour",
            )


def _unbalanced(_: Recipe, plan: Plan, __: LearningRateSchedule) -> Iterator[Trouble]:
    """Micro batches of very unlike sizes: the small ones leave the device idle, the large ones decide its memory."""
    tokens = {stage.index: stage.micro_batch_size * stage.blocks_per_row * stage.seq_len for stage in plan.stages}
    largest = max(tokens.values())
    for index, held in tokens.items():
        if largest > LARGEST_IMBALANCE * held:
            yield Trouble(
                index,
                largest / held,
                f"a micro batch holds {held:,} tokens, where the largest of the run holds {largest:,}; "
                "raise batch_size, or let micro_batch_size be auto",
            )


def _far_from_rule(recipe: Recipe, plan: Plan, _: LearningRateSchedule) -> Iterator[Trouble]:
    """Multipliers that a recipe states itself and that the square-root rule would not give."""
    stated = [stage for stage in recipe.curriculum.stages or () if stage.lr_multiplier is not None]
    if not stated:
        return
    for stage in plan.stages:
        if stage.lr_multiplier <= 0.0:
            continue
        ratio = max(stage.lr_multiplier / stage.formula_multiplier, stage.formula_multiplier / stage.lr_multiplier)
        if ratio > LARGEST_FROM_RULE:
            yield Trouble(
                stage.index,
                ratio,
                f"lr_multiplier is {stage.lr_multiplier:.3g}, where the rule "
                f"sqrt(batch / 32) x min(2048 / len, 4) gives {stage.formula_multiplier:.3g}",
            )


def _unused_floor(schedule: Schedule) -> Iterator[str]:
    """No problem, since a recipe's floor stays there where another file or an override changes the type."""
    ratio = schedule.min_lr_ratio
    if schedule.type in TYPES_WITHOUT_FLOOR and ratio != Schedule.model_fields["min_lr_ratio"].get_default():
        yield f"schedule.min_lr_ratio ({ratio:g}) does nothing for type {schedule.type}"


_Check = Callable[[Recipe, Plan, LearningRateSchedule], Iterator[Trouble]]
_CHECKS: tuple[_Check, ...] = (
    rate_warnings.jumps,
    _idle_stages,
    _filling_warmups,
    rate_warnings.short_warmup,
    _short_stages,
    _unbalanced,
    rate_warnings.unreached_floor,
    rate_warnings.lengths_of_steps,
)
_NOTES: tuple[_Check, ...] = (rate_warnings.restarts, _far_from_rule)
