"""Gathers the tokens of rows that lie in several sources, for several steps at once where steps are small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_pretrain.data.stream import Places, TokenStream

_TOKENS_AT_ONCE = 1 << 16  # read in one go, where a step has fewer: what a nearby cache holds


class RowGatherer:
    """Reads rows; tokens keep the files' type, two bytes each as a rule.

    Args:
        streams: the training stream of every source.
    """

    def __init__(self, streams: Sequence[TokenStream]) -> None:
        self._streams = tuple(streams)
        common = np.result_type(*(stream.dtype for stream in streams))
        self._dtype = common if common.kind in "iu" else np.dtype(np.int64)

    def read(
        self, sources: NDArray[np.int64], starts: NDArray[np.int64], row_len: int, rows: int
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Inputs and targets, step after step, each when it is asked for.

        Args:
            sources: indices of the rows' sources; shape [steps x rows].
            starts: positions in their streams; of the same shape.
            row_len: tokens of a row.
            rows: of a step.

        Returns:
            Token ids of shape [rows, row_len], and those one position further on.
        """
        shares = [share for share in self._shares(sources, starts, row_len, rows) if len(share.rows)]
        steps = len(sources) // rows
        at_once = max(1, _TOKENS_AT_ONCE // (rows * row_len))
        for first in range(0, steps, at_once):
            several = range(first, min(first + at_once, steps))
            inputs, targets = self._read_rows(shares, several, rows, row_len)
            for begin in range(0, len(inputs), rows):
                yield inputs[begin : begin + rows], targets[begin : begin + rows]

    def _shares(
        self, sources: NDArray[np.int64], starts: NDArray[np.int64], row_len: int, per_step: int
    ) -> Iterator[_Share]:
        edges = np.arange(0, len(sources) + 1, per_step)
        for source, stream in enumerate(self._streams):
            rows = np.flatnonzero(sources == source)
            places = stream.locate(starts[rows], row_len)
            yield _Share(stream, rows, places, np.searchsorted(rows, edges).tolist())

    def _read_rows(
        self, shares: Sequence[_Share], steps: range, rows: int, row_len: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        if len(shares) == 1 and shares[0].stream.dtype == self._dtype:
            return shares[0].stream.read_places(shares[0].of(steps)[1], row_len)
        first, size = steps.start * rows, len(steps) * rows
        if all(share.places.tails is None for share in shares):
            runs = np.empty((size, row_len + 1), dtype=self._dtype)
            for share in shares:
                chosen, places = share.of(steps)
                runs[chosen - first] = share.stream.read_runs(places.at, row_len)
            return runs[:, :-1], runs[:, 1:]
        inputs = np.empty((size, row_len), dtype=self._dtype)
        targets = np.empty_like(inputs)
        for share in shares:
            chosen, places = share.of(steps)
            inputs[chosen - first], targets[chosen - first] = share.stream.read_places(places, row_len)
        return inputs, targets


@dataclass(frozen=True, eq=False)
class _Share:
    """One source's rows of consecutive steps.

    Args:
        stream: the source's.
        rows: number of each row among those of all the steps.
        places: of the rows.
        edges: where each step's rows begin, and where the last one's end.
    """

    stream: TokenStream
    rows: NDArray[np.int64]
    places: Places
    edges: list[int]

    def of(self, steps: range) -> tuple[NDArray[np.int64], Places]:
        """Numbers and places of the rows of some steps, which count from the first of the share."""
        part = slice(self.edges[steps.start], self.edges[steps.stop])
        return self.rows[part], self.places.part(part)
