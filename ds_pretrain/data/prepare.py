"""From text to a corpus: read, choose, tokenize, write, describe.

Documents keep their order whatever the number of workers and shards, and a document's split depends on its own text
alone. Work under way stands in ``<output>.partial/``, a folder a shard; ``publish`` makes the corpus of it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

from filelock import FileLock, Timeout
from typing_extensions import Required, Unpack

from ds_pretrain.data.documents import Chosen, LeftOut, Place, Selection, choose_documents
from ds_pretrain.data.duplicates import DigestSet
from ds_pretrain.data.encoding import PIECE_CHARACTERS, Encoder, TextBatch, cut, encode_in_order
from ds_pretrain.data.indexed import token_dtype
from ds_pretrain.data.job_tokenizer import trained_tokenizer
from ds_pretrain.data.manifest import tokenizer_reference
from ds_pretrain.data.publish import (
    PrepareReport,
    being_published,
    clear_published,
    partial_folder,
    publish,
    refuse_existing,
    require_documents,
)
from ds_pretrain.data.shard import (
    SPLITS,
    Commit,
    Job,
    ShardWriter,
    discard_unused,
    load_column,
    shard_folder,
    start_shard,
    write_whole,
)
from ds_pretrain.data.sources import SourceFile, list_files, prefix_digests, shard_of, sources_digest
from ds_pretrain.data.tokenizer import end_of_document_id, load_tokenizer
from ds_pretrain.data.train_tokenizer import parse_training
from ds_pretrain.errors import DataError, UserError

_COMMIT_SECONDS = 10.0


class PrepareProgress(NamedTuple):
    """How far a preparation is: phase, source bytes done, source bytes in all, tokens written."""

    phase: Literal["tokenizer", "encode"]
    bytes_done: int
    bytes_total: int
    tokens: int


Progress = Callable[[PrepareProgress], None]


def default_workers() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Options(TypedDict, total=False):
    """How to prepare a corpus; all but ``tokenizer`` may be left out."""

    tokenizer: Required[str]
    """A folder, a hub name, or ``train:N`` or ``train:N:unigram`` to train one on the training split."""
    validation: float
    """Share of the documents to hold out, chosen by a hash of their text; at least 0 and below 1."""
    workers: int | None
    """Processes that encode, and threads that train the tokenizer; the cores of this process unless given."""
    text_field: str
    """Key, column or field of a record that holds its text; ``text`` unless given."""
    split: str | None
    """Split of a data set."""
    subset: str | None
    """Configuration of a data set."""
    streaming: bool
    """Read a data set as it arrives."""
    deduplicate: bool
    """Take only the first of documents with one and the same text."""
    min_characters: int
    """Leave out documents that are shorter."""
    max_characters: int | None
    """Leave out documents that are longer."""
    min_frequency: int
    """For ``train:N``, how often a pair must stand in the text to be merged; 2 unless given."""
    overwrite: bool
    """Replace an output that exists."""
    progress: Progress | None
    """Called after every batch written."""


def prepare(inputs: Sequence[str], output: Path, **options: Unpack[Options]) -> PrepareReport:
    """Make ``<output>.bin``, ``.idx`` and ``.manifest.json`` (and ``<output>-val…``, ``<output>-tokenizer/``) of text.

    Started again after a kill or an error, it goes on where it was. Memory as ``prepare_shard``.

    Args:
        inputs: what to read, as ``list_files`` takes it.
        output: prefix of the corpus to write; folders are made.
        options: see ``Options``.

    Raises:
        UserError: an argument that is not allowed.
        DataError: an input that cannot be read, an output that exists, a split without documents, a full disk.
    """
    commit = prepare_shard(inputs, output, (0, 1), **options)
    validation = options.get("validation", 0.0)
    try:
        require_documents(commit.documents[: 2 if validation else 1], validation)
    except DataError:
        shutil.rmtree(partial_folder(output), ignore_errors=True)
        raise
    return publish(output, overwrite=options.get("overwrite", False))


def prepare_shard(inputs: Sequence[str], output: Path, shard: tuple[int, int], **options: Unpack[Options]) -> Commit:
    """Do one shard of a preparation; ``publish`` makes the corpus once all are done.

    The first shard to come trains the tokenizer, where one is to be trained, for all shards on the text of all.

    Memory, whatever the corpus: about 100 MB a process, one more than there are workers; a record of JSONL, CSV,
    Parquet or a data set (at most 64 MiB) a few times over; while a tokenizer is trained, what ``tokenizers`` needs for
    256 MiB of text; with ``deduplicate`` 11 to 23 bytes a document, half as much again for moments.

    Args:
        inputs: what to read, as ``list_files`` takes it.
        output: prefix of the corpus to write; folders are made.
        shard: index and number of shards.
        options: see ``Options``.

    Returns:
        what the shard holds.

    Raises:
        UserError: as ``prepare``.
    """
    tokenizer, progress = options["tokenizer"], options.get("progress")
    asked = options.get("workers")
    workers = default_workers() if asked is None else asked
    if workers < 1:
        raise UserError(f"workers: found {workers}; allowed: 1 and more")
    selection = Selection(
        text_field=options.get("text_field", "text"),
        validation=options.get("validation", 0.0),
        deduplicate=options.get("deduplicate", False),
        min_characters=options.get("min_characters", 1),
        max_characters=options.get("max_characters"),
    )
    training = parse_training(tokenizer, options.get("min_frequency", 2))
    existing = (output, selection.validation > 0, training is not None, options.get("overwrite", False))
    clear_published(output)
    if not being_published(output):
        refuse_existing(*existing)
    every = list_files(
        inputs, split=options.get("split"), subset=options.get("subset"), streaming=options.get("streaming", False)
    )
    partial = partial_folder(output)
    folder = shard_folder(partial, *shard)
    with _shard_lock(folder, alone=shard[1] == 1):
        trained = None
        if training is not None:

            def told(read: int, total: int) -> None:
                if progress:
                    progress(PrepareProgress("tokenizer", read, total, 0))

            trained = trained_tokenizer(partial, every, selection, training, workers, told)
        job, backend = _job(inputs, output, selection, tokenizer, trained, shard[1])
        files = shard_of(every, *shard)
        digests, whole = prefix_digests(files), sources_digest(every)
        commit = start_shard(folder, job, digests)
        if commit.done == whole:
            return commit
        refuse_existing(*existing)
        encoder_path = folder / "encoder.json"
        write_whole(encoder_path, backend)
        encoder = Encoder(str(encoder_path), job.eos_id, job.dtype)
        with ShardWriter(folder, job, commit, selection.deduplicate) as writer:
            left_out = _encode(files, digests, selection, encoder, writer, workers, progress)
            place = Place(len(files), 0, sum(file.end - file.start for file in files))
            writer.commit(place, digests[-1], left_out, whole)
        return writer.last


def _job(
    inputs: Sequence[str], output: Path, selection: Selection, tokenizer: str, trained: Path | None, shards: int
) -> tuple[Job, bytes]:
    """What all shards have in common, and the JSON of the ``tokenizers`` tokenizer."""
    loaded = load_tokenizer(str(trained or tokenizer))
    backend = loaded.backend_tokenizer.to_str().encode()
    job = Job(
        inputs=list(inputs),
        selection=asdict(selection),
        tokenizer=f"./{output.name}-tokenizer" if trained else tokenizer_reference(tokenizer, output.parent),
        trained_tokenizer=trained.name if trained else None,
        tokenizer_digest=hashlib.sha256(backend).hexdigest(),
        vocab_size=len(loaded),
        eos_id=end_of_document_id(loaded),
        dtype=token_dtype(len(loaded)).name,
        shards=shards,
    )
    return job, backend


@dataclass
class _Documents:
    """What a batch holds: split and digest of each document, and how far the reading is with the last one."""

    splits: list[int] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    place: Place = Place()
    left_out: LeftOut = field(default_factory=LeftOut)


def _encode(
    files: Sequence[SourceFile],
    digests: Sequence[str],
    selection: Selection,
    encoder: Encoder,
    writer: ShardWriter,
    workers: int,
    progress: Progress | None,
) -> LeftOut:
    """Read, encode and write everything that the shard does not hold yet; tells what was left out in all."""
    total = sum(file.end - file.start for file in files)
    left_out = replace(writer.last.left_out)
    seen = DigestSet(_digests(writer.folder)) if selection.deduplicate else None
    chosen = choose_documents(files, selection, left_out=left_out, seen=seen, start=writer.last.place)
    batches = _batches(chosen, left_out)
    committed = time.monotonic()
    with closing(encode_in_order(batches, encoder, workers)) as results:
        for batch, tokens, lengths in results:
            documents, start, ended = batch.tag, 0, 0
            for length, last in zip(lengths, batch.last, strict=True):
                split = documents.splits[ended]
                writer.write(split, tokens[start : start + length])
                start += length
                if last:
                    writer.end_document(split, documents.digests[ended], str(files[documents.place.source].path))
                    ended += 1
            if batch.last[-1] and time.monotonic() - committed >= _COMMIT_SECONDS:
                place = documents.place
                writer.commit(place, digests[place.source], documents.left_out)
                committed = time.monotonic()
            if progress:
                progress(PrepareProgress("encode", documents.place.bytes_done, total, sum(writer.tokens)))
    return left_out


def _batches(chosen: Iterator[Chosen], left_out: LeftOut) -> Iterator[TextBatch[_Documents]]:
    """Batches of about ``PIECE_CHARACTERS``, in the order of the documents."""
    batch = TextBatch(_Documents())
    for document in chosen:
        counted = replace(left_out)
        for piece, last in cut(document.text, PIECE_CHARACTERS):
            if not batch.last or batch.last[-1]:
                batch.tag.splits.append(document.split)
                batch.tag.digests.append(document.digest)
            batch.add(piece, last=last)
            batch.tag.place, batch.tag.left_out = document.place, counted
            if batch.characters >= PIECE_CHARACTERS:
                yield batch
                batch = TextBatch(_Documents())
    if batch.pieces:
        yield batch


def _digests(folder: Path) -> Iterator[int]:
    for split in range(len(SPLITS)):
        for digest in load_column(folder, split, "digests", "<u8"):
            yield int(digest)


@contextmanager
def _shard_lock(folder: Path, alone: bool) -> Iterator[None]:
    """Only one process works on a shard. At the end a folder in which nothing is safe goes away."""
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(f"{folder}: another process is at work on it; wait for it, or choose another output") from None
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written: {error.strerror or error}; free space or choose another output"
        ) from error
    try:
        yield
    finally:
        discard_unused(folder)
        lock.release()
        if alone and not any(path.is_dir() for path in folder.parent.glob("*")):
            shutil.rmtree(folder.parent, ignore_errors=True)
