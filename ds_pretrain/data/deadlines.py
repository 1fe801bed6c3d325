"""Deals rows to the sources of a mixture one after another, each by a deadline: less than a row off at any moment.

The j-th row of a source of share w (j from 0), which was owed x rows at the start, may come once x + w n exceeds j, for
the n rows dealt with it, and has to come before x + w n reaches j + 1. Of the sources whose next row may come, the one
with the earliest deadline is. No deadline is missed: the fractional schedule, x + w n rows of every source, keeps them
all, so one of whole rows does too, and among unit jobs the earliest deadline first finds it (P-fair scheduling: Baruah,
Cohen, Plaxton and Varvel, 1996). Only debts of nearly a row from before may make more than one row due at once.

That takes a table. What is dealt repeats with a period: as many rows as the whole-number weights add up to, so 100 for
weights of two decimals. Where the period is longer than a table may be, only the first rows are in it, and a tree of
splits deals those after it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ds_pretrain.data.splits import Rows, SplitTree

TABLE_ROWS = 2**18  # half a second; twice the period of weights of five decimals


class DeadlineTable:
    """Deals the rows of one stage.

    Args:
        weights: whole numbers, at least one above 0, whose squares fit into 64 bits.
        owed: rows that each source has got too few before, or too many where negative.
        num_rows: how many rows will be asked for at most.
        table_rows: how long the table may be.
    """

    def __init__(
        self, weights: Sequence[int], owed: Sequence[Fraction], num_rows: int, table_rows: int = TABLE_ROWS
    ) -> None:
        self._weights = np.array(weights)
        self._owed = list(owed)
        total = sum(weights)
        dealing = _by_deadline(weights, owed)
        parts = [_take(dealing, min(total, num_rows, table_rows))]
        repeats = self._is_period(parts[0])
        # where a source was owed something the first period is unlike the others, or more where it was owed much
        while not repeats and (length := len(parts) * total) < num_rows and length + total <= table_rows:
            parts.append(_take(dealing, total))
            repeats = self._is_period(parts[-1])
        self._sources = np.concatenate(parts)
        self._places = [np.flatnonzero(self._sources == source) for source in range(len(weights))]
        self._numbers = np.empty_like(self._sources)
        for places in self._places:
            self._numbers[places] = np.arange(len(places))
        self._period = total if repeats else 0
        self._given = self._in_table(len(self._sources))
        self.bound = 1.0 if repeats or num_rows <= len(self._sources) else max(1.0, self._after.bound)
        """Rows by which a source's number of rows may differ from its share; debts from before apart."""

    @cached_property
    def _after(self) -> SplitTree:
        """Deals the rows after a table that does not repeat."""
        weights = self._weights.tolist()
        share = Fraction(len(self._sources), sum(weights))
        left = zip(self._owed, weights, self._given.tolist(), strict=True)
        return SplitTree(weights, [owing + weight * share - given for owing, weight, given in left])

    def deal(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The sources of rows, and their numbers among the rows of their source.

        Args:
            rows: numbers of rows, from 0; shape [rows].

        Returns:
            Indices of sources, and numbers from 0, each of the same shape.
        """
        if self._period:
            periods = self._periods_after_table(rows + 1)
            places = rows - periods * self._period
            sources = self._sources[places]
            return sources, self._numbers[places] + periods * self._weights[sources]
        inside = rows < len(self._sources)
        sources, numbers = np.empty_like(rows), np.empty_like(rows)
        sources[inside], numbers[inside] = self._sources[rows[inside]], self._numbers[rows[inside]]
        if not inside.all():
            later, count = self._after.deal(rows[~inside] - len(self._sources))
            sources[~inside], numbers[~inside] = later, self._given[later] + count
        return sources, numbers

    def counts(self, rows: Rows) -> list[Rows]:
        """How many of the first ``rows`` rows each source gets; of several numbers of rows at once, where an array."""
        if isinstance(rows, int):
            return [int(count) for count in self._counts(np.array(rows))]
        return self._counts(rows)

    def _counts(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        if self._period:
            periods = self._periods_after_table(rows)
            given = self._in_table(rows - periods * self._period)
            return [count + periods * weight for count, weight in zip(given, self._weights, strict=True)]
        given = self._in_table(rows)
        if (rows <= len(self._sources)).all():
            return list(given)
        later = self._after.counts(np.maximum(rows - len(self._sources), 0))
        return [count + more for count, more in zip(given, later, strict=True)]

    def _periods_after_table(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """By how many periods to go back so that the first ``rows`` rows end within the table."""
        return np.maximum(0, -((len(self._sources) - rows) // self._period))

    def _in_table(self, rows: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """How many of the table's first rows each source gets; shape [sources] and that of ``rows``."""
        return np.array([np.searchsorted(places, rows) for places in self._places])

    def _is_period(self, dealt: NDArray[np.int64]) -> bool:
        """Whether every source ends as far from its share as it began, from where all is as before."""
        return np.array_equal(np.bincount(dealt, minlength=len(self._weights)), self._weights)


def _by_deadline(weights: Sequence[int], owed: Sequence[Fraction]) -> Iterator[int]:
    """The source of one row after another, without end."""
    total = sum(weights)
    missing = sum((owing for owing, weight in zip(owed, weights, strict=True) if weight), Fraction(0))
    # the moment at which a source's share passes a whole number j: (j - x) W / w = (j x step - before) / weight
    lines = []
    for weight, owing in zip(weights, owed, strict=True):
        balanced = owing - missing * Fraction(weight, total)  # what sources without a weight are owed goes to all
        lines.append((balanced.denominator * total, balanced.numerator * total, weight * balanced.denominator))
    waiting = [(-before // weight, source) for source, (_, before, weight) in enumerate(lines) if weight]
    heapq.heapify(waiting)  # the rows at which a source's next one may come
    may: list[tuple[int, int]] = []  # of those that may be next, the rows before which they have to come
    given = [0] * len(weights)
    row = 0
    while True:
        while waiting and waiting[0][0] <= row:
            _, source = heapq.heappop(waiting)
            step, before, weight = lines[source]
            given[source] += 1
            heapq.heappush(may, (-((before - given[source] * step) // weight), source))
        _, source = heapq.heappop(may)
        yield source
        step, before, weight = lines[source]
        heapq.heappush(waiting, ((given[source] * step - before) // weight, source))
        row += 1


def _take(dealing: Iterator[int], rows: int) -> NDArray[np.int64]:
    return np.fromiter(islice(dealing, rows), np.int64, rows)
