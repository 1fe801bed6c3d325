"""From text to a corpus: read, split, tokenize, write, describe.

Documents keep their order whatever the number of workers, and a document's split depends on its own text alone. All
files are made in a hidden folder beside the output and moved to their names at the end.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_pretrain.data.indexed import TokenFileWriter, bin_path, idx_path, sync_path, token_dtype
from ds_pretrain.data.manifest import (
    Manifest,
    describe,
    manifest_path,
    open_corpus,
    tokenizer_reference,
    write_manifest,
)
from ds_pretrain.data.sources import Document, SkipCounts, SourceFile, list_files, read_documents
from ds_pretrain.data.tokenizer import (
    PIECE_CHARACTERS,
    Encoder,
    TextBatch,
    cut,
    encode_in_order,
    end_of_document_id,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
    worker_pool,
)
from ds_pretrain.errors import DataError, UserError

_TRAIN, _VALIDATION = 0, 1


class PrepareProgress(NamedTuple):
    """How far a preparation is: phase, source bytes done, source bytes in all, tokens written."""

    phase: Literal["tokenizer", "encode"]
    bytes_done: int
    bytes_total: int
    tokens: int


Progress = Callable[[PrepareProgress], None]


@dataclass(frozen=True)
class PrepareReport:
    """What a preparation made.

    Args:
        train_prefix: the training corpus, without ``.bin`` and ``.idx``.
        train: its manifest.
        validation_prefix: the validation corpus, or None where none was asked for.
        validation: its manifest.
        tokenizer: what ``load_tokenizer`` takes.
        skipped: what was left out.
    """

    train_prefix: Path
    train: Manifest
    validation_prefix: Path | None
    validation: Manifest | None
    tokenizer: str
    skipped: SkipCounts = field(default_factory=SkipCounts)


def default_workers() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare(
    inputs: Sequence[str],
    output: Path,
    *,
    tokenizer: str,
    validation: float = 0.0,
    workers: int | None = None,
    text_field: str = "text",
    min_frequency: int = 2,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PrepareReport:
    """Make ``<output>.bin``, ``.idx`` and ``.manifest.json`` (and ``<output>-val…``, ``<output>-tokenizer/``) of text.

    Memory: the largest document (at most 1 GiB), about 100 MB a worker, and 4 bytes a document.

    Args:
        inputs: files, folders, glob patterns or ``python-stdlib``, as ``list_files`` takes them.
        output: prefix of the corpus to write; folders are made.
        tokenizer: a folder, a hub name, or ``train:N`` to train byte-level BPE of N entries on the training split.
        validation: share of the documents to hold out, chosen by a hash of their text; at least 0 and below 1.
        workers: processes that encode, and threads that train the tokenizer; the cores of this process unless given.
        text_field: the key of a JSONL line that holds its text.
        min_frequency: for ``train:N``, how often a pair must stand in the text to be merged.
        overwrite: replace an output that exists.
        progress: called after every batch written.

    Raises:
        UserError: an argument that is not allowed.
        DataError: an input that cannot be read, an output that exists, a split without documents, a full disk.
    """
    workers = default_workers() if workers is None else workers
    if workers < 1:
        raise UserError(f"workers: found {workers}; allowed: 1 and more")
    if not 0.0 <= validation < 1.0:
        raise UserError(f"validation: found {validation}; allowed: a share of the documents from 0 to below 1")
    train_size = _train_size(tokenizer)
    names = [output.name, *([f"{output.name}-val"] if validation else [])]
    prefixes = [output.with_name(name) for name in names]
    trained = output.with_name(f"{output.name}-tokenizer")
    if not overwrite:
        _refuse_existing(prefixes, trained if train_size else None)
    files = list_files(inputs)
    bytes_total = sum(file.size for file in files)
    skipped = SkipCounts()
    with staging_folder(output) as staging:
        if train_size:
            if progress:
                progress(PrepareProgress("tokenizer", 0, bytes_total, 0))
            trained_json = _train_in_worker(
                workers, files, text_field, validation, train_size, min_frequency, bytes_total
            )
            save_tokenizer(trained_json, staging / trained.name)
            tokenizer = str(staging / trained.name)
        loaded = load_tokenizer(tokenizer)
        eos_id, vocab_size = end_of_document_id(loaded), len(loaded)
        encoder_path = staging / "encoder.json"
        encoder_path.write_text(loaded.backend_tokenizer.to_str(), encoding="utf-8")
        encoder = Encoder(str(encoder_path), eos_id, token_dtype(vocab_size).name)
        with ExitStack() as stack:
            writers = [stack.enter_context(TokenFileWriter(staging / name, encoder.dtype)) for name in names]
            documents = read_documents(files, text_field=text_field, skipped=skipped)
            results = stack.enter_context(closing(encode_in_order(_batches(documents, validation), encoder, workers)))
            bytes_done = 0
            for batch, tokens, lengths in results:
                _write_batch(writers[batch.tag], tokens, lengths, batch.last)
                bytes_done += batch.source_bytes
                if progress:
                    written = sum(writer.num_tokens for writer in writers)
                    progress(PrepareProgress("encode", bytes_done, bytes_total, written))
            _require_documents(writers, validation)
        reference = f"./{trained.name}" if train_size else tokenizer_reference(tokenizer, output.parent)
        for name in names:
            write_manifest(
                staging / name,
                describe(staging / name, sources=inputs, tokenizer=reference, vocab_size=vocab_size, eos_id=eos_id),
            )
        _publish(staging, prefixes, trained if train_size else None)
    manifests = [open_corpus(prefix)[1] for prefix in prefixes]
    assert manifests[0] is not None
    return PrepareReport(
        train_prefix=prefixes[0],
        train=manifests[0],
        validation_prefix=prefixes[1] if validation else None,
        validation=manifests[1] if validation else None,
        tokenizer=manifests[0].tokenizer_path(output),
        skipped=skipped,
    )


def _train_size(tokenizer: str) -> int | None:
    """Entries of the tokenizer that ``train:N`` asks for; None for any other tokenizer."""
    if not tokenizer.startswith("train"):
        return None
    match = re.fullmatch(r"train:(\d+)", tokenizer)
    if match:
        return int(match[1])
    if tokenizer.startswith("train:") or tokenizer == "train":
        raise UserError(f"tokenizer: found {tokenizer!r}; allowed: train:N with N entries, as train:8192")
    return None


def _in_validation(text: str, share: float) -> bool:
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _train(
    files: Sequence[SourceFile], text_field: str, validation: float, size: int, min_frequency: int, bytes_total: int
) -> str:
    texts = (document.text for document in read_documents(files, text_field=text_field))
    training = (text for text in texts if not _in_validation(text, validation))
    return train_bpe(training, size, min_frequency=min_frequency, total_bytes=bytes_total)


def _train_in_worker(workers: int, *arguments: Any) -> str:
    """``_train`` in a process of its own: only there can the number of its threads still be chosen."""
    with worker_pool(1, threads=workers) as pool:
        try:
            return pool.submit(_train, *arguments).result()
        except BrokenProcessPool as error:
            raise DataError("tokenizer: the process that trained it died, most often for lack of memory") from error


def _batches(documents: Iterator[Document], validation: float) -> Iterator[TextBatch]:
    """Batches of about ``PIECE_CHARACTERS``, each of one split, each split in the order of the documents."""
    batches = {split: TextBatch(split) for split in (_TRAIN, _VALIDATION)}
    for document in documents:
        split = _VALIDATION if _in_validation(document.text, validation) else _TRAIN
        for piece, last in cut(document.text):
            batches[split].add(piece, last=last, source_bytes=document.source_bytes if last else 0)
            if batches[split].characters >= PIECE_CHARACTERS:
                yield batches[split]
                batches[split] = TextBatch(split)
    yield from (batch for batch in batches.values() if batch.pieces)


def _write_batch(
    writer: TokenFileWriter, tokens: NDArray[np.integer[Any]], lengths: Sequence[int], last: Sequence[bool]
) -> None:
    start = 0
    for length, ends in zip(lengths, last, strict=True):
        writer.write(tokens[start : start + length])
        start += length
        if ends:
            writer.end_document()


def _require_documents(writers: Sequence[TokenFileWriter], validation: float) -> None:
    counts = [writer.num_documents for writer in writers]
    if sum(counts) == 0:
        raise DataError("the input holds no documents, or nothing but whitespace; give files with text")
    for split, count in zip(("training", "validation"), counts, strict=False):
        if count == 0:
            raise DataError(
                f"validation: a share of {validation:g} of {sum(counts)} documents leaves the {split} corpus without "
                "any; give more documents (a document is a file, or a line of JSONL), another share, or 0"
            )


def _refuse_existing(prefixes: Sequence[Path], trained: Path | None) -> None:
    files = [file(prefix) for prefix in prefixes for file in (bin_path, idx_path, manifest_path)]
    for path in [*files, *([trained] if trained else [])]:
        if path.exists():
            raise DataError(f"{path}: exists already; choose another output, or replace it (--overwrite)")


@contextmanager
def staging_folder(output: Path) -> Iterator[Path]:
    """A hidden folder beside ``output``, gone at the end whatever happens."""
    folder = output.with_name(f".{output.name}.{uuid.uuid4().hex}.partial")
    try:
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        raise DataError(
            f"{output}: cannot be written: {error.strerror or error}; free space or choose another"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(staging: Path, prefixes: Sequence[Path], trained: Path | None) -> None:
    """Move everything to its name. A corpus without ``.idx`` is none: those go first and come back last."""
    for prefix in prefixes:
        idx_path(prefix).unlink(missing_ok=True)
    if trained:
        shutil.rmtree(trained, ignore_errors=True)
        os.replace(staging / trained.name, trained)
    for file in (bin_path, manifest_path, idx_path):
        for prefix in prefixes:
            os.replace(file(staging / prefix.name), file(prefix))
    sync_path(prefixes[0].parent)
