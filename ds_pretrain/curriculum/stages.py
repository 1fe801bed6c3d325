"""Stage definitions before any step is counted: a recipe's list, its pacing function or the one default stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum.pacing import paced_lengths

Unit = Literal["step", "tokens", "fraction"]


@dataclass(frozen=True)
class StageStart:
    """Where a stage begins: a step, a number of tokens, or a fraction of the run."""

    unit: Unit
    value: Fraction


@dataclass(frozen=True)
class StageSpec:
    """A stage as asked for; None where the recipe's general setting decides.

    Args:
        path: dotted path in the recipe, for messages.
        start: where the stage begins.
        seq_len: tokens per sequence.
        batch_size: sequences per optimizer step over all ranks.
        micro_batch_size: sequences per rank and forward pass.
        lr_multiplier: factor on the base learning rate.
        peak_lr: peak learning rate, instead of a multiplier.
        warmup_steps: optimizer steps of warmup.
        grad_clip: limit of the gradient's L2 norm.
        trainable_layers: top layers that are trained besides the head; None for everything.
        stated_at: index in the recipe's list of stages, where it has one.
        data_weights: weights of the training sources, by name.
    """

    path: str
    start: StageStart
    seq_len: int
    batch_size: int | None = None
    micro_batch_size: int | None = None
    lr_multiplier: float | None = None
    peak_lr: float | None = None
    warmup_steps: int | None = None
    grad_clip: float | None = None
    trainable_layers: int | None = None
    stated_at: int = 0
    data_weights: Mapping[str, float] | None = None


def stage_specs(recipe: Recipe) -> list[StageSpec]:
    """The stages that a recipe asks for, in order.

    Args:
        recipe: a checked recipe.

    Returns:
        At least one stage; the first begins at 0.
    """
    curriculum, max_seq_len = recipe.curriculum, recipe.data.max_seq_len
    if curriculum.pacing is not None:
        return _paced(recipe)
    if not curriculum.stages:
        return [StageSpec("curriculum", StageStart("step", Fraction(0)), max_seq_len, batch_size=curriculum.batch_size)]
    return [
        StageSpec(
            path=f"curriculum.stages.{index}",
            start=_start(stage.step, stage.tokens, stage.fraction),
            seq_len=stage.seq_len or max_seq_len,
            batch_size=stage.batch_size or curriculum.batch_size,
            micro_batch_size=stage.micro_batch_size,
            lr_multiplier=stage.lr_multiplier,
            peak_lr=stage.peak_lr,
            warmup_steps=stage.warmup_steps,
            grad_clip=stage.grad_clip,
            trainable_layers=stage.trainable_layers,
            stated_at=index,
            data_weights=stage.data_weights,
        )
        for index, stage in enumerate(curriculum.stages)
    ]


def exact(value: float) -> Fraction:
    """The decimal number that a person wrote, as a fraction: 0.1 is one tenth, not its nearest float."""
    return Fraction(str(value))


def _start(step: int | None, tokens: int | None, fraction: float | None) -> StageStart:
    if tokens is not None:
        return StageStart("tokens", Fraction(tokens))
    if fraction is not None:
        return StageStart("fraction", exact(fraction))
    return StageStart("step", Fraction(step or 0))


def _paced(recipe: Recipe) -> list[StageSpec]:
    pacing = recipe.curriculum.pacing
    assert pacing is not None
    duration = _start(pacing.steps, pacing.tokens, pacing.fraction)
    batch_size = pacing.batch_size or recipe.curriculum.batch_size
    specs = []
    for progress, seq_len in paced_lengths(pacing, pacing.end_seq_len or recipe.data.max_seq_len):
        # an inverse such as log() may miss a whole step by one ulp; a billionth of the duration is no step
        share = Fraction(progress).limit_denominator(10**9)
        start = StageStart(duration.unit, duration.value * share)
        specs.append(StageSpec("curriculum.pacing", start, seq_len, batch_size=batch_size))
    return specs
