"""Making one corpus of finished shards: laid end to end, indexed, described, and moved to its name at the end."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from ds_pretrain.data.documents import LeftOut
from ds_pretrain.data.duplicates import DigestSet
from ds_pretrain.data.indexed import bin_path, idx_path, sync_path
from ds_pretrain.data.manifest import Manifest, describe, manifest_path, open_corpus, write_manifest
from ds_pretrain.data.shard import SPLITS, Commit, Job, counts, load_column, read_job, read_journal, shard_folder
from ds_pretrain.data.token_writer import write_index
from ds_pretrain.errors import DataError

_COPY_BYTES = 16 << 20
_BLOCK_DOCUMENTS = 1 << 20
# Folders inside that of a preparation: a corpus that is being made, and one that is whole and being moved to its name.
_STAGING, _READY = "merging", "merged-"


@dataclass(frozen=True)
class PrepareReport:
    """What a preparation made.

    Args:
        train_prefix: the training corpus, without ``.bin`` and ``.idx``.
        train: its manifest.
        validation_prefix: the validation corpus, or None where none was asked for.
        validation: its manifest.
        tokenizer: what ``load_tokenizer`` takes.
        left_out: what was left out.
    """

    train_prefix: Path
    train: Manifest
    validation_prefix: Path | None
    validation: Manifest | None
    tokenizer: str
    left_out: LeftOut


def partial_folder(output: Path) -> Path:
    """Where the work under way of a preparation stands."""
    return output.with_name(f"{output.name}.partial")


def refuse_existing(output: Path, validation: bool, trained: bool, overwrite: bool) -> None:
    """Raise where something stands that the preparation would replace, unless it may.

    A ``.bin`` without its ``.idx`` is no corpus: it is what a kill in the very moment of publishing leaves.
    """
    paths = [idx_path(prefix) for prefix in _prefixes(output, validation)]
    if not partial_folder(output).is_dir():
        paths += [file(prefix) for prefix in _prefixes(output, validation) for file in (bin_path, manifest_path)]
        paths += [_tokenizer_folder(output)] if trained else []
    for path in paths:
        if path.exists() and not overwrite:
            raise DataError(f"{path}: exists already; choose another output, or replace it (--overwrite)")


def being_published(output: Path) -> bool:
    """Whether a kill fell between the first and the last name that a corpus was moved to; the same command goes on."""
    return any(any(folder.glob("*.idx")) for folder in partial_folder(output).glob(f"{_READY}*"))


def clear_published(output: Path) -> None:
    """Remove what a kill left of a preparation whose corpus stands whole."""
    partial = partial_folder(output)
    if any(partial.glob(f"{_READY}*")) and not being_published(output):
        _clear(partial)


def publish(output: Path, *, overwrite: bool = False) -> PrepareReport:
    """Make ``<output>.bin``, ``.idx`` and manifest (and those of ``-val``) of the finished shards of a preparation.

    The same, to the byte, as the corpus of an undivided preparation. The shards are removed once it stands. After a
    kill, whenever it came, the same call goes on: everything is made inside the folder of the preparation, which gets
    the name of its job when it is whole, and only then moved out, file by file.

    Args:
        output: prefix of the corpus, as it was given to ``prepare_shard``.
        overwrite: replace an output that exists.

    Raises:
        DataError: shards are missing, unfinished or of another job; a split has no documents; an output exists;
            another process is at it.
    """
    partial = partial_folder(output)
    if any(partial.glob(f"{_READY}*")) and not being_published(output):
        _clear(partial)
        return _report(output)
    folders = _all_shards(partial)
    job, commits = _check_shards(folders)
    prefixes = _prefixes(output, bool(job.selection["validation"]))
    ready = partial / f"{_READY}{_job_key(job, commits)}"
    with _alone(output, partial):
        if not ready.is_dir():
            refuse_existing(output, len(prefixes) > 1, job.trained_tokenizer is not None, overwrite)
            _merge(folders, job, commits, prefixes, ready)
        _move(ready, prefixes, _tokenizer_folder(output) if job.trained_tokenizer else None)
        _clear(partial)
    return _report(output)


def _merge(folders: Sequence[Path], job: Job, commits: Sequence[Commit], prefixes: Sequence[Path], ready: Path) -> None:
    """Make the whole corpus in the folder ``ready``, which appears when all is on the disk."""
    for stale in (*ready.parent.glob(f"{_READY}*"), ready.parent / _STAGING):
        shutil.rmtree(stale, ignore_errors=True)
    staging = ready.parent / _STAGING
    left_out = counts(commits)
    try:
        staging.mkdir()
        documents = []
        for split, prefix in enumerate(prefixes):
            kept = _join(folders, split, staging / prefix.name, job)
            left_out.duplicate += sum(commit.documents[split] for commit in commits) - kept
            documents.append(kept)
        require_documents(documents, float(job.selection["validation"] or 0.0))
        for prefix in prefixes:
            manifest = describe(
                staging / prefix.name,
                sources=job.inputs,
                tokenizer=job.tokenizer,
                vocab_size=job.vocab_size,
                eos_id=job.eos_id,
                selection=job.selection,
                left_out=asdict(left_out),
            )
            write_manifest(staging / prefix.name, manifest)
        if job.trained_tokenizer:
            shutil.copytree(ready.parent / job.trained_tokenizer, staging / "tokenizer")
        os.rename(staging, ready)
        sync_path(ready.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _alone(output: Path, partial: Path) -> Iterator[None]:
    """Only one process publishes; errors of the disk name the output."""
    try:
        with FileLock(partial / "publish.lock", timeout=0):
            yield
    except Timeout:
        raise DataError(f"{partial}: another process is at work on it; wait for it") from None
    except OSError as error:
        raise DataError(
            f"{output}: cannot be written: {error.strerror or error}; free space or choose another"
        ) from error


def _job_key(job: Job, commits: Sequence[Commit]) -> str:
    """Differs where the corpus would."""
    return hashlib.sha256(f"{job.model_dump_json()} {commits[0].done}".encode()).hexdigest()[:16]


def _clear(partial: Path) -> None:
    """Remove the folder of a preparation; the sign that its corpus is whole goes last."""
    for path in partial.iterdir():
        if path.is_dir() and not path.name.startswith(_READY):
            shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(partial, ignore_errors=True)


def _report(output: Path) -> PrepareReport:
    """What a published corpus says of itself."""
    train = open_corpus(output)[1]
    assert train is not None
    prefixes = _prefixes(output, bool(train.selection["validation"]))
    return PrepareReport(
        train_prefix=output,
        train=train,
        validation_prefix=prefixes[1] if len(prefixes) > 1 else None,
        validation=open_corpus(prefixes[1])[1] if len(prefixes) > 1 else None,
        tokenizer=train.tokenizer_path(output),
        left_out=LeftOut(**train.left_out),
    )


def _prefixes(output: Path, validation: bool) -> list[Path]:
    return [output, *([output.with_name(f"{output.name}-val")] if validation else [])]


def _tokenizer_folder(output: Path) -> Path:
    return output.with_name(f"{output.name}-tokenizer")


def _all_shards(partial: Path) -> list[Path]:
    """The folders of all shards, in order."""
    matches = [re.fullmatch(r"\d+-of-(\d+)", path.name) for path in partial.glob("*-of-*") if path.is_dir()]
    found = {int(match[1]) for match in matches if match}
    if len(found) != 1:
        what = f"shards of several counts ({', '.join(map(str, sorted(found)))})" if found else "no shards"
        raise DataError(
            f"{partial}: {what}; make all with `ds-pretrain prepare … --shard INDEX/COUNT`, and remove the others"
        )
    count = found.pop()
    return [shard_folder(partial, index, count) for index in range(count)]


def _check_shards(folders: Sequence[Path]) -> tuple[Job, list[Commit]]:
    """The job and the last commit of every shard: all there, all finished, all of one job and one corpus."""
    jobs = [read_job(folder) for folder in folders]
    commits = [(read_journal(folder) or [Commit()])[-1] for folder in folders]
    open_ones = [
        str(index) for index, (job, commit) in enumerate(zip(jobs, commits, strict=True)) if not job or not commit.done
    ]
    if open_ones:
        raise DataError(
            f"{folders[0].parent}: not finished: shard {', '.join(open_ones)} of {len(folders)}; run "
            f"`ds-pretrain prepare … --shard {open_ones[0]}/{len(folders)}` again, it goes on where it was"
        )
    first = jobs[0]
    assert first is not None
    for folder, job, commit in zip(folders, jobs, commits, strict=True):
        assert job is not None
        differing = [name for name in Job.model_fields if getattr(job, name) != getattr(first, name)]
        if commit.done != commits[0].done:
            differing.append("the files of the input")
        if differing:
            raise DataError(
                f"{folder}: was made otherwise than shard 0: {', '.join(differing)}; run "
                f"`ds-pretrain prepare … --shard` with the same arguments for both"
            )
    return first, commits


def _join(folders: Sequence[Path], split: int, prefix: Path, job: Job) -> int:
    """Write one split of all shards as a corpus, without documents that an earlier shard has; tells how many it has."""
    lengths_path = Path(f"{prefix}.lengths")
    if len(folders) == 1:
        for ending, path in (("bin", bin_path(prefix)), ("lengths", lengths_path)):
            _link(folders[0] / f"{SPLITS[split]}.{ending}", path)
    else:
        seen = DigestSet() if job.selection["deduplicate"] else None
        with bin_path(prefix).open("wb") as tokens, lengths_path.open("wb") as lengths:
            for folder in folders:
                for block_lengths, block_tokens in _kept(folder, split, job, seen):
                    lengths.write(np.ascontiguousarray(block_lengths).data)
                    for start in range(0, len(block_tokens), _COPY_BYTES):
                        tokens.write(np.ascontiguousarray(block_tokens[start : start + _COPY_BYTES]).data)
    documents = lengths_path.stat().st_size // 4
    if documents:
        write_index(idx_path(prefix), np.dtype(job.dtype), np.memmap(lengths_path, "<i4", mode="r"))
        sync_path(bin_path(prefix))
        sync_path(idx_path(prefix))
    return documents


def _kept(folder: Path, split: int, job: Job, seen: DigestSet | None) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Lengths and tokens of a shard's documents that are not seen yet, in blocks."""
    lengths = load_column(folder, split, "lengths", "<i4")
    digests = load_column(folder, split, "digests", "<u8")
    tokens = load_column(folder, split, "bin", job.dtype)
    position = 0
    for first in range(0, len(lengths), _BLOCK_DOCUMENTS):
        block = lengths[first : first + _BLOCK_DOCUMENTS]
        ends = position + np.cumsum(block, dtype=np.int64)
        if seen is None:
            yield block, tokens[position : int(ends[-1])]
        else:
            new = np.fromiter(
                (seen.add(int(digest)) for digest in digests[first : first + len(block)]), bool, len(block)
            )
            # neighbouring documents that are kept go together
            edges = np.flatnonzero(np.diff(new.astype(np.int8), prepend=0, append=0))
            bounds = np.concatenate(([position], ends))
            for start, stop in zip(edges[::2], edges[1::2], strict=True):
                yield block[start:stop], tokens[bounds[start] : bounds[stop]]
        position = int(ends[-1])


def _link(source: Path, target: Path) -> None:
    """The same file under a second name, without copying where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def require_documents(documents: Sequence[int], validation: float) -> None:
    """Raise where the training split, or the validation split where there is one, holds no document."""
    if sum(documents) == 0:
        raise DataError("the input holds no documents, or nothing but what is left out; give files with text")
    for split, count in zip(("training", "validation"), documents, strict=False):
        if count == 0:
            raise DataError(
                f"validation: a share of {validation:g} of {sum(documents)} documents leaves the {split} corpus "
                "without any; give more documents (a document is a file, or a record), another share, or 0"
            )


def _move(ready: Path, prefixes: Sequence[Path], trained: Path | None) -> None:
    """Move everything to its name that is not there yet. Without ``.idx`` a corpus is none: they come last."""
    for prefix in prefixes:
        if idx_path(ready / prefix.name).exists():
            idx_path(prefix).unlink(missing_ok=True)
    if trained and (ready / "tokenizer").is_dir():
        shutil.rmtree(trained, ignore_errors=True)
        os.replace(ready / "tokenizer", trained)
    for file in (bin_path, manifest_path, idx_path):
        for prefix in prefixes:
            if file(ready / prefix.name).exists():
                os.replace(file(ready / prefix.name), file(prefix))
    with suppress(OSError):
        sync_path(prefixes[0].parent)
