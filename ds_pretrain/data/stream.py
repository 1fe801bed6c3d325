"""The training stream: a token file's windows, shuffled anew in every epoch and laid end to end.

A window is ``max_seq_len`` consecutive positions: their tokens as inputs, and the tokens one on as targets.
Stream position p lies in epoch p // positions_per_epoch, there in the slot q // max_seq_len, and the
epoch's permutation says which window stands in that slot. So any position is found in constant time, from
nothing but the seed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_pretrain.data.permutation import Permutation
from ds_pretrain.errors import DataError


class Places(NamedTuple):
    """Where rows lie in a token file; a row that goes over a window's end goes on in the window of the next slot.

    Args:
        at: number of each row's first token, int64, shape [rows].
        tails: number of the token at which each row goes on behind its window's end, shape [rows]; of no meaning for a
            row that ends before. None where all do.
    """

    at: NDArray[np.int64]
    tails: NDArray[np.int64] | None

    def part(self, rows: slice) -> Places:
        """Those of some of the rows."""
        return Places(self.at[rows], None if self.tails is None else self.tails[rows])


class TokenStream:
    """The shuffled windows of one token file, as two aligned streams: inputs and targets.

    Args:
        tokens: the flat token file, any integer type, usually a memory map; it is never copied as a whole.
        max_seq_len: positions of a window.
        seed: chooses the order of the windows in every epoch.

    Raises:
        DataError: the file does not hold one window.
    """

    def __init__(self, tokens: NDArray[Any], max_seq_len: int, seed: int) -> None:
        # A plain view: indexing through np.memmap's subclass costs several times as much per call.
        self._tokens = tokens.view(np.ndarray)
        self._views: dict[int, NDArray[Any]] = {}
        self.max_seq_len = max_seq_len
        self.seed = seed
        self.num_windows = max(0, len(tokens) - 1) // max_seq_len
        if self.num_windows == 0:
            raise DataError(
                f"data.max_seq_len: found {max_seq_len}, but the corpus holds {len(tokens)} tokens "
                f"and one window needs max_seq_len + 1 = {max_seq_len + 1}; "
                "give a larger corpus or a shorter max_seq_len"
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored tokens."""
        dtype: np.dtype[Any] = self._tokens.dtype
        return dtype

    @property
    def positions_per_epoch(self) -> int:
        """Positions in one pass over the windows."""
        return self.num_windows * self.max_seq_len

    @property
    def dropped_tokens(self) -> int:
        """Tokens at the end of the file that are in no window, neither as input nor as target."""
        return len(self._tokens) - self.positions_per_epoch - 1

    def windows(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which windows stand in the given slots.

        Args:
            slots: stream position // max_seq_len, running on through the epochs; any shape.

        Returns:
            Numbers of the windows in the file, from 0; the same shape.
        """
        if slots.size == 0:
            return slots
        epochs = slots // self.num_windows
        windows = np.empty_like(slots)
        for epoch in range(int(epochs.min()), int(epochs.max()) + 1):  # one, or two where a batch crosses an epoch
            chosen = epochs == epoch
            order = Permutation(self.num_windows, self.seed, epoch)
            windows[chosen] = order(slots[chosen] - epoch * self.num_windows)
        return windows

    def locate(self, starts: NDArray[np.int64], seq_len: int) -> Places:
        """Where rows of the stream lie in the file.

        Args:
            starts: stream position at which each row starts, shape [rows].
            seq_len: positions of a row, at most ``max_seq_len``.
        """
        if seq_len > self.max_seq_len:
            raise ValueError(f"seq_len: found {seq_len}; a row has at most max_seq_len = {self.max_seq_len} positions")
        slots, offsets = np.divmod(starts, self.max_seq_len)
        crossing = offsets > self.max_seq_len - seq_len
        tails = None
        if crossing.any():
            tails = np.zeros_like(starts)
            tails[crossing] = self.windows(slots[crossing] + 1) * self.max_seq_len
        return Places(self.windows(slots) * self.max_seq_len + offsets, tails)

    def read_places(self, places: Places, seq_len: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Reads rows that have been located.

        Args:
            places: of the rows.
            seq_len: positions of a row, as located.

        Returns:
            Inputs and targets, each of shape [rows, seq_len], in the file's type.
        """
        if places.tails is None:
            runs = self.read_runs(places.at, seq_len)
            return runs[:, :-1], runs[:, 1:]
        heads = self.max_seq_len - places.at % self.max_seq_len  # windows lie at multiples of max_seq_len
        inputs = np.empty((len(places.at), seq_len), dtype=self.dtype)
        targets = np.empty_like(inputs)
        inside = np.flatnonzero(heads >= seq_len)
        runs = self.read_runs(places.at[inside], seq_len)
        inputs[inside], targets[inside] = runs[:, :-1], runs[:, 1:]
        rows = np.flatnonzero(heads < seq_len)
        ends = (column[rows].tolist() for column in (places.at, heads, places.tails))
        for row, at, head, tail in zip(rows.tolist(), *ends, strict=True):
            for whole, first in ((inputs, 0), (targets, 1)):
                whole[row, :head] = self._tokens[at + first : at + first + head]
                whole[row, head:] = self._tokens[tail + first : tail + first + seq_len - head]
        return inputs, targets

    def read_runs(self, at: NDArray[np.int64], seq_len: int) -> NDArray[Any]:
        """Reads rows that go over no window's end: one gather, of which inputs and targets are two views.

        Args:
            at: number of each row's first token, shape [rows].
            seq_len: positions of a row.

        Returns:
            Shape [rows, seq_len + 1], in the file's type.
        """
        return self._runs(seq_len)[at]

    def read(self, starts: NDArray[np.int64], seq_len: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Reads rows of the stream: ``locate``, then ``read_places``."""
        return self.read_places(self.locate(starts, seq_len), seq_len)

    def _runs(self, seq_len: int) -> NDArray[Any]:
        """Every run of seq_len + 1 tokens, by its first: a view, shape [tokens - seq_len, seq_len + 1]."""
        if seq_len not in self._views:
            tokens, step = self._tokens, self._tokens.itemsize
            shape = (len(tokens) - seq_len, seq_len + 1)
            self._views[seq_len] = np.ndarray(shape, tokens.dtype, tokens, strides=(step, step))
        return self._views[seq_len]
