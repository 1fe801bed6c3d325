"""The plan: every stage of a run, exact in steps, tokens and positions, before anything is started.

A plan is immutable and pure: the same recipe and world size give the same plan on a laptop, on every rank and after
every restart. Steps count from 0; ``end_step`` is exclusive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from ds_pretrain.config import Recipe, Warmup
from ds_pretrain.curriculum.batch import BatchSplitError, largest_micro_batch, split_batch
from ds_pretrain.curriculum.scaling import formula_multiplier, grad_clip_by_length, scaled_multiplier
from ds_pretrain.curriculum.stages import StageSpec, exact, stage_specs
from ds_pretrain.errors import Problem, RecipeError

Clock = Literal["step", "tokens", "positions"]
_PLATEAU_NOTE = (
    "note: schedule.type plateau: planned learning rates are those before any reduction; the validation loss of the "
    "run decides on reductions, down to min_lr"
)


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run.

    Args:
        index: position in the plan, from 0.
        start_step, end_step: optimizer steps, from 0, end exclusive.
        start_tokens, end_tokens: tokens trained on before the first step and after the last one.
        start_cursor: stream positions consumed before the first step (rollbacks not counted).
        positions_per_step: how far one step moves the cursor.
        seq_len: tokens per sequence.
        batch_size: sequences per optimizer step over all ranks.
        micro_batch_size: rows per rank and forward pass; a row is a sequence, or in mode ``mask`` several.
        grad_accum_steps: micro batches per rank and optimizer step.
        lr_multiplier: factor on the base learning rate.
        formula_multiplier: what the square-root rule with reference 32 x 2048 and cap 4 would give.
        peak_lr, min_lr: learning rate at the top of the schedule, and its floor.
        warmup_steps: optimizer steps of warmup.
        grad_clip: limit of the gradient's L2 norm.
        trainable_layers: top layers that are trained besides the head; None for everything.
        blocks_per_row: sequences in a row of the stream; 1, except in mode ``mask``.
        stated_at: index in the recipe's list of stages, where it has one.
        data_weights: weight of every training source.
    """

    index: int
    start_step: int
    end_step: int
    start_tokens: int
    end_tokens: int
    start_cursor: int
    positions_per_step: int
    seq_len: int
    batch_size: int
    micro_batch_size: int
    grad_accum_steps: int
    lr_multiplier: float
    formula_multiplier: float
    peak_lr: float
    min_lr: float
    warmup_steps: int
    grad_clip: float
    trainable_layers: int | None = None
    blocks_per_row: int = 1
    stated_at: int = 0
    data_weights: tuple[float, ...] = (1.0,)

    @property
    def num_steps(self) -> int:
        return self.end_step - self.start_step

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step over all ranks: what ranks, micro batches and accumulation divide."""
        return self.batch_size // self.blocks_per_row

    def tokens_before(self, step: int) -> int:
        """Tokens trained on before ``step`` (a step of the run, within this stage or at its end)."""
        return self.start_tokens + (step - self.start_step) * self.tokens_per_step

    def cursor_before(self, step: int) -> int:
        """Stream positions consumed before ``step`` (a step of the run, within this stage or at its end)."""
        return self.start_cursor + (step - self.start_step) * self.positions_per_step


@dataclass(frozen=True)
class Plan:
    """All stages of a run.

    Args:
        stages: in order, without gaps, at least one.
        base_lr: the recipe's ``optimizer.lr``.
        world_size: ranks.
        data_parallel_size: ranks that see different data.
        warnings: what was dropped or changed while planning, as sentences.
    """

    stages: tuple[StagePlan, ...]
    base_lr: float
    world_size: int
    data_parallel_size: int
    warnings: tuple[str, ...] = ()

    @property
    def total_steps(self) -> int:
        return self.stages[-1].end_step

    @property
    def total_tokens(self) -> int:
        return self.stages[-1].end_tokens

    def stage_at(self, step: int) -> StagePlan:
        """The stage that ``step`` (from 0) belongs to; the last one from the end of the run on."""
        for stage in self.stages:
            if step < stage.end_step:
                return stage
        return self.stages[-1]

    def tokens_before(self, step: int) -> int:
        """Tokens trained on before ``step`` (from 0)."""
        return self.stage_at(step).tokens_before(step)


def build_plan(recipe: Recipe, world_size: int = 1, corpus_positions: int | None = None) -> Plan:
    """Resolves a recipe's curriculum for a number of ranks.

    Args:
        recipe: a checked recipe.
        world_size: ranks that train.
        corpus_positions: positions per epoch of the training corpus, all its sources; needed for ``total_epochs`` only.

    Returns:
        The plan.

    Raises:
        RecipeError: batch sizes that do not divide, stages out of order, or epochs of an unknown corpus; all of them.
    """
    plan, problems = _resolve(recipe, world_size, corpus_positions)
    if plan is None:
        raise RecipeError(problems)
    return plan


def plan_problems(recipe: Recipe, world_size: int = 1, corpus_positions: int | None = None) -> Sequence[Problem]:
    """What keeps a recipe from being planned, as ``build_plan`` would raise it; empty where nothing does."""
    return _resolve(recipe, world_size, corpus_positions)[1]


@dataclass(frozen=True)
class _Shape:
    """A stage's batch, resolved for the ranks at hand, and how far one step moves each clock."""

    spec: StageSpec
    batch_size: int
    micro_batch_size: int
    grad_accum_steps: int
    blocks_per_row: int
    step_size: Mapping[Clock, int]


def _resolve(recipe: Recipe, world_size: int, corpus_positions: int | None) -> tuple[Plan | None, tuple[Problem, ...]]:
    shapes, problems = _shapes(recipe, world_size)
    epochs = recipe.curriculum.total_epochs
    if epochs is not None and corpus_positions is None:
        problems.append(
            Problem(
                "curriculum.total_epochs",
                f"found {epochs:g}, but the corpus does not exist yet, so the length of an epoch is not known; "
                "prepare the corpus first, or give total_tokens or total_steps",
            )
        )
    if problems:
        return None, tuple(problems)
    clock, total = _run_length(recipe, corpus_positions)
    spans, warnings = _walk(shapes, clock, total)
    if recipe.schedule.type == "plateau":
        warnings = (*warnings, _PLATEAU_NOTE)
    return Plan(_stages(recipe, spans), recipe.optimizer.lr, world_size, world_size, warnings), ()


def _shapes(recipe: Recipe, data_parallel_size: int) -> tuple[list[_Shape], list[Problem]]:
    shapes: list[_Shape] = []
    problems: list[Problem] = []
    limit, max_seq_len = recipe.train.max_tokens_per_micro_batch, recipe.data.max_seq_len
    masked = recipe.data.sequence_mode == "mask"
    for spec in stage_specs(recipe):
        if masked and max_seq_len % spec.seq_len:
            problems.append(_no_block(spec, max_seq_len))
            continue
        blocks = max_seq_len // spec.seq_len if masked else 1
        micro = spec.micro_batch_size or recipe.train.micro_batch_size
        default = largest_micro_batch(spec.seq_len * blocks, limit) if micro == "auto" else micro
        batch_size = spec.batch_size or default * data_parallel_size * blocks
        try:
            micro, accum = split_batch(batch_size, spec.seq_len, data_parallel_size, micro, limit, blocks)
        except BatchSplitError as error:
            problem = Problem(f"{spec.path}.batch_size", str(error))
            if problem not in problems:  # a pacing function repeats its one batch size at every length
                problems.append(problem)
            continue
        row = max_seq_len if recipe.data.sequence_mode == "truncate" else spec.seq_len
        step_size: dict[Clock, int] = {
            "step": 1,
            "tokens": batch_size * spec.seq_len,
            "positions": batch_size * row,
        }
        shapes.append(_Shape(spec, batch_size, micro, accum, blocks, step_size))
    return shapes, problems


def _no_block(spec: StageSpec, max_seq_len: int) -> Problem:
    """A length that rows of ``max_seq_len`` cannot be divided into."""
    allowed = [length for length in range(8, max_seq_len + 1) if max_seq_len % length == 0]
    near = sorted(sorted(allowed, key=lambda length: abs(length - spec.seq_len))[:4])
    paced = spec.path == "curriculum.pacing"
    return Problem(
        spec.path if paced else f"{spec.path}.seq_len",
        f"found {'a length of ' if paced else ''}{spec.seq_len}; allowed in data.sequence_mode mask: "
        f"what divides data.max_seq_len {max_seq_len}, e.g. {', '.join(map(str, near))}"
        + ("; give stages, or kind: discrete with a start_seq_len that is one of them" if paced else ""),
    )


def _run_length(recipe: Recipe, corpus_positions: int | None) -> tuple[Clock, Fraction]:
    curriculum = recipe.curriculum
    if curriculum.total_steps is not None:
        return "step", Fraction(curriculum.total_steps)
    if curriculum.total_tokens is not None:
        return "tokens", Fraction(curriculum.total_tokens)
    if curriculum.total_epochs is None:
        # the recipe's own check says so; what else is wrong is looked for all the same
        return "step", Fraction(1)
    assert corpus_positions is not None
    return "positions", exact(curriculum.total_epochs) * corpus_positions


def _walk(shapes: Sequence[_Shape], clock: Clock, total: Fraction) -> tuple[list[tuple[_Shape, int]], tuple[str, ...]]:
    """How many steps every stage lasts; stages without a step are left out, with a warning.

    Stages are walked in order, since the step at which a number of tokens is reached depends on the stages before.
    """
    spans: list[tuple[_Shape, int]] = []
    warnings: list[str] = []
    at: dict[Clock, Fraction] = {"step": Fraction(0), "tokens": Fraction(0), "positions": Fraction(0)}
    for shape, following in zip(shapes, [*shapes[1:], None], strict=True):
        steps = math.ceil((total - at[clock]) / shape.step_size[clock])
        if steps <= 0:
            warnings.append(f"{shape.spec.path} would start at or after the end of the run and is dropped")
            continue
        if following is not None:
            start = following.spec.start
            unit: Clock = clock if start.unit == "fraction" else start.unit
            value = start.value * total if start.unit == "fraction" else start.value
            steps = min(steps, math.ceil((value - at[unit]) / shape.step_size[unit]))
        if steps <= 0:
            warnings.append(f"{shape.spec.path} has no step before the next stage starts and is dropped")
            continue
        spans.append((shape, steps))
        at = {key: amount + steps * shape.step_size[key] for key, amount in at.items()}
    return spans, tuple(dict.fromkeys(warnings))


def _stages(recipe: Recipe, spans: Sequence[tuple[_Shape, int]]) -> tuple[StagePlan, ...]:
    stages: list[StagePlan] = []
    step = tokens = cursor = 0
    for index, (shape, steps) in enumerate(spans):
        spec = shape.spec
        multiplier = _multiplier(recipe, spec, shape.batch_size)
        peak_lr = _curve_peak(recipe) * multiplier if spec.peak_lr is None else spec.peak_lr
        stages.append(
            StagePlan(
                index=index,
                start_step=step,
                end_step=step + steps,
                start_tokens=tokens,
                end_tokens=tokens + steps * shape.step_size["tokens"],
                start_cursor=cursor,
                positions_per_step=shape.step_size["positions"],
                seq_len=spec.seq_len,
                batch_size=shape.batch_size,
                micro_batch_size=shape.micro_batch_size,
                grad_accum_steps=shape.grad_accum_steps,
                lr_multiplier=multiplier,
                formula_multiplier=formula_multiplier(shape.batch_size, spec.seq_len),
                peak_lr=peak_lr,
                min_lr=recipe.schedule.floor * peak_lr,
                warmup_steps=_warmup_steps(recipe.schedule.warmup, spec, shape.step_size["tokens"], steps),
                grad_clip=_grad_clip(recipe, spec),
                trainable_layers=spec.trainable_layers,
                blocks_per_row=shape.blocks_per_row,
                stated_at=spec.stated_at,
                data_weights=_data_weights(recipe, spec),
            )
        )
        step += steps
        tokens += steps * shape.step_size["tokens"]
        cursor += steps * shape.step_size["positions"]
    return tuple(stages)


def _curve_peak(recipe: Recipe) -> float:
    """Learning rate at the top of the schedule, for a stage with multiplier 1."""
    return recipe.optimizer.lr * recipe.schedule.peak_factor


def _data_weights(recipe: Recipe, spec: StageSpec) -> tuple[float, ...]:
    if spec.data_weights is None:
        return tuple(source.weight for source in recipe.data.train)
    return tuple(spec.data_weights.get(source.label, 0.0) for source in recipe.data.train)


def _multiplier(recipe: Recipe, spec: StageSpec, batch_size: int) -> float:
    if spec.peak_lr is not None:
        return spec.peak_lr / _curve_peak(recipe)
    if spec.lr_multiplier is not None:
        return spec.lr_multiplier
    return scaled_multiplier(recipe.curriculum.lr_scaling, batch_size, spec.seq_len)


def _grad_clip(recipe: Recipe, spec: StageSpec) -> float:
    if spec.grad_clip is not None:
        return spec.grad_clip
    rule = recipe.curriculum.grad_clip
    return grad_clip_by_length(spec.seq_len) if rule == "by_length" else rule


def _warmup_steps(warmup: Warmup, spec: StageSpec, tokens_per_step: int, stage_steps: int) -> int:
    """A stage's own number of steps, else the recipe's rule up to its ``max_steps``; never more than the stage."""
    if spec.warmup_steps is not None:
        return min(spec.warmup_steps, stage_steps)
    if warmup.tokens is not None:
        steps = math.ceil(Fraction(warmup.tokens) / tokens_per_step)
    elif warmup.steps is not None:
        steps = warmup.steps
    else:
        steps = math.ceil(exact(warmup.fraction or 0.0) * stage_steps)
    if warmup.max_steps is not None:
        steps = min(steps, warmup.max_steps)
    return min(steps, stage_steps)
