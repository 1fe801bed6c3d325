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
    blocks_per_row: int = 1,
) -> tuple[int, int]:
    """Solves batch_size = data_parallel_size x micro_batch_size x grad_accum_steps x blocks_per_row.

    Args:
        batch_size: sequences per optimizer step over all ranks.
        seq_len: tokens per sequence.
        data_parallel_size: ranks that see different data.
        micro_batch_size: rows per rank and forward pass, or ``auto`` for the largest that divides and fits.
        max_tokens_per_micro_batch: limit of tokens per rank and forward pass that ``auto`` keeps to.
        blocks_per_row: sequences that share a row; more than one where attention is confined to blocks of a row.

    Returns:
        micro_batch_size and grad_accum_steps.

    Raises:
        BatchSplitError: no whole number of micro batches gives ``batch_size``.
    """
    if batch_size % blocks_per_row:
        raise BatchSplitError(
            f"found {batch_size}, which is no whole number of rows of {blocks_per_row} blocks of {seq_len} tokens; "
            f"allowed: a multiple of {blocks_per_row}, e.g. {_neighbours(batch_size, blocks_per_row)}"
        )
    if batch_size % (data_parallel_size * blocks_per_row):
        if blocks_per_row > 1:
            unit = data_parallel_size * blocks_per_row
            raise BatchSplitError(
                f"found {batch_size}, in rows of {blocks_per_row} blocks {batch_size // blocks_per_row} rows, which "
                f"{data_parallel_size} ranks cannot share equally; "
                f"allowed: a multiple of {unit}, e.g. {_neighbours(batch_size, unit)}"
            )
        near = _neighbours(batch_size, data_parallel_size)
        raise BatchSplitError(
            f"found {batch_size}, which {data_parallel_size} ranks cannot share equally; "
            f"allowed: a multiple of {data_parallel_size}, e.g. {near}, or a number of ranks that divides {batch_size}"
        )
    per_rank = batch_size // (data_parallel_size * blocks_per_row)
    if micro_batch_size == "auto":
        limit = largest_micro_batch(seq_len * blocks_per_row, max_tokens_per_micro_batch)
        micro = max(size for size in range(1, min(per_rank, limit) + 1) if per_rank % size == 0)
        return micro, per_rank // micro
    if per_rank % micro_batch_size:
        unit = data_parallel_size * micro_batch_size * blocks_per_row
        divisors = [size for size in range(1, per_rank + 1) if per_rank % size == 0]
        ranks = "1 rank" if data_parallel_size == 1 else f"{data_parallel_size} ranks"
        blocks = f" x {blocks_per_row} blocks a row" if blocks_per_row > 1 else ""
        raise BatchSplitError(
            f"found {batch_size}, which is no whole number of {ranks} x micro_batch_size {micro_batch_size}{blocks}; "
            f"allowed: a multiple of {unit}, e.g. {_neighbours(batch_size, unit)}, "
            f"or one of the micro batch sizes {', '.join(map(str, divisors))}, or micro_batch_size auto"
        )
    return micro_batch_size, per_rank // micro_batch_size


def _neighbours(value: int, unit: int) -> str:
    below, above = value // unit * unit, -(-value // unit) * unit
    return f"{below} or {above}" if below else str(above)
