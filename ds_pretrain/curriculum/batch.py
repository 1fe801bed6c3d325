"""Splits a batch over ranks, micro batches and accumulation steps, exactly or with the numbers that would work."""

from __future__ import annotations

from typing import Literal


class BatchSplitError(ValueError):
    """A batch that cannot be split as asked; the message names numbers that would work."""


def largest_micro_batch(seq_len: int, max_tokens_per_micro_batch: int) -> int:
    """Most sequences of ``seq_len`` tokens that one micro batch may hold; at least one."""
    return max(1, max_tokens_per_micro_batch // seq_len)


def split_batch(
    batch_size: int,
    seq_len: int,
    data_parallel_size: int,
    micro_batch_size: int | Literal["auto"],
    max_tokens_per_micro_batch: int,
) -> tuple[int, int]:
    """Solves batch_size = data_parallel_size x micro_batch_size x grad_accum_steps.

    Args:
        batch_size: sequences per optimizer step over all ranks.
        seq_len: tokens per sequence.
        data_parallel_size: ranks that see different data.
        micro_batch_size: sequences per rank and forward pass, or ``auto`` for the largest that divides and fits.
        max_tokens_per_micro_batch: limit of micro_batch_size x seq_len that ``auto`` keeps to.

    Returns:
        micro_batch_size and grad_accum_steps.

    Raises:
        BatchSplitError: no whole number of micro batches gives ``batch_size``.
    """
    if batch_size % data_parallel_size:
        near = _neighbours(batch_size, data_parallel_size)
        raise BatchSplitError(
            f"found {batch_size}, which {data_parallel_size} ranks cannot share equally; "
            f"allowed: a multiple of {data_parallel_size}, e.g. {near}, or a number of ranks that divides {batch_size}"
        )
    per_rank = batch_size // data_parallel_size
    if micro_batch_size == "auto":
        limit = largest_micro_batch(seq_len, max_tokens_per_micro_batch)
        micro = max(size for size in range(1, min(per_rank, limit) + 1) if per_rank % size == 0)
        return micro, per_rank // micro
    if per_rank % micro_batch_size:
        unit = data_parallel_size * micro_batch_size
        divisors = [size for size in range(1, per_rank + 1) if per_rank % size == 0]
        ranks = "1 rank" if data_parallel_size == 1 else f"{data_parallel_size} ranks"
        raise BatchSplitError(
            f"found {batch_size}, which is no whole number of {ranks} x micro_batch_size {micro_batch_size}; "
            f"allowed: a multiple of {unit}, e.g. {_neighbours(batch_size, unit)}, "
            f"or one of the micro batch sizes {', '.join(map(str, divisors))}, or micro_batch_size auto"
        )
    return micro_batch_size, per_rank // micro_batch_size


def _neighbours(value: int, unit: int) -> str:
    below, above = value // unit * unit, -(-value // unit) * unit
    return f"{below} or {above}" if below else str(above)
