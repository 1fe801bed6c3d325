"""Whether an index says what its token file holds, from its first entry to its last."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ds_pretrain.data.indexed import TokenFile, idx_path
from ds_pretrain.errors import DataError

_BLOCK = 1 << 20


def check_index(corpus: TokenFile) -> None:
    """Read all of an index, 20 bytes a document, which opening a corpus does not.

    Every length has to be 0 or more, every sequence to begin where the one before it ends, and the bounds of documents
    to rise: with their ends, which opening has checked, they then cover every sequence once.

    Memory: some 50 MB, whatever the corpus.

    Args:
        corpus: the files, opened.

    Raises:
        DataError: an entry is wrong; names the first of its kind.
    """
    path, itemsize, position = idx_path(corpus.prefix), corpus.dtype.itemsize, 0
    for start, stop in _blocks(len(corpus.sequence_lengths)):
        lengths, offsets = corpus.sequence_lengths[start:stop], corpus.sequence_offsets[start:stop]
        if (wrong := _first(lengths < 0)) is not None:
            raise DataError(
                f"{path}: sequence {start + wrong:,}: has {lengths[wrong]:,} tokens; allowed: 0 and more; "
                "copy or prepare the corpus again"
            )
        ends = position + np.cumsum(lengths, dtype=np.int64) * itemsize
        expected = np.concatenate(([position], ends[:-1]))
        if (wrong := _first(offsets != expected)) is not None:
            raise DataError(
                f"{path}: sequence {start + wrong:,}: begins at byte {offsets[wrong]:,} of the .bin, where the lengths "
                f"before it make {expected[wrong]:,}; copy or prepare the corpus again"
            )
        position = int(ends[-1])
    bounds = corpus.document_bounds
    for start, stop in _blocks(0 if bounds is None else len(bounds) - 1):
        assert bounds is not None
        block = bounds[start : stop + 1]
        if (wrong := _first(block[1:] < block[:-1])) is not None:
            raise DataError(
                f"{path}: document {start + wrong:,}: its sequences run from {block[wrong]:,} to {block[wrong + 1]:,}; "
                "allowed: bounds of documents that rise; copy or prepare the corpus again"
            )


def _blocks(count: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))


def _first(wrong: np.ndarray) -> int | None:
    """Index of the first True."""
    index = int(np.argmax(wrong))
    return index if wrong[index] else None
