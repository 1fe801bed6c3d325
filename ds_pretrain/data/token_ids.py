"""Whether the token ids of a corpus are ids of its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_pretrain.data.indexed import TokenFile, bin_path
from ds_pretrain.errors import DataError

_BLOCK_TOKENS = 1 << 20


def check_ids(corpus: TokenFile, vocab_size: int | None, at_most: int | None = None) -> int:
    """The largest token id of a corpus.

    Args:
        corpus: the files, opened.
        vocab_size: entries of the tokenizer; None refuses negative ids alone.
        at_most: look at about so many tokens, in blocks evenly spread over the corpus; None looks at all.

    Raises:
        DataError: an id is not below ``vocab_size``; names the first, and its document.
    """
    blocks = -(-corpus.num_tokens // _BLOCK_TOKENS)
    every = 1 if at_most is None else max(1, blocks * _BLOCK_TOKENS // max(at_most, _BLOCK_TOKENS))
    largest = 0
    for start in range(0, corpus.num_tokens, _BLOCK_TOKENS * every):
        block = corpus.tokens[start : start + _BLOCK_TOKENS].view(np.ndarray)
        largest = max(largest, int(block.max()))
        if int(block.min()) < 0 or (vocab_size is not None and largest >= vocab_size):
            wrong = block < 0
            if vocab_size is not None:
                wrong |= block >= vocab_size
            raise _beyond(corpus, start + int(np.argmax(wrong)), vocab_size)
    return largest


@dataclass(frozen=True)
class IdLimit:
    """What the token ids of a run's corpora must be below.

    Args:
        vocab_size: entries of the tokenizer.
        corpora: of every source, in order.
    """

    vocab_size: int
    corpora: Sequence[TokenFile]

    def first_beyond(self, tokens: NDArray[Any]) -> tuple[int, int] | None:
        """Row and column of the first id that is not allowed, in rows that were read; None where all are."""
        if tokens.max() < self.vocab_size and (tokens.dtype.kind == "u" or tokens.min() >= 0):
            return None
        row, column = np.unravel_index(np.argmax(self._wrong(tokens)), tokens.shape)
        return int(row), int(column)

    def replaced(self, tokens: NDArray[Any]) -> NDArray[Any]:
        """The rows with 0 for every id that is not allowed."""
        return np.where(self._wrong(tokens), 0, tokens)

    def error(self, source: int, position: int) -> DataError:
        """What to tell of the token at ``position`` of a source's file."""
        return _beyond(self.corpora[source], position, self.vocab_size)

    def _wrong(self, tokens: NDArray[Any]) -> NDArray[np.bool_]:
        wrong: NDArray[np.bool_] = (tokens < 0) | (tokens >= self.vocab_size)
        return wrong


def _beyond(corpus: TokenFile, position: int, vocab_size: int | None) -> DataError:
    allowed = "0 and more" if vocab_size is None else f"0 to {vocab_size - 1}, below the vocabulary of {vocab_size}"
    return DataError(
        f"{bin_path(corpus.prefix)}: token {position}, in document {corpus.document_at(position)}: found id "
        f"{int(corpus.tokens[position])}; allowed: {allowed}; use the tokenizer that the corpus was made with, or "
        "prepare it again"
    )
