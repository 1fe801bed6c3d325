"""Which stream positions the rows of a step start at, so that the rows of one batch are independent.

Cut in order, neighbouring rows would come from one window and travel in one batch. So a stage's rows are
permuted, on the fly, inside shuffle blocks of a few hundred steps. Blocks start at the stage's start and do
not reach beyond its end, so a stage uses exactly its own positions, whatever comes before or after it. What a
rollback reads in place of data left out is shuffled in the same way, by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ds_pretrain.data.permutation import Permutation


@dataclass(frozen=True)
class StageRows:
    """The rows of one stage, or of what a rollback put in place of some of them, in the order in which steps take them.

    Args:
        seed: the run's seed.
        stage: the stage's index; stages are shuffled differently.
        start_cursor: stream position of the first row.
        steps: steps of the stage, or those that the rollback covers.
        batch_size: rows of a step, over all ranks.
        stride: positions by which one row moves the cursor.
        block_steps: steps of a shuffle block. Steps that do not fill a last block join the one before, since
            a block of a few steps would keep the rows of a window together again.
        reading: 0 for the stage as planned, k for what the k-th rollback put in its place.
    """

    seed: int
    stage: int
    start_cursor: int
    steps: int
    batch_size: int
    stride: int
    block_steps: int = 256
    reading: int = 0

    def block(self, step: int) -> tuple[int, int]:
        """First step of the shuffle block that a step belongs to, and the step after its last one."""
        first = min(step // self.block_steps, max(0, self.steps // self.block_steps - 1)) * self.block_steps
        return first, self.steps if first + 2 * self.block_steps > self.steps else first + self.block_steps

    def starts(self, step: int) -> NDArray[np.int64]:
        """Where the rows of one step start.

        Args:
            step: counted from the first of these steps, below ``steps``.

        Returns:
            Stream positions, shape [batch_size], in batch order.
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of a stage of {self.steps} steps")
        first, last = self.block(step)
        key = (self.seed, self.stage, first // self.block_steps, *([self.reading] if self.reading else []))
        order = Permutation((last - first) * self.batch_size, *key)
        places = np.arange(self.batch_size, dtype=np.int64) + (step - first) * self.batch_size
        return self.start_cursor + (first * self.batch_size + order(places)) * self.stride


def rank_slice(
    rows: NDArray[np.int64], rank: int, data_parallel_size: int, micro_batch_size: int, micro_step: int
) -> NDArray[np.int64]:
    """The rows of one rank's micro batch.

    Micro batches are dealt to the ranks in turn, so that the batch, read micro step by micro step and rank by
    rank, is the same for any number of ranks.

    Args:
        rows: the whole batch, shape [batch_size].
        rank: data-parallel rank, from 0.
        data_parallel_size: ranks that see different data.
        micro_batch_size: rows per rank and forward pass.
        micro_step: number of the micro batch within the step, from 0.

    Returns:
        Shape [micro_batch_size].
    """
    first = (micro_step * data_parallel_size + rank) * micro_batch_size
    return rows[first : first + micro_batch_size]
