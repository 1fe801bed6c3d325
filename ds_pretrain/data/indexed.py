"""Token files in Megatron's ``.bin``/``.idx`` format: one flat array of token ids and an index of its documents.

``<prefix>.bin`` holds the token ids of all documents end to end. ``<prefix>.idx`` holds, little-endian:

    magic "MMIDIDX\\0\\0" | version 1: uint64 | dtype code: uint8 | sequences: uint64 | document bounds: uint64
    length of each sequence: int32 | byte offset of each sequence: int64 | document bounds, in sequences: int64

``token_writer`` writes it, with Megatron's dtype codes. Megatron and DeepSpeed disagree on the codes 6, 7 and 8, so on
reading the end of the last sequence, which has to be the end of the ``.bin``, settles which of the two wrote the file.

Opening looks at the header, the sizes and the ends of the index: its cost does not grow with the corpus.
``index_check`` reads the rest.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_pretrain.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
# Code -> the types that Megatron or DeepSpeed means by it and that can hold token ids. Under 6 and 7 Megatron
# stores floating-point numbers, which are no tokens.
_READ_TYPES: dict[int, tuple[str, ...]] = {
    1: ("uint8",),
    2: ("int8",),
    3: ("int16",),
    4: ("int32",),
    5: ("int64",),
    6: ("uint16",),
    7: ("uint32",),
    8: ("uint16", "uint64"),
}
MAX_DOCUMENT_TOKENS = 2**31 - 1
_UINT16_BELOW = 65_500  # Megatron's rule


def bin_path(prefix: Path) -> Path:
    """The file of token ids that belongs to ``prefix``."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: Path) -> Path:
    """The index file that belongs to ``prefix``."""
    return Path(f"{prefix}.idx")


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The type that token ids of a vocabulary are stored in: uint16 below 65,500 entries, else int32."""
    return np.dtype(np.uint16 if vocab_size < _UINT16_BELOW else np.int32)


def sync_path(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk (``fsync``)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, eq=False)
class TokenFile:
    """A corpus of token ids, mapped into memory, not loaded.

    Args:
        prefix: path without ``.bin`` and ``.idx``.
        tokens: every token id of the corpus, flat, read-only; shape [num_tokens].
        sequence_lengths: tokens of each sequence; shape [sequences].
        sequence_offsets: byte of the ``.bin`` at which each sequence begins; shape [sequences].
        document_bounds: first sequence of each document, then the number of sequences; shape [num_documents + 1].
            None where each sequence is a document.
    """

    prefix: Path
    tokens: np.memmap[Any, np.dtype[Any]]
    sequence_lengths: NDArray[np.int32]
    sequence_offsets: NDArray[np.int64]
    document_bounds: NDArray[np.int64] | None

    @classmethod
    def open(cls, prefix: Path) -> TokenFile:
        """Map ``<prefix>.bin`` and ``<prefix>.idx``, checking the ends of each against the other.

        Cost: a few pages of the index, whatever the corpus. Damage inside the index is found by ``check_index``.

        Raises:
            DataError: a file is missing, truncated, of another format, or the two do not belong together.
        """
        for path in (idx_path(prefix), bin_path(prefix)):
            if not path.is_file():
                hint = "give the path without the ending" if prefix.suffix in {".bin", ".idx"} else "check the path"
                raise DataError(
                    f"{path}: not found; a corpus is two files, <path>.bin and <path>.idx: {hint}, "
                    "or make them with `ds-pretrain prepare`"
                )
        code, lengths, offsets, bounds = _read_index(idx_path(prefix))
        dtype = _settle_dtype(prefix, code, lengths, offsets)
        tokens = np.memmap(bin_path(prefix), dtype=dtype, mode="r")
        return cls(prefix, tokens, lengths, offsets, bounds)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored token ids."""
        return self.tokens.dtype

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole corpus, ends of documents included."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Documents of the corpus."""
        return len(self.sequence_lengths) if self.document_bounds is None else len(self.document_bounds) - 1

    def document_at(self, token: int) -> int:
        """The document that holds a token of the corpus, counted from 0; a few pages of the index are read."""
        # bisect, because numpy's searchsorted would copy the whole index: behind its header nothing is aligned
        sequence = bisect_right(self.sequence_offsets, token * self.dtype.itemsize) - 1
        return sequence if self.document_bounds is None else bisect_right(self.document_bounds, sequence) - 1

    @cached_property
    def document_lengths(self) -> NDArray[np.int32]:
        """Tokens of each document, which is one sequence or several (Megatron's sentences); shape [num_documents].

        Reads the whole index.
        """
        if self.document_bounds is None or np.all(self.document_bounds[1:] - self.document_bounds[:-1] == 1):
            return self.sequence_lengths
        ends = np.concatenate(([0], np.cumsum(self.sequence_lengths, dtype=np.int64)))
        lengths = np.diff(ends[self.document_bounds])
        if lengths.max(initial=0) > MAX_DOCUMENT_TOKENS:
            raise DataError(
                f"{idx_path(self.prefix)}: a document of more than {MAX_DOCUMENT_TOKENS:,} tokens; split it"
            )
        return lengths.astype(np.int32)


def _read_index(path: Path) -> tuple[int, NDArray[np.int32], NDArray[np.int64], NDArray[np.int64] | None]:
    """Dtype code, sequence lengths, byte offsets and document bounds of an ``.idx`` file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(HEADER.size)
    if header[: len(MAGIC)] != MAGIC:
        raise DataError(
            f"{path}: found {header[: len(MAGIC)]!r} at its start; allowed: Megatron's memory-mapped index (MMIDIDX); "
            "prepare the corpus again, in Megatron's or gpt-neox's tools with --dataset-impl mmap"
        )
    if size < HEADER.size:
        raise DataError(f"{path}: truncated at {size} bytes, inside its header; copy or prepare the corpus again")
    _, version, code, sequences, num_bounds = HEADER.unpack(header)
    if version != 1:
        raise DataError(f"{path}: found index version {version}; allowed: 1; prepare the corpus again")
    if code not in _READ_TYPES:
        raise DataError(f"{path}: found dtype code {code}; allowed: 1 to 8; prepare the corpus again")
    expected = HEADER.size + 12 * sequences + 8 * num_bounds
    # Megatron's multimodal corpora append one byte of mode a sequence; text needs none of them.
    if size not in {expected, expected + sequences}:
        raise DataError(
            f"{path}: truncated or damaged: found {size:,} bytes where {sequences:,} sequences and {num_bounds:,} "
            f"document bounds make {expected:,}; copy or prepare the corpus again"
        )
    if sequences == 0:
        raise DataError(f"{path}: holds no tokens; prepare the corpus again")
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    offset = HEADER.size
    lengths = raw[offset : offset + 4 * sequences].view("<i4")
    offsets = raw[offset + 4 * sequences : offset + 12 * sequences].view("<i8")
    bounds = raw[offset + 12 * sequences : expected].view("<i8")
    if num_bounds <= 1:  # DeepSpeed's builder, where end_document was never called
        return code, lengths, offsets, None
    if bounds[0] != 0 or bounds[-1] != sequences:
        raise DataError(
            f"{path}: its document bounds run from {bounds[0]:,} to {bounds[-1]:,}; allowed: from 0 to {sequences:,}; "
            "prepare the corpus again"
        )
    return code, lengths, offsets, bounds


def _settle_dtype(prefix: Path, code: int, lengths: NDArray[np.int32], offsets: NDArray[np.int64]) -> np.dtype[Any]:
    """The type that ``code`` means in this corpus: its last sequence then ends where the ``.bin`` does."""
    size = bin_path(prefix).stat().st_size
    if size == 0 and offsets[-1] == 0 and lengths[-1] == 0:
        raise DataError(f"{idx_path(prefix)}: holds no tokens; prepare the corpus again")
    # the last one with tokens: of an empty one, whatever the type, the end is its beginning
    last = max(bisect_left(offsets, size) - 1, 0)

    def end(sequence: int, itemsize: int) -> int:
        return int(offsets[sequence]) + int(lengths[sequence]) * itemsize

    def fits(itemsize: int) -> bool:
        return size == end(last, itemsize) == end(-1, itemsize) and size % itemsize == 0 and int(offsets[0]) == 0

    for name in _READ_TYPES[code]:
        if fits(np.dtype(name).itemsize):
            return np.dtype(name).newbyteorder("<")
    if code in {6, 7} and fits(8):
        raise DataError(f"{bin_path(prefix)}: holds floating-point numbers (dtype code {code}), which are not tokens")
    allowed = " or ".join(f"{end(-1, np.dtype(name).itemsize):,} ({name})" for name in _READ_TYPES[code])
    raise DataError(
        f"{bin_path(prefix)}: found {size:,} bytes where its .idx, with dtype code {code}, begins at byte "
        f"{int(offsets[0]):,} and ends at {allowed}; one of the two is damaged or of another corpus: copy or prepare "
        "both again"
    )
