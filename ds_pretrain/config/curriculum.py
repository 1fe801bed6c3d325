"""Recipe section ``curriculum``: length of the run, its stages or pacing, and what scales with them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ds_pretrain.config.base import Count, Index, NonNegativeNumber, Number, PositiveNumber, Section, Whole


class LrScaling(Section):
    """How the learning rate of a stage without its own multiplier follows batch size and length."""

    kind: Literal["none", "sqrt_batch_seq", "linear_batch", "sqrt_batch"] = "none"
    """``sqrt_batch_seq`` is sqrt(batch / reference_batch) x min(reference_seq_len / seq_len, max_seq_factor)."""
    reference_batch: Count = 32
    """Batch size in sequences at which the batch factor is 1."""
    reference_seq_len: Count = 2048
    """Length in tokens at which the length factor is 1."""
    max_seq_factor: PositiveNumber = 4.0
    """Upper limit of the length factor."""


class Stage(Section):
    """A span of steps with one length, batch size, learning rate and clip."""

    step: Index | None = None
    """First optimizer step."""
    tokens: Index | None = None
    """Tokens trained on before the stage starts."""
    fraction: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """Share of the run that lies before the stage."""
    seq_len: Count | None = None
    """Tokens per sequence; ``data.max_seq_len`` unless given."""
    batch_size: Count | None = None
    """Sequences per optimizer step over all ranks; ``curriculum.batch_size`` unless given."""
    micro_batch_size: Count | None = None
    """Sequences per rank and forward pass; ``train.micro_batch_size`` unless given."""
    lr_multiplier: NonNegativeNumber | None = None
    """Factor on ``optimizer.lr``; by ``lr_scaling`` unless given."""
    peak_lr: PositiveNumber | None = None
    """Peak learning rate, instead of a multiplier."""
    warmup_steps: Index | None = None
    """Optimizer steps of warmup; by ``schedule.warmup`` unless given."""
    grad_clip: PositiveNumber | None = None
    """Limit of the gradient's L2 norm; ``curriculum.grad_clip`` unless given."""
    data_weights: dict[str, NonNegativeNumber] | None = None
    """Weights of the training sources in this stage, by name; a source left out has none. Those of ``data.train``
    unless given."""
    trainable_layers: Index | None = None
    """Top layers that are trained besides the head, the rest is frozen; everything is trained unless given."""


class Pacing(Section):
    """A length that grows (or shrinks) over part of the run, as many small stages."""

    kind: Literal["linear", "root", "exponential", "discrete"] = "linear"
    """How length follows progress; ``discrete`` doubles."""
    start_seq_len: Count
    """First length in tokens."""
    end_seq_len: Count | None = None
    """Last length in tokens; ``data.max_seq_len`` unless given."""
    fraction: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Duration as a share of the run."""
    steps: Count | None = None
    """Duration in optimizer steps."""
    tokens: Count | None = None
    """Duration in tokens."""
    multiple: Annotated[Whole, Field(ge=8, multiple_of=8)] = 8
    """Lengths are rounded down to a multiple of this."""
    degree: PositiveNumber = 2.0
    """Degree of ``root``: 2 is the square root."""
    batch_size: Count | None = None
    """Sequences per optimizer step at every length; ``curriculum.batch_size`` unless given."""


class Curriculum(Section):
    """How long the run is, and what its stages are."""

    total_steps: Count | None = None
    """Length of the run in optimizer steps."""
    total_tokens: Count | None = None
    """Length of the run in tokens; the last step may go beyond."""
    total_epochs: PositiveNumber | None = None
    """Length of the run in passes over the training corpus."""
    batch_size: Count | None = None
    """Sequences per optimizer step of stages that state none; unless given, one micro batch per rank."""
    lr_scaling: LrScaling = LrScaling()
    """Multipliers of stages that state none."""
    grad_clip: PositiveNumber | Literal["by_length"] = 1.0
    """Limit of the gradient's L2 norm; ``by_length`` is 5.0 up to 128 tokens, 1.0 up to 512, 0.5 beyond."""
    stages: tuple[Stage, ...] | None = None
    """The stages, the first at 0; one stage of full length unless given."""
    pacing: Pacing | None = None
    """A pacing function, instead of ``stages``."""
