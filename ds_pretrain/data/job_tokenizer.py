"""The tokenizer that a preparation trains: once for all its shards, on a sample of the text of all.

Reading and training are done in a process of their own, because only there can the threads of ``tokenizers`` still be
chosen; it tells how far the reading is. Where there is much more text than is learned from, only evenly spaced parts
are read, as far as files can be entered in their middle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from filelock import FileLock

from ds_pretrain.data.documents import TRAIN, LeftOut, Selection, choose_documents
from ds_pretrain.data.duplicates import DigestSet
from ds_pretrain.data.encoding import cut, start_worker
from ds_pretrain.data.sources import SourceFile, sources_digest
from ds_pretrain.data.tokenizer import save_tokenizer
from ds_pretrain.data.train_tokenizer import MAX_TRAINING_BYTES, TokenizerTraining, train_tokenizer
from ds_pretrain.errors import DataError, UserError

# Read at most about so much for the tokenizer: several times what it learns from, for records are more than their text.
_READ_BYTES = 4 * MAX_TRAINING_BYTES
_PART_BYTES = 4 << 20
_STEPS_TOLD = 1000

Told = Callable[[int, int], None]


def trained_tokenizer(
    partial: Path,
    files: Sequence[SourceFile],
    selection: Selection,
    training: TokenizerTraining,
    threads: int,
    told: Told | None,
) -> Path:
    """The folder of a preparation's tokenizer: trained by the first process to come, the others wait for it.

    Args:
        partial: folder of the preparation.
        files: all its sources.
        selection: which documents are taken; those of the training split are learned from.
        training: what to train.
        threads: of the training.
        told: called with the bytes read so far and the bytes to read in all.

    Raises:
        DataError: as ``read_source`` and ``train_tokenizer``; or the process died.
    """
    key = hashlib.sha256(repr((training, selection, sources_digest(files))).encode()).hexdigest()[:16]
    folder = partial / f"tokenizer-{key}"
    with FileLock(partial / "tokenizer.lock"):
        if not folder.is_dir():
            trained = _train_apart(spread(files), selection, training, threads, told)
            try:
                save_tokenizer(trained, folder)
            except DataError:
                if not folder.is_dir():  # else another machine, whose lock is not seen here, was first: take its own
                    raise
    return folder


def spread(files: Sequence[SourceFile]) -> tuple[SourceFile, ...]:
    """Evenly spaced parts of ``files``, some ``_READ_BYTES`` in all; the files themselves where they have no more.

    Files that are small beside the space between parts are taken or left whole. So are, and always taken, large ones
    that cannot be entered in their middle, and Parquet, whose row groups may be larger than a part.
    """
    total = sum(file.size for file in files)
    if total <= _READ_BYTES:
        return tuple(files)
    stride = _PART_BYTES * total // _READ_BYTES
    chosen, offset = [], 0
    for file in files:
        first = -offset % stride  # of the file's bytes, the first that begins a part
        if file.size > _PART_BYTES and file.divisible and file.kind != "parquet":
            starts = range(first, file.size, stride)
            chosen += [replace(file, start=start, stop=min(start + _PART_BYTES, file.size)) for start in starts]
        elif file.size > stride or first < file.size:
            chosen.append(file)
        offset += file.size
    return tuple(chosen)


def _train_apart(
    files: Sequence[SourceFile], selection: Selection, training: TokenizerTraining, threads: int, told: Told | None
) -> str:
    """What ``_train`` gives, from a process of its own that goes when this one leaves, for whatever reason."""
    context = get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(there, files, selection, training, threads))
    process.start()
    there.close()
    total = sum(file.end - file.start for file in files)
    try:
        with closing(here):
            while True:
                message = here.recv()
                if isinstance(message, str):
                    return message
                if isinstance(message, UserError):
                    raise message
                if told:
                    told(message, total)
    except EOFError:
        raise DataError("tokenizer: the process that trained it died, most often for lack of memory") from None
    finally:
        process.kill()
        process.join()


def _train(
    answer: Connection, files: Sequence[SourceFile], selection: Selection, training: TokenizerTraining, threads: int
) -> None:
    """Sends the bytes read, time and again, and at last the JSON of the tokenizer, or what was wrong with the text."""
    start_worker(threads)
    total = sum(file.end - file.start for file in files)
    seen = DigestSet() if selection.deduplicate else None
    chosen = choose_documents(files, selection, left_out=LeftOut(), seen=seen)

    def pieces() -> Iterator[tuple[str, float]]:
        before, said = 0, -1
        for document in chosen:
            size, read = document.place.bytes_done - before, 0
            if document.split == TRAIN:
                for piece, _ in cut(document.text):
                    read += len(piece)
                    yield piece, (before + size * read / document.characters) / total
            before += size
            if before * _STEPS_TOLD // total != said:
                said = before * _STEPS_TOLD // total
                answer.send(before)
        answer.send(total)

    try:
        answer.send(train_tokenizer(pieces(), training))
    except UserError as error:
        answer.send(error)
