"""How rows are dealt to the sources of a mixture: in the wanted shares over every prefix, not only on average.

Sources are the leaves of a tree of two-way splits. Of the first n rows that reach a split, its left part, of weight w
out of W, gets floor(w n / W + 1/2): one line of Bresenham's. So the source of any row, and its number among the rows of
that source, are found from the row's number alone, in the depth of the tree, with no index.

A split rounds by half a row at most, and hands on its own deviation in proportion; a source thus stays within half a
row times 1 + w_s x the sum of 1 / W over the splits above it except the topmost (``Mixture.bound``). The tree is
chosen to keep that small: at most one row for up to four sources, less than 1.2 rows for more.

A stage goes on where the stage before it ended: what a source is owed (its share so far less what it got) moves the
rounding of every split, and a debt of several short rows, left by longer ones, is made up at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ds_pretrain.curriculum.stages import exact

Rows = TypeVar("Rows", int, NDArray[np.int64])

_MOST_WEIGHT = 2**31  # so that weight x weight fits into 64 bits
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


class Mixture:
    """Deals the rows of one stage to its sources.

    Args:
        weights: one for every source, at least one above 0; their ratios are the shares, to a part in 2^31.
        owed: rows that each source has got too few before (or, negative, too many); none unless given.
    """

    def __init__(self, weights: Sequence[float], owed: Sequence[Fraction] | None = None) -> None:
        self.weights = whole_weights(weights)
        self.num_sources = len(weights)
        self._owed = list(owed) if owed is not None else [Fraction(0)] * len(weights)
        active = [source for source, weight in enumerate(self.weights) if weight]
        active.sort(key=lambda source: -self.weights[source])
        reach, self._root = self._tree(active, 0.0)
        self.bound = 0.5 + 0.5 * reach if len(active) > 1 else 0.0
        """Rows by which a source's number of rows may differ from its share; debts from before apart."""

    def deal(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The sources of rows, and their numbers among the rows of their source.

        Args:
            rows: numbers of rows within the stage, from 0; shape [rows].

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
        counts = [rows * 0] * self.num_sources
        left_to_do = [(self._root, rows)]
        while left_to_do:
            node, reaching = left_to_do.pop()
            if isinstance(node, int):
                counts[node] = reaching
                continue
            left = node.left_of(reaching)
            left_to_do += [(node.left, left), (node.right, reaching - left)]
        return counts

    def owed_after(self, rows: int) -> list[Fraction]:
        """What each source is owed once the first ``rows`` rows are dealt, in rows."""
        total = sum(self.weights)
        return [
            owed + Fraction(weight, total) * rows - count
            for owed, weight, count in zip(self._owed, self.weights, self.counts(rows), strict=True)
        ]

    def _tree(self, sources: Sequence[int], above: float) -> tuple[float, _Split | int]:
        """The best tree found, and the largest over its sources of weight x sum of 1 / weight of the splits above.

        Args:
            sources: by falling weight.
            above: that sum for the splits above, without the topmost.
        """
        if len(sources) == 1:
            return self.weights[sources[0]] * above, sources[0]
        weight = sum(self.weights[source] for source in sources)
        halves = [sum(self.weights[source] for source in sources[:cut]) for cut in range(1, len(sources))]
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
