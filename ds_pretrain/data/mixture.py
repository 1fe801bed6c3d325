"""How rows are dealt to the sources of a mixture: in the wanted shares over every prefix, not only on average.

A tree of splits (``splits.py``) finds any row's source by closed form. Where it may be off by more than a row, which
takes five sources or more or debts from other weights, a table of rows dealt one after another takes its place
(``deadlines.py``).

A stage goes on where the stage before it ended: what a source is owed is its share so far less what it got.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ds_pretrain.curriculum.stages import exact
from ds_pretrain.data.deadlines import DeadlineTable
from ds_pretrain.data.splits import Rows, SplitTree

_MOST_WEIGHT = 2**31  # so that weight x weight fits into 64 bits


class Mixture:
    """Deals the rows of one stage to its sources.

    Args:
        weights: one for every source, at least one above 0; their ratios are the shares, to a part in 2^31.
        num_rows: how many rows the stage has at most; what is dealt does not depend on it.
        owed: rows that each source has got too few before (or, negative, too many); none unless given.
        changed: whether the weights were others before.
    """

    def __init__(
        self,
        weights: Sequence[float],
        num_rows: int,
        owed: Sequence[Fraction] | None = None,
        changed: bool = False,
    ) -> None:
        self.weights = whole_weights(weights)
        self.num_sources = len(weights)
        self._owed = list(owed) if owed is not None else [Fraction(0)] * len(weights)
        tree = SplitTree(self.weights, self._owed)
        by_deadline = changed or tree.bound > 1
        self._dealing = DeadlineTable(self.weights, self._owed, num_rows) if by_deadline else tree
        self.bound = self._dealing.bound
        """Rows by which a source's number of rows may differ from its share; debts from before apart."""

    def deal(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The sources of rows, and their numbers among the rows of their source.

        Args:
            rows: numbers of rows within the stage, from 0; shape [rows].

        Returns:
            Indices of sources, and numbers from 0, each of the same shape.
        """
        return self._dealing.deal(rows)

    def counts(self, rows: Rows) -> list[Rows]:
        """How many of the first ``rows`` rows each source gets; of several numbers of rows at once, where an array."""
        return self._dealing.counts(rows)

    def owed_after(self, rows: int) -> list[Fraction]:
        """What each source is owed once the first ``rows`` rows are dealt, in rows."""
        total = sum(self.weights)
        return [
            owed + Fraction(weight, total) * rows - count
            for owed, weight, count in zip(self._owed, self.weights, self.counts(rows), strict=True)
        ]


def whole_weights(weights: Sequence[float]) -> list[int]:
    """Weights as whole numbers in the same ratios, as small as they can be.

    Args:
        weights: as a person wrote them: 0.1 is one tenth.
    """
    parts = [exact(weight) for weight in weights]
    scale = math.lcm(*(part.denominator for part in parts))
    whole = [int(part * scale) for part in parts]
    divisor = math.gcd(*whole)
    whole = [weight // divisor for weight in whole]
    if (total := sum(whole)) > _MOST_WEIGHT:  # rounded; what has a share keeps one
        whole = [max(1, weight * (_MOST_WEIGHT - len(whole)) // total) if weight else 0 for weight in whole]
    return whole
