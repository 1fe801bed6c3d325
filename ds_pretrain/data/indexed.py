"""Token files in Megatron's ``.bin``/``.idx`` format: one flat array of token ids and an index of its documents.

``<prefix>.bin`` holds the token ids of all documents end to end. ``<prefix>.idx`` holds, little-endian:

    magic "MMIDIDX\\0\\0" | version 1: uint64 | dtype code: uint8 | sequences: uint64 | document bounds: uint64
    length of each sequence: int32 | byte offset of each sequence: int64 | document bounds, in sequences: int64

Files are written with Megatron's dtype codes. Megatron and DeepSpeed disagree on the codes 6, 7 and 8, so on reading
the bytes per token that the ``.bin`` and the lengths imply settle which of the two wrote the file.
"""

from __future__ import annotations

import os
import struct
import uuid
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ds_pretrain.errors import DataError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
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
_WRITE_CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}
MAX_DOCUMENT_TOKENS = 2**31 - 1
_INDEX_BLOCK = 1 << 20  # documents turned into index entries at once: bounds the memory of a commit
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
        document_bounds: first sequence of each document, then the number of sequences; shape [num_documents + 1].
    """

    prefix: Path
    tokens: np.memmap[Any, np.dtype[Any]]
    sequence_lengths: NDArray[np.int32]
    document_bounds: NDArray[np.int64]

    @classmethod
    def open(cls, prefix: Path) -> TokenFile:
        """Map ``<prefix>.bin`` and ``<prefix>.idx``, checking each against the other.

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
        code, lengths, pointers, bounds = _read_index(idx_path(prefix))
        dtype = _settle_dtype(prefix, code, lengths, pointers)
        tokens = np.memmap(bin_path(prefix), dtype=dtype, mode="r")
        return cls(prefix, tokens, lengths, bounds)

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
        return len(self.document_bounds) - 1

    @cached_property
    def document_lengths(self) -> NDArray[np.int32]:
        """Tokens of each document, which is one sequence or several (Megatron's sentences); shape [num_documents]."""
        one_sequence_each = np.all(self.document_bounds[1:] - self.document_bounds[:-1] == 1)
        if one_sequence_each:
            return self.sequence_lengths
        ends = np.concatenate(([0], np.cumsum(self.sequence_lengths, dtype=np.int64)))
        lengths = np.diff(ends[self.document_bounds])
        if lengths.max(initial=0) > MAX_DOCUMENT_TOKENS:
            raise DataError(
                f"{idx_path(self.prefix)}: a document of more than {MAX_DOCUMENT_TOKENS:,} tokens; split it"
            )
        return lengths.astype(np.int32)


def _read_index(path: Path) -> tuple[int, NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Dtype code, sequence lengths, byte offsets and document bounds of an ``.idx`` file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if header[: len(_MAGIC)] != _MAGIC:
        raise DataError(
            f"{path}: found {header[: len(_MAGIC)]!r} at its start; allowed: Megatron's memory-mapped index (MMIDIDX); "
            "prepare the corpus again, in Megatron's or gpt-neox's tools with --dataset-impl mmap"
        )
    if size < _HEADER.size:
        raise DataError(f"{path}: truncated at {size} bytes, inside its header; copy or prepare the corpus again")
    _, version, code, sequences, num_bounds = _HEADER.unpack(header)
    if version != 1:
        raise DataError(f"{path}: found index version {version}; allowed: 1; prepare the corpus again")
    if code not in _READ_TYPES:
        raise DataError(f"{path}: found dtype code {code}; allowed: 1 to 8; prepare the corpus again")
    expected = _HEADER.size + 12 * sequences + 8 * num_bounds
    # Megatron's multimodal corpora append one byte of mode a sequence; text needs none of them.
    if size not in {expected, expected + sequences}:
        raise DataError(
            f"{path}: truncated or damaged: found {size:,} bytes where {sequences:,} sequences and {num_bounds:,} "
            f"document bounds make {expected:,}; copy or prepare the corpus again"
        )
    if sequences == 0:
        raise DataError(f"{path}: holds no tokens; prepare the corpus again")
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    offset = _HEADER.size
    lengths = raw[offset : offset + 4 * sequences].view("<i4")
    pointers = raw[offset + 4 * sequences : offset + 12 * sequences].view("<i8")
    bounds = raw[offset + 12 * sequences : expected].view("<i8")
    if num_bounds <= 1:  # DeepSpeed's builder, where end_document was never called: each sequence is a document
        return code, lengths, pointers, np.arange(sequences + 1, dtype=np.int64)
    if bounds[0] != 0 or bounds[-1] != sequences or np.any(bounds[1:] < bounds[:-1]):
        raise DataError(f"{path}: its document bounds do not rise from 0 to {sequences:,}; prepare the corpus again")
    return code, lengths, pointers, bounds


def _settle_dtype(prefix: Path, code: int, lengths: NDArray[np.int32], pointers: NDArray[np.int64]) -> np.dtype[Any]:
    """The type that ``code`` means in this corpus, by the bytes per token that the ``.bin`` really has."""
    size = bin_path(prefix).stat().st_size
    total = int(lengths.sum(dtype=np.int64))
    if total == 0:
        raise DataError(f"{idx_path(prefix)}: holds no tokens; prepare the corpus again")
    for name in _READ_TYPES[code]:
        dtype = np.dtype(name).newbyteorder("<")
        last_end = int(pointers[-1]) + int(lengths[-1]) * dtype.itemsize
        if size == total * dtype.itemsize == last_end:
            return dtype
    if code in {6, 7} and size == 8 * total:
        raise DataError(f"{bin_path(prefix)}: holds floating-point numbers (dtype code {code}), which are not tokens")
    allowed = " or ".join(f"{total * np.dtype(name).itemsize:,} ({name})" for name in _READ_TYPES[code])
    raise DataError(
        f"{bin_path(prefix)}: found {size:,} bytes where its .idx, of {total:,} tokens with dtype code {code}, "
        f"makes {allowed}; one of the two is truncated or of another corpus: copy or prepare both again"
    )


def write_index(path: Path, dtype: np.dtype[Any], lengths: NDArray[np.int32]) -> None:
    """Write the ``.idx`` of a ``.bin`` of which each sequence is a document. Memory: a block, whatever the corpus.

    Args:
        path: file to write.
        dtype: type of the token ids, one that Megatron has a code for.
        lengths: tokens of each document, which may be mapped from a file; shape [documents].
    """
    count = len(lengths)
    with path.open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, 1, _WRITE_CODES[dtype.name], count, count + 1))
        for start in range(0, count, _INDEX_BLOCK):
            file.write(lengths[start : start + _INDEX_BLOCK].astype("<i4").tobytes())
        position = 0
        for start in range(0, count, _INDEX_BLOCK):
            ends = position + np.cumsum(lengths[start : start + _INDEX_BLOCK], dtype=np.int64) * dtype.itemsize
            file.write(np.concatenate(([position], ends[:-1])).astype("<i8").tobytes())
            position = int(ends[-1])
        for start in range(0, count + 1, _INDEX_BLOCK):
            file.write(np.arange(start, min(start + _INDEX_BLOCK, count + 1), dtype="<i8").tobytes())


class TokenFileWriter:
    """Writes one corpus of token ids that are at hand; ``prepare`` makes one of text.

    Both files appear under their names at the end of the ``with`` block, or neither does.

    Memory: 4 bytes a document.

    Args:
        prefix: path without ``.bin`` and ``.idx``; files of that name are replaced at the end.
        dtype: type of the stored token ids, one that Megatron has a code for (see ``token_dtype``).

    Raises:
        DataError: from any method, where the type has no code or the disk cannot be written.
    """

    def __init__(self, prefix: Path, dtype: DTypeLike) -> None:
        self.prefix = prefix
        self.dtype = np.dtype(dtype)
        if self.dtype.name not in _WRITE_CODES:
            raise DataError(
                f"{prefix}: token ids cannot be stored as {self.dtype.name}; allowed: {', '.join(_WRITE_CODES)}"
            )
        self.num_tokens = 0
        self._lengths = array("i")
        self._open_length = 0
        unique = uuid.uuid4().hex
        self._partial = prefix.with_name(f".{prefix.name}.{unique}.bin.partial")
        self._partial_index = prefix.with_name(f".{prefix.name}.{unique}.idx.partial")
        self._file: IO[bytes]

    @property
    def num_documents(self) -> int:
        """Documents that are complete so far."""
        return len(self._lengths)

    def __enter__(self) -> TokenFileWriter:
        self._write(lambda: self.prefix.parent.mkdir(parents=True, exist_ok=True))
        self._file = self._write(lambda: self._partial.open("wb", buffering=1 << 20))
        return self

    def append(self, document: NDArray[np.integer[Any]]) -> None:
        """Write one whole document; shape [tokens]."""
        self.write(document)
        self.end_document()

    def write(self, tokens: NDArray[np.integer[Any]]) -> None:
        """Write the next tokens of the document at hand; shape [tokens]."""
        if tokens.dtype != self.dtype:
            info = np.iinfo(self.dtype)
            if tokens.size and (tokens.min() < info.min or tokens.max() > info.max):
                raise DataError(
                    f"{bin_path(self.prefix)}: document {self.num_documents}: token ids from {tokens.min()} to "
                    f"{tokens.max()} do not fit {self.dtype.name}; use a type for the tokenizer's whole vocabulary"
                )
            tokens = tokens.astype(self.dtype)
        self._write(lambda: self._file.write(np.ascontiguousarray(tokens).data))
        self._open_length += tokens.size

    def end_document(self) -> None:
        """Close the document at hand."""
        if self._open_length > MAX_DOCUMENT_TOKENS:
            raise DataError(
                f"{bin_path(self.prefix)}: document {self.num_documents} has {self._open_length:,} tokens; allowed: "
                f"up to {MAX_DOCUMENT_TOKENS:,}; split it"
            )
        self._lengths.append(self._open_length)
        self.num_tokens += self._open_length
        self._open_length = 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                assert self._open_length == 0, "end_document() was not called for the last document"
                self._write(self._commit)
        finally:
            with suppress(OSError):  # on a full disk closing fails again; the first error is the one to report
                self._file.close()
            self._partial.unlink(missing_ok=True)
            self._partial_index.unlink(missing_ok=True)

    def _commit(self) -> None:
        self._file.close()
        write_index(self._partial_index, self.dtype, np.array(self._lengths, dtype="<i4"))
        sync_path(self._partial)
        sync_path(self._partial_index)
        # A .bin without .idx is no corpus: whatever moment a crash picks, old and new halves never stand together.
        idx_path(self.prefix).unlink(missing_ok=True)
        os.replace(self._partial, bin_path(self.prefix))
        os.replace(self._partial_index, idx_path(self.prefix))
        sync_path(self.prefix.parent)

    def _write(self, action: Callable[[], Any]) -> Any:
        """Run ``action``, naming the file where the disk refuses (it is full, or may not be written)."""
        try:
            return action()
        except OSError as error:
            raise DataError(
                f"{bin_path(self.prefix)}: cannot be written: {error.strerror or error}; free space or choose another "
                "output"
            ) from error
