"""A seeded permutation of range(size), computed on the fly: no index array, no start-up cost, any size.

A Feistel network on pairs (left, right) with left < rows and right < columns, rows x columns barely above
size: every round adds a keyed hash of one half to the other, modulo that half's size, which can be undone,
so the network is a bijection of range(rows x columns). What lands at or above ``size`` is sent through
again until it lands below (cycle walking), which keeps it a bijection of range(size). Source: Black,
Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002), generalized Feistel. Since rows x columns <
size + rows, all but one value in about sqrt(size) need a single pass.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6  # even, so that both halves are mixed equally often
_WORD = 8  # bytes of a round key
_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)  # odd, of mixed bits: spreads the low bits of a half over the high ones


class Permutation:
    """A bijection of range(size) chosen by a key.

    Args:
        size: number of values, at least 1.
        key: any number of integers, e.g. seed and epoch; keys that differ in any value or in length give
            unrelated bijections.
    """

    def __init__(self, size: int, *key: int) -> None:
        if size < 1:
            raise ValueError(f"size: found {size}; a permutation needs at least 1 value")
        self.size = size
        self._rows = math.isqrt(size - 1) + 1
        self._columns = -(-size // self._rows)
        # A hash of the text, so that (1, 2), (1, 2, 0) and integers beyond 64 bits all differ.
        text = ",".join(str(int(value)) for value in (size, *key))
        digest = hashlib.blake2b(text.encode(), digest_size=_ROUNDS * _WORD).digest()
        self._round_keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def __call__(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the values of ``index`` go.

        Args:
            index: int64 values in range(size), any shape.

        Returns:
            int64 values in range(size), the same shape; distinct for distinct inputs.

        Raises:
            IndexError: a value outside range(size).
        """
        values = index.astype(np.uint64)  # a negative index becomes a huge one
        if (values >= self.size).any():  # such a value might walk in a circle outside the range for ever
            raise IndexError(f"index outside range({self.size})")
        values = self._network(values)
        while (outside := values >= self.size).any():
            values[outside] = self._network(values[outside])
        return values.astype(np.int64)

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        columns = np.uint64(self._columns)
        left = values // columns
        right = values - left * columns
        for number in range(0, _ROUNDS, 2):
            left = (left + _hash(right, self._round_keys[number])) % np.uint64(self._rows)
            right = (right + _hash(left, self._round_keys[number + 1])) % columns
        return left * columns + right


def _hash(half: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """63 mixed bits of ``half`` under ``key``; one bit stays free, so that adding a half cannot overflow."""
    mixed = half ^ key
    mixed *= _MULTIPLIER
    mixed ^= mixed >> np.uint64(32)
    mixed *= _MULTIPLIER
    mixed ^= mixed >> np.uint64(32)
    mixed >>= np.uint64(1)
    return mixed
