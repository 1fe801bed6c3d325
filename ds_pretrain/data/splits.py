"""Deals rows to the sources of a mixture by closed form: any row's source without looking at the rows before it.

Sources are the leaves of a tree of two-way splits. Of the first n rows that reach a split, its left part, of weight w
out of W, gets floor(w n / W + 1/2): one line of Bresenham's. So the source of any row, and its number among the rows of
that source, are found from the row's number alone, in the depth of the tree, with no index.

A split rounds by half a row at most, and hands on its own deviation in proportion; a source thus stays within half a
row times 1 + w_s x the sum of 1 / W over the splits above it except the topmost (``SplitTree.bound``). The tree is
chosen to keep that small: at most one row for up to four sources, less than 1.2 rows for more.

What a source is owed from before moves the rounding of every split, and a debt of several rows is made up at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Rows = TypeVar("Rows", int, NDArray[np.int64])

_SPLITS_TRIED = 4  # those next to equal halves; with more sources than the limit the nearest alone
_SOURCES_SEARCHED = 10


@dataclass(frozen=True)
class _Split:
    """One two-way split; ``offset`` is what is added before rounding down, in parts of ``weight``."""

    left: _Split | int
    right: _Split | int
    left_weight: int
    weight: int
    offset: int

    def left_of(self, rows: Rows) -> Rows:
        """How many of the first ``rows`` rows that reach the split go left."""
        whole = rows // self.weight
        rest = rows - whole * self.weight
        wanted = whole * self.left_weight + (rest * self.left_weight + self.offset) // self.weight
        return min(max(wanted, 0), rows) if isinstance(rows, int) else np.clip(wanted, 0, rows)


class SplitTree:
    """Deals the rows of one stage.

    Args:
        weights: whole numbers, at least one above 0, whose squares fit into 64 bits.
        owed: rows that each source has got too few before, or too many where negative.
    """

    def __init__(self, weights: Sequence[int], owed: Sequence[Fraction]) -> None:
        self._weights = weights
        self._owed = owed
        active = [source for source, weight in enumerate(weights) if weight]
        active.sort(key=lambda source: -weights[source])
        reach, self._root = self._tree(active, 0.0)
        self.bound = 0.5 + 0.5 * reach if len(active) > 1 else 0.0
        """Rows by which a source's number of rows may differ from its share; debts from before apart."""

    def deal(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The sources of rows, and their numbers among the rows of their source.

        Args:
            rows: numbers of rows, from 0; shape [rows].

        Returns:
            Indices of sources, and numbers from 0, each of the same shape.
        """
        sources = np.empty_like(rows)
        numbers = np.empty_like(rows)
        left_to_do = [(self._root, np.arange(len(rows)), rows)]
        while left_to_do:
            node, where, before = left_to_do.pop()
            if isinstance(node, int):
                sources[where] = node
                numbers[where] = before
                continue
            left, then = node.left_of(before), node.left_of(before + 1)
            goes_left = then > left
            left_to_do.append((node.left, where[goes_left], left[goes_left]))
            left_to_do.append((node.right, where[~goes_left], (before - left)[~goes_left]))
        return sources, numbers

    def counts(self, rows: Rows) -> list[Rows]:
        """How many of the first ``rows`` rows each source gets; of several numbers of rows at once, where an array."""
        counts = [rows * 0] * len(self._weights)
        left_to_do = [(self._root, rows)]
        while left_to_do:
            node, reaching = left_to_do.pop()
            if isinstance(node, int):
                counts[node] = reaching
                continue
            left = node.left_of(reaching)
            left_to_do += [(node.left, left), (node.right, reaching - left)]
        return counts

    def _tree(self, sources: Sequence[int], above: float) -> tuple[float, _Split | int]:
        """The best tree found, and the largest over its sources of weight x sum of 1 / weight of the splits above.

        Args:
            sources: by falling weight.
            above: that sum for the splits above, without the topmost.
        """
        if len(sources) == 1:
            return self._weights[sources[0]] * above, sources[0]
        weight = sum(self._weights[source] for source in sources)
        halves = [sum(self._weights[source] for source in sources[:cut]) for cut in range(1, len(sources))]
        cuts = sorted(range(1, len(sources)), key=lambda cut: abs(2 * halves[cut - 1] - weight))
        best: tuple[float, _Split | int] | None = None
        for cut in cuts[: _SPLITS_TRIED if len(sources) <= _SOURCES_SEARCHED else 1]:
            parts = sources[:cut], sources[cut:]
            totals = halves[cut - 1], weight - halves[cut - 1]
            (left_reach, left), (right_reach, right) = (
                self._tree(part, above + 1 / total if len(part) > 1 else above)
                for part, total in zip(parts, totals, strict=True)
            )
            reach = max(left_reach, right_reach)
            if best is None or reach < best[0]:
                owed = sum((self._owed[source] for source in parts[0]), Fraction(0))
                owed -= Fraction(totals[0], weight) * sum((self._owed[source] for source in sources), Fraction(0))
                best = reach, _Split(left, right, totals[0], weight, math.floor((Fraction(1, 2) + owed) * weight))
            if reach <= 1:  # a row: good enough
                break
        assert best is not None
        return best
