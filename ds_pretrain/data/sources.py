"""Where text comes from: what the inputs of a preparation name, in the order in which it is read, and its shards."""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ds_pretrain.data.datasets_source import DatasetReference, dataset_parts, is_saved_dataset
from ds_pretrain.errors import DataError, UserError

PYTHON_STDLIB = "python-stdlib"
DATASET_PREFIX = "hf:"
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst", ".py")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_RECORD_KINDS: dict[str, Literal["jsonl", "csv", "parquet"]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
# Named rather than guessed at: read as plain text these would train a model on compressed bytes or on markup.
_UNREADABLE_SUFFIXES = frozenset({".bz2", ".xz", ".zip", ".tar", ".tgz", ".7z", ".arrow", ".json", ".pdf", ".bin"})
_STDLIB_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})
_ALLOWED = f"{' '.join([*TEXT_SUFFIXES, *_RECORD_KINDS])}, the same with {' or '.join(COMPRESSIONS)} behind"

Kind = Literal["text", "jsonl", "csv", "parquet", "dataset"]


@dataclass(frozen=True)
class SourceFile:
    """One thing to read from its beginning to its end: a file, a part of one, or a data set.

    Args:
        path: where it is; for a data set, how it was named.
        size: bytes it takes on the disk, the measure of progress and of shards; at least 1.
        kind: how its records are found.
        compression: ``gzip``, ``zstd``, or None.
        stamp: changes when its content does.
        skip_undecodable: whether a text file that is not UTF-8 is left out, counted, rather than an error.
        start: first byte of the part to read.
        stop: byte after its last; None is the end.
        dataset: where the kind is ``dataset``, what to load.
    """

    path: Path
    size: int
    kind: Kind = "text"
    compression: str | None = None
    stamp: str = ""
    skip_undecodable: bool = False
    start: int = 0
    stop: int | None = None
    dataset: DatasetReference | None = None

    @property
    def end(self) -> int:
        """Byte after the last of the part to read."""
        return self.size if self.stop is None else self.stop

    @property
    def divisible(self) -> bool:
        """Whether a part can be read without what stands before it."""
        if self.kind == "dataset":
            return self.dataset is not None and not self.dataset.streaming
        return self.kind == "parquet" or (self.kind == "jsonl" and self.compression is None)


def list_files(
    inputs: Sequence[str], *, split: str | None = None, subset: str | None = None, streaming: bool = False
) -> tuple[SourceFile, ...]:
    """Everything that ``inputs`` name, in the order in which it is read; a file named twice is read once.

    Args:
        inputs: each a file, a folder (the files of its that are text, at any depth, sorted, hidden ones left out), a
            glob pattern, a folder of ``datasets`` (``save_to_disk``), ``hf:`` and what ``load_dataset`` takes, or
            ``python-stdlib`` (every ``.py`` file of this Python's standard library).
        split: the split of a data set; may be left out where it has one only.
        subset: the configuration of a data set.
        streaming: read a data set as it arrives instead of downloading it first.

    Raises:
        DataError: an input does not exist, holds no text, or is of a kind that is not read.
    """
    files: dict[object, SourceFile] = {}
    for name in inputs:
        for file in _expand(name, split, subset, streaming):
            files.setdefault(file.dataset or file.path.resolve(), file)
    if not files:
        raise DataError(f"no input; give a file, a folder, {DATASET_PREFIX}NAME or {PYTHON_STDLIB}")
    return tuple(files.values())


def parse_shard(text: str) -> tuple[int, int]:
    """Index and number of shards of ``3/64``, the index from 0, as SLURM counts its array tasks."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        last = f"0/{count} to {int(count) - 1}/{count}" if count.isdigit() and int(count) else "0/64 to 63/64"
        raise UserError(f"--shard: found {text!r}; allowed: INDEX/COUNT, the index from 0: {last}")
    return int(index), int(count)


def shard_of(files: Sequence[SourceFile], index: int, count: int) -> tuple[SourceFile, ...]:
    """One of ``count`` neighbouring pieces of ``files``, alike in bytes; laid end to end they are ``files``.

    JSONL, Parquet and data sets are divided inside; anything else goes to the shard in which its first byte falls.
    """
    total = sum(file.size for file in files)
    low, high = total * index // count, total * (index + 1) // count
    chosen, offset = [], 0
    for file in files:
        if file.divisible:
            start, stop = max(0, low - offset), min(file.size, high - offset)
            if start < stop:
                chosen.append(replace(file, start=start, stop=stop))
        elif low <= offset < high:
            chosen.append(file)
        offset += file.size
    return tuple(chosen)


def sources_digest(files: Sequence[SourceFile]) -> str:
    """What changes when ``files`` or anything in them does, as far as sizes and times tell."""
    return prefix_digests(files)[-1]


def prefix_digests(files: Sequence[SourceFile]) -> list[str]:
    """``sources_digest`` of the first file, of the first two, and so on to all of them, and once more of all."""
    digest = hashlib.sha256()
    digests = []
    for file in files:
        place = file.dataset or os.path.abspath(file.path)
        digest.update(repr((str(place), file.size, file.kind, file.stamp, file.start, file.end)).encode())
        digests.append(digest.hexdigest()[:32])
    return [*digests, digest.hexdigest()[:32]]


def _expand(name: str, split: str | None, subset: str | None, streaming: bool) -> list[SourceFile]:
    path = Path(name)
    if name == PYTHON_STDLIB:
        return _list_stdlib()
    if name.startswith(DATASET_PREFIX) or is_saved_dataset(path):
        parts = dataset_parts(name.removeprefix(DATASET_PREFIX), split, subset, streaming)
        return [SourceFile(Path(name), max(size, 1), "dataset", stamp=stamp, dataset=ref) for ref, size, stamp in parts]
    if path.is_dir():
        files = [_source(child) for child in _walk(path) if _kind(child) is not None]
        if not files:
            raise DataError(f"{path}: no text in this folder; allowed are files that end in {_ALLOWED}")
        return files
    if path.is_file():
        return [_source(path)]
    matches = sorted(glob.glob(name, recursive=True))
    if not matches:
        raise DataError(
            f"{name}: not found; allowed: a file, a folder, a glob pattern, {DATASET_PREFIX}NAME or {PYTHON_STDLIB}"
        )
    return [file for match in matches for file in _expand(match, split, subset, streaming)]


def _walk(folder: Path, skipped: frozenset[str] = frozenset()) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _inner_suffix(path: Path) -> str:
    """The ending, in front of one that tells of compression."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path).suffix.lower()


def _kind(path: Path) -> Kind | None:
    """How a file is read by its ending; None where the ending is not known."""
    suffix = _inner_suffix(path)
    return "text" if suffix in TEXT_SUFFIXES else _RECORD_KINDS.get(suffix)


def source_file(path: Path) -> SourceFile:
    """A file of any kind as one plain text."""
    status = path.stat()
    return SourceFile(path, max(status.st_size, 1), stamp=str(status.st_mtime_ns))


def _source(path: Path) -> SourceFile:
    compression = COMPRESSIONS.get(path.suffix.lower())
    kind = _kind(path)
    if _inner_suffix(path) in _UNREADABLE_SUFFIXES or (kind == "parquet" and compression):
        raise DataError(f"{path}: files of this kind are not read; allowed: {_ALLOWED}; convert it")
    return replace(source_file(path), kind=kind or "text", compression=compression)


def _list_stdlib() -> list[SourceFile]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = [path for path in _walk(folder, _STDLIB_SKIPPED_FOLDERS) if path.suffix.lower() == ".py"]
    if not paths:
        raise DataError(f"{PYTHON_STDLIB}: no .py files in {folder}; this Python comes without its library's source")
    return [replace(_source(path), skip_undecodable=True) for path in paths]
