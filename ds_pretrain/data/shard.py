"""One shard of a preparation under way: token files that grow, and a journal that says how much of them is safe.

A shard's folder holds, for each split, the token ids (``.bin``), the tokens of each document (``.lengths``, int32) and,
where documents are de-duplicated, their digests (``.digests``, uint64). A line of ``journal.jsonl`` is written after
the files are on the disk up to the sizes that it states: whatever moment a kill picks, the files are cut back to the
last line, and the reading goes on from there.
"""

from __future__ import annotations

import json
import os
import shutil
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from ds_pretrain import __version__
from ds_pretrain.data.documents import LeftOut, Place
from ds_pretrain.data.indexed import MAX_DOCUMENT_TOKENS, sync_path
from ds_pretrain.errors import DataError

SPLITS = ("train", "validation")
_JOB_FILE, _JOURNAL_FILE = "job.json", "journal.jsonl"


class Job(BaseModel):
    """What every shard of a preparation has in common; a shard made for another job is started anew."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    inputs: list[str]
    selection: dict[str, float | int | str | bool | None]
    tokenizer: str
    """How the manifest will name the tokenizer."""
    trained_tokenizer: str | None
    """Folder of the tokenizer that was trained for this job, beside the shards."""
    tokenizer_digest: str
    vocab_size: int
    eos_id: int
    dtype: str
    shards: int
    ds_pretrain_version: str = __version__


@dataclass(frozen=True)
class Commit:
    """What is safe on the disk, and how far the reading was then.

    Args:
        place: how far the reading is.
        sources: digest of the sources of the shard up to the one being read.
        tokens: of each split.
        documents: of each split.
        left_out: what was left out so far.
        done: digest of all sources of all shards where this shard is complete, else empty.
    """

    place: Place = Place()
    sources: str = ""
    tokens: tuple[int, ...] = (0, 0)
    documents: tuple[int, ...] = (0, 0)
    left_out: LeftOut = field(default_factory=LeftOut)
    done: str = ""


def shard_folder(partial: Path, index: int, count: int) -> Path:
    """The folder of one shard inside the folder of a preparation."""
    return partial / f"{index:0{len(str(count))}}-of-{count}"


def read_job(folder: Path) -> Job | None:
    """The job that a shard's folder was made for; None where there is none, or a damaged one."""
    try:
        return Job.model_validate_json((folder / _JOB_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def read_journal(folder: Path) -> list[Commit]:
    """Every commit of a shard; a torn last line is passed over."""
    commits = []
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        for line in (folder / _JOURNAL_FILE).read_bytes().splitlines():
            record = json.loads(line)
            commits.append(
                Commit(
                    Place(*record["place"]),
                    record["sources"],
                    tuple(record["tokens"]),
                    tuple(record["documents"]),
                    LeftOut(**record["left_out"]),
                    record["done"],
                )
            )
    return commits


def start_shard(folder: Path, job: Job, digests: Sequence[str]) -> Commit:
    """Make a shard's folder ready: cut back to the last commit that still holds, or empty.

    Args:
        folder: the shard's folder.
        job: what it is to be made for.
        digests: from ``prefix_digests`` of the shard's sources.

    Returns:
        the commit to go on from.
    """
    kept = [Commit()]
    if read_job(folder) == job:
        kept += [
            commit
            for commit in read_journal(folder)
            if commit.sources in digests[commit.place.source : commit.place.source + 1]
            and _is_on_disk(folder, commit, job)
        ]
    with _writing(folder):
        if len(kept) == 1:
            for path in folder.glob("*"):
                if path.suffix != ".lock":
                    path.unlink()
            write_whole(folder / _JOB_FILE, job.model_dump_json(indent=2).encode())
        write_whole(folder / _JOURNAL_FILE, b"".join(map(_line, kept[1:])))
    return kept[-1]


def load_column(folder: Path, split: int, ending: str, dtype: str) -> NDArray[Any]:
    """A shard's ``lengths``, ``digests`` or ``bin`` of one split, mapped into memory."""
    path = folder / f"{SPLITS[split]}.{ending}"
    if not path.exists() or path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file; it appears whole or not at all, and is on the disk."""
    partial = path.with_name(f".{path.name}.new")
    with _writing(path):
        partial.write_bytes(data)
        sync_path(partial)
        os.replace(partial, path)
        sync_path(path.parent)


class ShardWriter:
    """Writes on where a shard stands; a context manager.

    Args:
        folder: from ``start_shard``, as is ``commit``.
        job: what is being made.
        commit: where to go on.
        digests: whether to keep the digests of documents.

    Raises:
        DataError: from any method, where the disk cannot be written.
    """

    def __init__(self, folder: Path, job: Job, commit: Commit, digests: bool) -> None:
        self.folder = folder
        self.last = commit
        self.tokens, self.documents = list(commit.tokens), list(commit.documents)
        self._dtype = np.dtype(job.dtype)
        self._open_length = 0
        self._keep_digests = digests
        self._lengths = [array("i") for _ in SPLITS]
        self._digests = [array("Q") for _ in SPLITS]
        self._files: dict[tuple[int, str], IO[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> ShardWriter:
        for split, name in enumerate(SPLITS):
            for ending, size in _sizes(self.last, split, self._dtype.itemsize, self._keep_digests).items():
                path = self.folder / f"{name}.{ending}"
                with _writing(path):
                    _cut_back(path, size)
                    self._files[split, ending] = self._stack.enter_context(path.open("ab", buffering=1 << 20))
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            with suppress(OSError):  # a full disk refuses what is buffered once more
                file.close()

    def write(self, split: int, tokens: NDArray[np.integer[Any]]) -> None:
        """Write the next tokens of the document at hand; shape [tokens]."""
        with _writing(self.folder / f"{SPLITS[split]}.bin"):
            self._files[split, "bin"].write(tokens.data)
        self._open_length += tokens.size

    def end_document(self, split: int, digest: int, place: str) -> None:
        """Close the document at hand."""
        if self._open_length > MAX_DOCUMENT_TOKENS:
            raise DataError(
                f"{place}: a document of {self._open_length:,} tokens; allowed: {MAX_DOCUMENT_TOKENS:,}; split it"
            )
        self._lengths[split].append(self._open_length)
        if self._keep_digests:
            self._digests[split].append(digest)
        self.tokens[split] += self._open_length
        self.documents[split] += 1
        self._open_length = 0

    def commit(self, place: Place, sources: str, left_out: LeftOut, done: str = "") -> None:
        """Make everything written so far safe. Not inside a document."""
        assert self._open_length == 0
        for (split, ending), file in self._files.items():
            if self.documents[split] == self.last.documents[split]:
                continue
            with _writing(self.folder / f"{SPLITS[split]}.{ending}"):
                columns = {"lengths": self._lengths[split], "digests": self._digests[split]}
                if ending in columns:
                    file.write(columns[ending])
                    del columns[ending][:]
                file.flush()
                os.fsync(file.fileno())
        self.last = Commit(place, sources, tuple(self.tokens), tuple(self.documents), left_out, done)
        path = self.folder / _JOURNAL_FILE
        with _writing(path), path.open("ab") as journal:
            journal.write(_line(self.last))
            journal.flush()
            os.fsync(journal.fileno())


def discard_unused(folder: Path) -> None:
    """Remove a shard's folder in which nothing is safe yet."""
    if not read_journal(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _line(commit: Commit) -> bytes:
    return json.dumps(asdict(commit)).encode() + b"\n"


def _sizes(commit: Commit, split: int, itemsize: int, digests: bool) -> dict[str, int]:
    sizes = {"bin": commit.tokens[split] * itemsize, "lengths": commit.documents[split] * 4}
    return {**sizes, "digests": commit.documents[split] * 8} if digests else sizes


def _is_on_disk(folder: Path, commit: Commit, job: Job) -> bool:
    """Whether the files are as long as they were at ``commit``."""
    for split, name in enumerate(SPLITS):
        sizes = _sizes(commit, split, np.dtype(job.dtype).itemsize, bool(job.selection["deduplicate"]))
        for ending, size in sizes.items():
            path = folder / f"{name}.{ending}"
            if not path.is_file() or path.stat().st_size < size:
                return False
    return True


def _cut_back(path: Path, size: int) -> None:
    path.touch()
    if path.stat().st_nlink > 1:  # a kill right after publishing: the published corpus is this very file
        copy = path.with_name(f".{path.name}.new")
        shutil.copyfile(path, copy)
        os.replace(copy, path)
    os.truncate(path, size)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error.strerror or error}; free space, and the same command goes on from what "
            "is safe"
        ) from error


def counts(commits: Sequence[Commit]) -> LeftOut:
    """What several shards left out."""
    total: dict[str, int] = {}
    for commit in commits:
        for name, number in asdict(commit.left_out).items():
            total[name] = total.get(name, 0) + number
    return LeftOut(**total)
