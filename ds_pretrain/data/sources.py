"""Where text comes from: files, folders, JSONL and the standard library's own source, read one document at a time."""

from __future__ import annotations

import glob
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ds_pretrain.errors import DataError

PYTHON_STDLIB = "python-stdlib"
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst", ".py")
JSONL_SUFFIX = ".jsonl"
# Named rather than guessed at: read as plain text these would train a model on compressed bytes or on markup.
_UNREADABLE_SUFFIXES = frozenset(
    {".gz", ".zst", ".bz2", ".xz", ".zip", ".tar", ".parquet", ".arrow", ".csv", ".tsv", ".json"}
)
_STDLIB_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})
MAX_DOCUMENT_BYTES = 1 << 30


@dataclass(frozen=True)
class SourceFile:
    """One file to read.

    Args:
        path: where it is.
        size: bytes.
        skip_undecodable: whether a file that is not UTF-8 is left out, counted, rather than an error.
    """

    path: Path
    size: int
    skip_undecodable: bool = False


class Document(NamedTuple):
    """One document: its text, and the bytes of its file that it took (for progress)."""

    text: str
    source_bytes: int


@dataclass
class SkipCounts:
    """What a reading left out: documents with nothing but whitespace, and files that are not UTF-8."""

    empty: int = 0
    undecodable: int = 0


def list_files(inputs: Sequence[str]) -> tuple[SourceFile, ...]:
    """Every file that ``inputs`` name, in the order in which they are read; a file named twice is read once.

    Args:
        inputs: each a file, a folder (its ``.txt .text .md .rst .py .jsonl`` files at any depth, sorted, hidden ones
            left out), a glob pattern, or ``python-stdlib`` (every ``.py`` file of this Python's standard library).

    Raises:
        DataError: an input does not exist, holds no text, or is of a kind that is not read.
    """
    files: dict[Path, SourceFile] = {}
    for name in inputs:
        for file in _expand(name):
            files.setdefault(file.path.resolve(), file)
    if not files:
        raise DataError("no input; give a file, a folder or python-stdlib")
    return tuple(files.values())


def read_documents(
    files: Iterable[SourceFile], *, text_field: str = "text", skipped: SkipCounts | None = None
) -> Iterator[Document]:
    """The documents of ``files`` in order: a file is one document, of a ``.jsonl`` file each line is one.

    Memory: one document, of at most 1 GiB.

    Args:
        files: from ``list_files``.
        text_field: the key of a JSONL line that holds its text.
        skipped: counts of what was left out, added to while reading.

    Raises:
        DataError: text that is not UTF-8 (names the byte), a JSONL line without the field or not JSON (names the line),
            a document of more than 1 GiB.
    """
    skipped = skipped if skipped is not None else SkipCounts()
    for file in files:
        if file.path.suffix.lower() == JSONL_SUFFIX:
            documents = _read_jsonl(file.path, text_field)
        else:
            documents = _read_text(file, skipped)
        for document in documents:
            if document.text.strip():
                yield document
            else:
                skipped.empty += 1


def _expand(name: str) -> list[SourceFile]:
    path = Path(name)
    if name == PYTHON_STDLIB:
        return _list_stdlib()
    if path.is_dir():
        files = [_checked(child) for child in _walk(path, frozenset({*TEXT_SUFFIXES, JSONL_SUFFIX}))]
        if not files:
            raise DataError(
                f"{path}: no text in this folder; allowed are files that end in "
                f"{' '.join(TEXT_SUFFIXES)} {JSONL_SUFFIX}"
            )
        return files
    if path.is_file():
        return [_checked(path)]
    matches = sorted(glob.glob(name, recursive=True))
    if not matches:
        raise DataError(f"{name}: not found; allowed: a file, a folder, a glob pattern or {PYTHON_STDLIB}")
    return [file for match in matches for file in _expand(match)]


def _walk(folder: Path, suffixes: frozenset[str], skipped: frozenset[str] = frozenset()) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        paths = (Path(parent, name) for name in names if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in suffixes]
    return sorted(found)


def _checked(path: Path) -> SourceFile:
    if path.suffix.lower() in _UNREADABLE_SUFFIXES:
        raise DataError(
            f"{path}: {path.suffix} files are not read; allowed: plain text in UTF-8, or {JSONL_SUFFIX} with one "
            "object a line; convert it"
        )
    return SourceFile(path, path.stat().st_size)


def _list_stdlib() -> list[SourceFile]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = _walk(folder, frozenset({".py"}), skipped=_STDLIB_SKIPPED_FOLDERS)
    if not paths:
        raise DataError(f"{PYTHON_STDLIB}: no .py files in {folder}; this Python comes without its library's source")
    return [SourceFile(path, path.stat().st_size, skip_undecodable=True) for path in paths]


def _read_text(file: SourceFile, skipped: SkipCounts) -> Iterator[Document]:
    try:
        if file.path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise DataError(
                f"{file.path}: one document of more than {MAX_DOCUMENT_BYTES:,} bytes; split the file, or "
                "make it JSONL with one document a line"
            )
        data = file.path.read_bytes()
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read: {error.strerror or error}") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if not file.skip_undecodable:
            raise _not_utf8(file.path, error.start) from None
        skipped.undecodable += 1
        return
    yield Document(text.removeprefix("\ufeff"), len(data))


def _read_jsonl(path: Path, field: str) -> Iterator[Document]:
    start = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_DOCUMENT_BYTES + 1), b""), start=1):
                if len(line) > MAX_DOCUMENT_BYTES:
                    raise DataError(
                        f"{path}: line {number}: more than {MAX_DOCUMENT_BYTES:,} bytes; split the document"
                    )
                try:
                    text = line.decode("utf-8").removeprefix("\ufeff")
                except UnicodeDecodeError as error:
                    raise _not_utf8(path, start + error.start, number) from None
                start += len(line)
                if text.strip():
                    yield Document(_field_of(text, field, f"{path}: line {number}"), len(line))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _field_of(line: str, field: str, place: str) -> str:
    try:
        record = json.loads(line.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{place}: not JSON: {error.msg} at column {error.colno}; one object a line is allowed"
        ) from None
    except RecursionError:
        raise DataError(f"{place}: JSON nested too deeply") from None
    if not isinstance(record, dict):
        raise DataError(f"{place}: found a {type(record).__name__}; allowed: an object with the field {field!r}")
    if field not in record:
        fields = ", ".join(repr(key) for key in record) or "none"
        raise DataError(
            f"{place}: no field {field!r}; its fields: {fields}; choose the one that holds the text (--text-field)"
        )
    text = record[field]
    if not isinstance(text, str):
        raise DataError(f"{place}: field {field!r} is a {type(text).__name__}; allowed: a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: field {field!r}: half a surrogate pair at character {error.start}, which is no text; "
            "mend the line"
        ) from None
    return text


def _not_utf8(path: Path, offset: int, line: int | None = None) -> DataError:
    place = f"{path}: line {line}" if line else f"{path}"
    return DataError(f"{place}: not UTF-8 at byte {offset}; convert the file to UTF-8 (for example with iconv)")
