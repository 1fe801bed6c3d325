"""Corpora that a run prepares for itself, kept in a cache and found again while nothing they came from changes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ds_pretrain.data.manifest import manifest_path, open_corpus
from ds_pretrain.data.prepare import Progress, prepare
from ds_pretrain.data.sources import list_files, source_file, sources_digest
from ds_pretrain.errors import DataError

_CACHE_VERSION = 3  # raise it when the same text would give other tokens


@dataclass(frozen=True)
class CachedCorpus:
    """A corpus in the cache: prefixes without ``.bin`` and ``.idx``, and what ``load_tokenizer`` takes."""

    train: Path
    validation: Path | None
    tokenizer: str


def prepare_cached(
    text: str,
    *,
    tokenizer_path: str | None,
    train_vocab_size: int | None,
    min_frequency: int = 2,
    validation_fraction: float | None,
    cache_dir: Path,
    text_field: str = "text",
    progress: Progress | None = None,
) -> CachedCorpus:
    """The corpus of ``text`` from the cache, made first where it is not there yet.

    An entry is found again while the settings, the names, sizes and times of the source's files, and the tokenizer's
    are the same. Entries appear whole. Of two processes that want the same one, the second waits for the first. After a
    kill the next one goes on where it was: work under way stands in ``<key>.partial`` in the cache.

    Args:
        text: a file, a folder, a glob pattern or ``python-stdlib``.
        tokenizer_path: a folder or hub name; exactly one of this and ``train_vocab_size`` is given.
        train_vocab_size: entries of a tokenizer to train on the training split.
        min_frequency: how often a pair must stand in the text to be merged.
        validation_fraction: share of the documents to hold out; None holds out none.
        cache_dir: the cache; made where it does not exist.
        text_field: the key of a JSONL line that holds its text.
        progress: called after every batch written.

    Raises:
        DataError: as ``prepare``, or an entry that was damaged.
    """
    assert (tokenizer_path is None) != (train_vocab_size is None), "one of the two names the tokenizer"
    tokenizer = tokenizer_path if tokenizer_path is not None else f"train:{train_vocab_size}"
    files = list_files([text])
    if tokenizer_path is not None and Path(tokenizer_path).is_dir():
        tokenizer = str(Path(tokenizer_path).resolve())
        files += tuple(map(source_file, sorted(Path(tokenizer).glob("*.json"))))
    settings = {
        "version": _CACHE_VERSION,
        "python": platform.python_version(),
        "text": text,
        "text_field": text_field,
        "tokenizer": tokenizer,
        "min_frequency": min_frequency,
        "validation_fraction": validation_fraction,
        "files": sources_digest(files),
    }
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:20]
    entry = cache_dir / key
    if not entry.is_dir():
        with _work_folder(entry) as work:
            if not entry.is_dir():  # another process may have made it meanwhile
                prepare(
                    [text],
                    work / "train",
                    tokenizer=tokenizer,
                    validation=validation_fraction or 0.0,
                    text_field=text_field,
                    min_frequency=min_frequency,
                    overwrite=True,  # a kill may have left it whole, without the name of an entry
                    progress=progress,
                )
                os.rename(work, entry)
    train = entry / "train"
    validation = entry / "train-val" if validation_fraction else None
    for prefix in (train, validation):
        if prefix and not manifest_path(prefix).is_file():
            raise DataError(f"{entry}: a damaged cache entry; delete this folder and start again")
    manifest = open_corpus(train)[1]
    assert manifest is not None
    if validation:
        open_corpus(validation)
    return CachedCorpus(train, validation, manifest.tokenizer_path(train))


@contextmanager
def _work_folder(entry: Path) -> Iterator[Path]:
    """Where an entry is made, by one process at a time; it stays only while it holds work that can go on."""
    lock, partial = entry.with_name(f"{entry.name}.lock"), entry.with_name(f"{entry.name}.partial")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            (partial / "entry").mkdir(parents=True, exist_ok=True)
            try:
                yield partial / "entry"
            finally:
                if not any(partial.glob("entry/*")):
                    shutil.rmtree(partial, ignore_errors=True)
                lock.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{entry}: cannot be written: {error.strerror or error}; free space or set another data.cache_dir"
        ) from error
