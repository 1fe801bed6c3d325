"""The training stream: a token file's windows, shuffled anew in every epoch and laid end to end.

A window is ``max_seq_len`` consecutive positions: their tokens as inputs, and the tokens one on as targets.
Stream position p lies in epoch p // positions_per_epoch, there in the slot q // max_seq_len, and the
epoch's permutation says which window stands in that slot. So any position is found in constant time, from
nothing but the seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ds_pretrain.data.permutation import Permutation
from ds_pretrain.errors import DataError


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

    def read(self, starts: NDArray[np.int64], seq_len: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Reads rows of the stream.

        Args:
            starts: stream position at which each row starts, shape [rows].
            seq_len: positions of a row.

        Returns:
            Inputs and targets, each of shape [rows, seq_len]; row r holds the positions from starts[r] on.
        """
        if not len(starts):
            return np.empty((0, seq_len), dtype=np.int64), np.empty((0, seq_len), dtype=np.int64)
        slots, offsets = np.divmod(starts, self.max_seq_len)
        crossing = offsets + seq_len > self.max_seq_len
        if not crossing.any():
            return self._read_inside(self.windows(slots) * self.max_seq_len + offsets, seq_len)
        inputs = np.empty((len(starts), seq_len), dtype=np.int64)
        targets = np.empty_like(inputs)
        inside = ~crossing
        if inside.any():
            at = self.windows(slots[inside]) * self.max_seq_len + offsets[inside]
            inputs[inside], targets[inside] = self._read_inside(at, seq_len)
        inputs[crossing], targets[crossing] = self._read_crossing(slots[crossing], offsets[crossing], seq_len)
        return inputs, targets

    def _read_inside(self, at: NDArray[np.int64], seq_len: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows inside one window: one gather of the seq_len + 1 tokens that start at each token of ``at``."""
        step = self._tokens.strides[0]
        runs = as_strided(self._tokens, (len(self._tokens) - seq_len, seq_len + 1), (step, step), writeable=False)[at]
        return runs[:, :-1].astype(np.int64), runs[:, 1:].astype(np.int64)

    def _read_crossing(
        self, slots: NDArray[np.int64], offsets: NDArray[np.int64], seq_len: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows that go on in the next slots' windows: token by token."""
        positions = offsets[:, None] + np.arange(seq_len)
        row_slots = slots[:, None] + np.arange(int(positions.max()) // self.max_seq_len + 1)
        first = self.windows(row_slots) * self.max_seq_len
        ahead, offset = np.divmod(positions, self.max_seq_len)
        at = np.take_along_axis(first, ahead, axis=1) + offset
        return self._tokens[at].astype(np.int64), self._tokens[at + 1].astype(np.int64)
