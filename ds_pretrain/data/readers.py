"""Reading text, one document at a time: plain files, JSONL, CSV, Parquet and data sets, compressed or not.

Memory: one record of at most ``MAX_RECORD_BYTES``. A plain text file is one document of any length: beyond that it is
read in blocks, once to check it and once for its tokens.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from ds_pretrain.data.datasets_source import dataset_rows, dataset_texts
from ds_pretrain.data.sources import SourceFile
from ds_pretrain.errors import DataError

MAX_RECORD_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20
_BATCH_BYTES = 4 << 20
_STRING_TYPES = ("string", "large_string", "string_view")
_REMEDY = "split it, or make it a text file of its own, which is read in blocks"


@dataclass(frozen=True)
class LongText:
    """A text file that is too long to hold; each iteration reads it again, in blocks."""

    source: SourceFile

    def __iter__(self) -> Iterator[str]:
        return _text_blocks(self.source)


class Document(NamedTuple):
    """One document.

    Args:
        text: its text.
        record: records of its source that are read once it is, from the start of the part.
        position: bytes of its source that are read once it is, from the start of the part.
        place: file and line, for messages.
    """

    text: str | LongText
    record: int
    position: int
    place: str


class NotUtf8Error(DataError):
    """Text in another encoding than UTF-8."""


def read_source(source: SourceFile, text_field: str, skip: int = 0) -> Iterator[Document]:
    """The documents of one source in order, blank ones included.

    Args:
        source: from ``list_files``.
        text_field: the key, column or field that holds the text of a record.
        skip: records to pass over, as the ``record`` of a document counts them.

    Raises:
        DataError: text that is not UTF-8 (names the byte), a record without the field (names the line), a damaged
            file, a record of more than ``MAX_RECORD_BYTES``.
    """
    readers: dict[str, Callable[[SourceFile, str, int], Iterator[Document]]] = {
        "text": _read_text,
        "jsonl": _read_jsonl,
        "csv": _read_csv,
        "parquet": _read_parquet,
        "dataset": _read_dataset,
    }
    try:
        yield from readers[source.kind](source, text_field, skip)
    except (OSError, EOFError) as error:
        raise DataError(
            f"{source.path}: cannot be read: {getattr(error, 'strerror', None) or error}; it may be truncated or "
            "damaged: copy it again"
        ) from error


@contextmanager
def _open_bytes(source: SourceFile) -> Iterator[tuple[BinaryIO, Callable[[], int]]]:
    """The decompressed bytes of a file, and how many bytes of the file itself are read."""
    if source.compression is None:
        with source.path.open("rb", buffering=_BLOCK_BYTES) as file:
            yield file, file.tell
        return
    import pyarrow as pa

    with pa.OSFile(str(source.path)) as raw, pa.CompressedInputStream(raw, source.compression) as stream:
        yield io.BufferedReader(stream, _BLOCK_BYTES), raw.tell


def _read_text(source: SourceFile, _field: str, skip: int) -> Iterator[Document]:
    if skip:
        return
    with _open_bytes(source) as (stream, _):
        data = stream.read(MAX_RECORD_BYTES + 1)
    text: str | LongText
    if len(data) > MAX_RECORD_BYTES:
        text = LongText(source)
    else:
        try:
            text = data.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise _not_utf8(str(source.path), error.start) from None
    yield Document(text, 1, source.size, str(source.path))


def _text_blocks(source: SourceFile) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0
    with _open_bytes(source) as (stream, _):
        while True:
            block = stream.read(_BLOCK_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf8(str(source.path), read - pending + error.start) from None
            yield text if read else text.removeprefix("\ufeff")
            read += len(block)
            if not block:
                return


class _Line(NamedTuple):
    text: str
    number: int
    offset: int  # of its end, in decompressed bytes


def _lines(source: SourceFile, stream: BinaryIO, skip: int = 0) -> Iterator[_Line]:
    """The lines that begin in the part of ``source``, past the first ``skip``, numbered from 1 in the part."""
    offset = 0
    if source.start:
        stream.seek(source.start - 1)
        offset = source.start - 1 + len(stream.readline())  # the rest of a line that begins before
    first, number = offset, 0
    while source.stop is None or offset < source.stop:
        line = stream.readline(MAX_RECORD_BYTES + 1)
        if not line:
            return
        number += 1
        if len(line) > MAX_RECORD_BYTES:
            raise DataError(f"{_place(source, number, first)}: more than {MAX_RECORD_BYTES:,} bytes; {_REMEDY}")
        if number > skip:
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(_place(source, number, first), offset + error.start) from None
            yield _Line(text if offset else text.removeprefix("\ufeff"), number, offset + len(line))
        offset += len(line)


def _place(source: SourceFile, number: int, first: int = 0) -> str:
    """File and line; of a part of a file, counted from the beginning of the file."""
    if first:
        with source.path.open("rb") as file:
            while first > 0 and (block := file.read(min(first, _BLOCK_BYTES))):
                number += block.count(b"\n")
                first -= len(block)
    return f"{source.path}: line {number}"


def _read_jsonl(source: SourceFile, field: str, skip: int) -> Iterator[Document]:
    with _open_bytes(source) as (stream, position):
        for line in _lines(source, stream, skip):
            at = line.offset - source.start if source.compression is None else position()
            if line.text and not line.text.isspace():
                try:
                    text = _field_of(_json(line.text), field)
                except ValueError as error:
                    place = _place(source, line.number, source.start and _first_line(source))
                    raise DataError(f"{place}: {error}") from None
                yield Document(text, line.number, at, f"{source.path}: line {line.number}")


def _first_line(source: SourceFile) -> int:
    """Offset of the first line that begins in the part of ``source``."""
    with source.path.open("rb") as file:
        file.seek(source.start - 1)
        return source.start - 1 + len(file.readline())


def _json(line: str) -> Any:
    try:
        return json.loads(line.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}; one object a line is allowed") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def _field_of(record: Any, field: str) -> str:
    if not isinstance(record, dict):
        raise ValueError(f"found a {type(record).__name__}; allowed: an object with the field {field!r}")
    if field not in record:
        raise ValueError(_no_field(field, record))
    return _string(record[field], field)


def _no_field(field: str, fields: Iterable[str]) -> str:
    names = ", ".join(repr(key) for key in fields) or "none"
    return f"no field {field!r}; its fields: {names}; choose the one that holds the text (--text-field)"


def _string(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} is a {type(value).__name__}; allowed: a string")
    if len(value) > MAX_RECORD_BYTES:
        raise ValueError(f"field {field!r} has {len(value):,} characters; allowed: {MAX_RECORD_BYTES:,}; {_REMEDY}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"field {field!r}: half a surrogate pair at character {error.start}, which is no text; mend the line"
        ) from None
    return value


def _read_csv(source: SourceFile, field: str, skip: int) -> Iterator[Document]:
    name = source.path.name.lower()
    delimiter = "\t" if ".tsv" in name else ","
    csv.field_size_limit(MAX_RECORD_BYTES)
    with _open_bytes(source) as (stream, position):
        rows = csv.reader((line.text for line in _lines(source, stream)), delimiter=delimiter, strict=True)
        try:
            header = next(rows, [])
            if field not in header:
                raise DataError(f"{source.path}: line 1: {_no_field(field, header)}")
            column = header.index(field)
            begin = rows.line_num
            for number, row in enumerate(rows, start=1):
                place, begin = f"{source.path}: line {begin + 1}", rows.line_num
                if not row or number <= skip:
                    continue
                if len(row) <= column:
                    raise DataError(f"{place}: {len(row)} fields, and {field!r} is number {column + 1}; mend the line")
                yield Document(row[column], number, position(), place)
        except csv.Error as error:
            raise DataError(f"{source.path}: line {rows.line_num}: not CSV: {error}; mend the file") from None


def _read_parquet(source: SourceFile, field: str, skip: int) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source.path, buffer_size=_BLOCK_BYTES, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{source.path}: not a whole Parquet file: {str(error).splitlines()[0]}; copy it again"
        ) from None
    with file:
        schema = file.schema_arrow
        if field not in schema.names:
            raise DataError(f"{source.path}: {_no_field(field, schema.names)}")
        if str(schema.field(field).type) not in _STRING_TYPES:
            raise DataError(f"{source.path}: field {field!r} is {schema.field(field).type}; allowed: a string")
        groups = file.num_row_groups
        row = done = 0  # in the file, and in the part
        for group in range(groups):
            rows = file.metadata.row_group(group).num_rows
            if not source.start <= group * source.size // groups < source.end:
                row += rows
                continue
            if rows and done + rows > skip:
                size = file.metadata.row_group(group).total_byte_size
                at_once = max(1, min(1024, _BATCH_BYTES * rows // max(size, 1)))
                for value in _parquet_values(source, file, group, field, at_once):
                    done, row = done + 1, row + 1
                    if done > skip:
                        at = group * source.size // groups - source.start
                        yield Document(_row_text(source, row, value, field), done, at, f"{source.path}: row {row}")
            else:
                row, done = row + rows, done + rows


def _parquet_values(source: SourceFile, file: Any, group: int, field: str, at_once: int) -> Iterator[Any]:
    import pyarrow as pa

    try:
        for batch in file.iter_batches(at_once, row_groups=[group], columns=[field]):
            yield from batch.column(0).to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(f"{source.path}: row group {group}: field {field!r} is not UTF-8: {error.reason}") from None
    except pa.ArrowException as error:
        raise DataError(f"{source.path}: row group {group}: damaged: {str(error).splitlines()[0]}") from None


def _read_dataset(source: SourceFile, field: str, skip: int) -> Iterator[Document]:
    assert source.dataset is not None
    if source.dataset.streaming:
        first, last, rows = 0, None, 1
    else:
        rows = dataset_rows(source.dataset)
        first, last = -(-source.start * rows // source.size), -(-source.end * rows // source.size)
    for row, value in dataset_texts(source.dataset, field, first + skip, last):
        at = 0 if source.dataset.streaming else (row + 1) * source.size // rows - source.start
        yield Document(_row_text(source, row + 1, value, field), row + 1 - first, at, f"{source.path}: row {row + 1}")


def _row_text(source: SourceFile, row: int, value: Any, field: str) -> str:
    try:
        return _string(value, field)
    except ValueError as error:
        raise DataError(f"{source.path}: row {row}: {error}") from None


def _not_utf8(place: str, offset: int) -> NotUtf8Error:
    return NotUtf8Error(f"{place}: not UTF-8 at byte {offset}; convert the file to UTF-8 (for example with iconv)")
