"""Which rows of which source every step takes: a pure function of the plan, the seed and what rollbacks left out.

Every source has a stream and a cursor of its own. A stage's rows are dealt to the sources by its weights; a source's
rows are the next ones of its stream, shuffled. Stages follow one another in every source's stream, and what rollbacks
read in place of what they left out follows the last stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ds_pretrain.curriculum.skips import Skip, reading_at
from ds_pretrain.data.mixture import Mixture
from ds_pretrain.data.rows import BLOCK_STEPS, ShuffledRows

if TYPE_CHECKING:
    from ds_pretrain.curriculum.plan import StagePlan


@dataclass(frozen=True)
class _Part:
    """Consecutive steps of one stage; for every source the number of its first row in the stage, and its rows."""

    first: tuple[int, ...]
    rows: tuple[ShuffledRows, ...]


class RowOrder:
    """The rows of every step of a run.

    Args:
        stages: of a plan, from its first, in order, without gaps.
        seed: the run's seed.
        skips: what rollbacks have left out, in their order.
    """

    def __init__(self, stages: Sequence[StagePlan], seed: int, skips: Sequence[Skip] = ()) -> None:
        self._stages = tuple(stages)
        self._skips = tuple(skips)
        self._mixtures: list[Mixture] = []
        self._parts: dict[tuple[int, int], _Part] = {}  # by index among the stages, and reading
        self.num_sources = len(stages[0].data_weights)
        cursors = [0] * self.num_sources
        owed = [Fraction(0)] * self.num_sources  # in tokens
        for index, stage in enumerate(stages):
            row_tokens = stage.tokens_per_step // stage.rows_per_step
            num_rows = stage.num_steps * stage.rows_per_step
            changed = index > 0 and stage.data_weights != stages[index - 1].data_weights
            mixture = Mixture(stage.data_weights, num_rows, [tokens / row_tokens for tokens in owed], changed)
            self._mixtures.append(mixture)
            self._add(seed, index, 0, stage.start_step, stage.end_step, cursors)
            owed = [rows * row_tokens for rows in mixture.owed_after(num_rows)]
        planned = tuple(cursors)
        for reading, skip in enumerate(skips, start=1):
            for index, stage in enumerate(stages):
                first, last = max(skip.step, stage.start_step), min(skip.end, stage.end_step)
                if first < last:
                    self._add(seed, index, reading, first, last, cursors)
        self._skipped = tuple(end - start for start, end in zip(planned, cursors, strict=True))

    def rows(self, steps: range, in_batch: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of consecutive steps.

        Args:
            steps: of the run, from 0; of one stage, and all of one reading of it (``reading_until``).
            in_batch: which rows of every batch, shape [n].

        Returns:
            For every row, step after step, the index of its source and where it starts in that source's stream; each
            of shape [steps x n].
        """
        index, reading = self._locate(steps.start)
        stage, part = self._stages[index], self._parts[index, reading]
        firsts = (np.arange(steps.start, steps.stop) - stage.start_step) * stage.rows_per_step
        sources, numbers = self._mixtures[index].deal((firsts[:, None] + in_batch).ravel())
        starts = np.empty_like(numbers)
        for source, (first, rows) in enumerate(zip(part.first, part.rows, strict=True)):
            chosen = sources == source
            if chosen.any():
                starts[chosen] = rows.starts(numbers[chosen] - first)
        return sources, starts

    def reading_until(self, step: int) -> tuple[StagePlan, int]:
        """The stage of a step, and the first step after it that belongs to another stage or is read from elsewhere.

        Raises:
            IndexError: the stages do not hold the step.
        """
        stage = self._stages[self._locate(step)[0]]
        edges = (edge for skip in self._skips for edge in (skip.step, skip.end) if edge > step)
        return stage, min(stage.end_step, *edges, stage.end_step)

    def cursors_after(self, steps: range) -> list[tuple[int, ...]]:
        """Positions of every source's stream that are consumed, or left out by rollbacks, once each step is done.

        Args:
            steps: of the run, from 0; of one stage.
        """
        index, _ = self._locate(steps.start)
        stage, part = self._stages[index], self._parts[index, 0]
        counts = self._mixtures[index].counts((np.array(steps) + 1 - stage.start_step) * stage.rows_per_step)
        cursors = (
            rows.start_cursor + count * rows.stride + skipped
            for rows, count, skipped in zip(part.rows, counts, self._skipped, strict=True)
        )
        return list(zip(*(cursor.tolist() for cursor in cursors), strict=True))

    def _add(self, seed: int, index: int, reading: int, first: int, last: int, cursors: list[int]) -> None:
        """Gives steps the next rows of every source's stream, and moves the cursors behind them."""
        stage, mixture = self._stages[index], self._mixtures[index]
        before, after = (mixture.counts((step - stage.start_step) * stage.rows_per_step) for step in (first, last))
        stride = stage.positions_per_step // stage.rows_per_step
        rows = []
        for source, count in enumerate(end - start for start, end in zip(before, after, strict=True)):
            other = (reading, source) if reading or source else ()
            block_rows = max(1, count * BLOCK_STEPS // (last - first))
            rows.append(ShuffledRows((seed, stage.index, *other), cursors[source], count, stride, block_rows))
            cursors[source] += count * stride
        self._parts[index, reading] = _Part(tuple(before), tuple(rows))

    def _locate(self, step: int) -> tuple[int, int]:
        """Index among the stages, and the reading."""
        for index, stage in enumerate(self._stages):
            if stage.start_step <= step < stage.end_step:
                return index, reading_at(step, self._skips)
        raise IndexError(f"step {step} is in none of the stages, which end at step {self._stages[-1].end_step}")
