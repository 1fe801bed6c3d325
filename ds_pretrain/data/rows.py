"""Where the rows of a stage start, so that the rows of one batch are independent.

Cut in order, neighbouring rows would come from one window and travel in one batch. So the rows that a stage takes from
a source are permuted, on the fly, inside shuffle blocks of a few hundred steps. Blocks start with the stage's first row
and do not reach beyond its last, so a stage uses exactly its own positions, whatever comes before or after it. What a
rollback reads in place of data left out is shuffled in the same way, by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ds_pretrain.data.permutation import Permutation

BLOCK_STEPS = 256  # steps of a shuffle block


@dataclass(frozen=True)
class ShuffledRows:
    """Consecutive rows of one source's stream, in the order in which they are trained on.

    Args:
        key: chooses the order: the seed, and what tells these rows from others.
        start_cursor: stream position of the first row.
        rows: how many.
        stride: positions by which one row moves the cursor.
        block_rows: rows of a shuffle block. Rows that do not fill a last block join the one before, since a block of
            a few steps would keep the rows of a window together again.
    """

    key: tuple[int, ...]
    start_cursor: int
    rows: int
    stride: int
    block_rows: int

    def starts(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where rows start.

        Args:
            numbers: of rows in training order, from 0, below ``rows``; shape [n].

        Returns:
            Stream positions, the same shape.
        """
        if not numbers.size:
            return numbers
        last_block = max(0, self.rows // self.block_rows - 1)
        blocks = np.minimum(numbers // self.block_rows, last_block)
        shuffled = np.empty_like(numbers)
        for block in range(int(blocks.min()), int(blocks.max()) + 1):
            chosen = blocks == block
            first = block * self.block_rows
            size = self.rows - first if block == last_block else self.block_rows
            shuffled[chosen] = first + Permutation(size, *self.key, block)(numbers[chosen] - first)
        return self.start_cursor + shuffled * self.stride


def shuffle_block(step: int, steps: int) -> tuple[int, int]:
    """The shuffle block of a step, where a stage has one source.

    Args:
        step: counted from the stage's start.
        steps: of the stage.

    Returns:
        Its first step, and the step after its last one.
    """
    first = min(step // BLOCK_STEPS, max(0, steps // BLOCK_STEPS - 1)) * BLOCK_STEPS
    return first, steps if first + 2 * BLOCK_STEPS > steps else first + BLOCK_STEPS


def rank_rows(rank: int, data_parallel_size: int, micro_batch_size: int, grad_accum_steps: int) -> NDArray[np.int64]:
    """Which rows of a batch are one rank's.

    Micro batches are dealt to the ranks in turn, so that the batch, read micro step by micro step and rank by
    rank, is the same for any number of ranks.

    Args:
        rank: data-parallel rank, from 0.
        data_parallel_size: ranks that see different data.
        micro_batch_size: rows per rank and forward pass.
        grad_accum_steps: micro batches per rank and step.

    Returns:
        Numbers within the batch, micro batch after micro batch; shape [grad_accum_steps x micro_batch_size].
    """
    firsts = (np.arange(grad_accum_steps) * data_parallel_size + rank) * micro_batch_size
    return (firsts[:, None] + np.arange(micro_batch_size)).ravel()
