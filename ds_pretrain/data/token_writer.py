"""Writing token files in the format that ``indexed`` tells of: an index of lengths at hand, or both files."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import DTypeLike, NDArray

from ds_pretrain.data.indexed import HEADER, MAGIC, MAX_DOCUMENT_TOKENS, bin_path, idx_path, sync_path
from ds_pretrain.errors import DataError

_WRITE_CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}
_INDEX_BLOCK = 1 << 20  # documents turned into index entries at once: bounds the memory of a commit


def write_index(path: Path, dtype: np.dtype[Any], lengths: NDArray[np.int32]) -> None:
    """Write the ``.idx`` of a ``.bin`` of which each sequence is a document. Memory: a block, whatever the corpus.

    Args:
        path: file to write.
        dtype: type of the token ids, one that Megatron has a code for.
        lengths: tokens of each document, which may be mapped from a file; shape [documents].
    """
    count = len(lengths)
    with path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, 1, _WRITE_CODES[dtype.name], count, count + 1))
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

    Both files appear under their names at the end of the ``with`` block, or neither does. What a kill leaves is
    written over by the next writer of the same corpus.

    Memory: 4 bytes a document.

    Args:
        prefix: path without ``.bin`` and ``.idx``; files of that name are replaced at the end.
        dtype: type of the stored token ids, one that Megatron has a code for (see ``token_dtype``).

    Raises:
        DataError: from any method, where the type has no code, another process writes the same corpus, or the disk
            cannot be written.
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
        self._partial = prefix.with_name(f".{prefix.name}.bin.partial")
        self._partial_index = prefix.with_name(f".{prefix.name}.idx.partial")
        self._lock = FileLock(prefix.with_name(f".{prefix.name}.lock"))
        self._file: IO[bytes]

    @property
    def num_documents(self) -> int:
        """Documents that are complete so far."""
        return len(self._lengths)

    def __enter__(self) -> TokenFileWriter:
        self._write(lambda: self.prefix.parent.mkdir(parents=True, exist_ok=True))
        self._write(self._acquire)
        try:
            self._file = self._write(lambda: self._partial.open("wb", buffering=1 << 20))
        except DataError:
            self._unlock()
            raise
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
            self._unlock()

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise DataError(
                f"{bin_path(self.prefix)}: another process is writing it; wait for it, or choose another output"
            ) from None

    def _unlock(self) -> None:
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

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
