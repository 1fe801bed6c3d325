"""Learning-rate multipliers and gradient clips that follow from a stage's batch size and sequence length."""

from __future__ import annotations

import math

from ds_pretrain.config import LrScaling


def formula_multiplier(
    batch_size: int,
    seq_len: int,
    reference_batch: int = 32,
    reference_seq_len: int = 2048,
    max_seq_factor: float = 4.0,
) -> float:
    """The square-root rule for batch size, and the inverse rule for length, capped.

    sqrt(batch_size / reference_batch) x min(reference_seq_len / seq_len, max_seq_factor): the square root keeps
    the noise of an Adam update constant when the batch grows (Malladi et al., NeurIPS 2022), the second factor
    follows the smaller gradient variance of short sequences (Li, Zhang, He, NeurIPS 2022).

    Args:
        batch_size: sequences per optimizer step over all ranks.
        seq_len: tokens per sequence.
        reference_batch: batch size at which the first factor is 1, in sequences.
        reference_seq_len: length at which the second factor is 1, in tokens.
        max_seq_factor: upper limit of the second factor.

    Returns:
        The multiplier of the base learning rate, dimensionless.
    """
    return math.sqrt(batch_size / reference_batch) * min(reference_seq_len / seq_len, max_seq_factor)


def scaled_multiplier(scaling: LrScaling, batch_size: int, seq_len: int) -> float:
    """Multiplier of a stage that states none, by the recipe's ``curriculum.lr_scaling``.

    Args:
        scaling: the rule and its reference values.
        batch_size: sequences per optimizer step over all ranks.
        seq_len: tokens per sequence.

    Returns:
        The multiplier of the base learning rate; 1 for ``kind: none``.
    """
    if scaling.kind == "none":
        return 1.0
    if scaling.kind == "linear_batch":
        return batch_size / scaling.reference_batch
    if scaling.kind == "sqrt_batch":
        return math.sqrt(batch_size / scaling.reference_batch)
    return formula_multiplier(
        batch_size, seq_len, scaling.reference_batch, scaling.reference_seq_len, scaling.max_seq_factor
    )


def grad_clip_by_length(seq_len: int) -> float:
    """Limit of the gradient's L2 norm for ``grad_clip: by_length``: short sequences may move further.

    Args:
        seq_len: tokens per sequence.

    Returns:
        5.0 up to 128 tokens, 1.0 up to 512, 0.5 beyond.
    """
    if seq_len <= 128:
        return 5.0
    return 1.0 if seq_len <= 512 else 0.5
