"""Tokenizers: loading one, training one, and encoding text with it in processes, in order and in bounded memory."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import uuid
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ds_pretrain.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

EOS_TOKEN = "<|endoftext|>"
MIN_VOCAB_SIZE = 257  # 256 bytes and the end-of-document token
MAX_TRAINING_BYTES = 256 << 20
PIECE_CHARACTERS = 1 << 19
_HUB_SECONDS = 10.0
# A lone line end between two words: byte-level BPE encodes the two sides alike whether they are cut there or not.
_CLEAN_CUT = re.compile(r"\S\n(?=\S)")


def load_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a folder, from the local cache, or by name from the hub.

    Args:
        path: a folder written by transformers, or a hub name.

    Raises:
        DataError: there is none, it is not a fast one, or the hub cannot be reached.
    """
    from transformers import AutoTokenizer

    folder = Path(path)
    looks_local = folder.is_absolute() or path.startswith((".", "~")) or path.endswith("/") or path.count("/") > 1
    if not folder.is_dir() and (looks_local or folder.exists()):
        raise DataError(f"tokenizer {path}: no such folder; allowed: a folder that transformers saved, or a hub name")
    try:
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except OSError:
            if folder.is_dir():
                raise
            _check_hub(path)
            tokenizer = AutoTokenizer.from_pretrained(path)
    except DataError:
        raise
    except Exception as error:  # transformers raises anything, from OSError to KeyError, for a folder it cannot read
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"tokenizer {path}: cannot be loaded: {reason}; allowed: a folder with a fast tokenizer (tokenizer.json)"
        ) from error
    if not tokenizer.is_fast:
        raise DataError(f"tokenizer {path}: is a slow one; allowed: fast tokenizers (with a tokenizer.json)")
    return tokenizer


def end_of_document_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token that ends a document: end of sequence, or the separator where there is none (BERT).

    Raises:
        DataError: the tokenizer has neither.
    """
    for token_id in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token_id is not None:
            return int(token_id)
    raise DataError(
        f"tokenizer {tokenizer.name_or_path}: no end-of-document token; set eos_token in its tokenizer_config.json"
    )


def train_bpe(
    documents: Iterable[str],
    vocab_size: int,
    *,
    min_frequency: int = 2,
    total_bytes: int,
    max_bytes: int = MAX_TRAINING_BYTES,
) -> str:
    """Train byte-level BPE; the same documents give the same tokenizer. Returns its JSON.

    Memory is bounded by learning from at most about ``max_bytes`` of text (256 MiB unless given), in pieces of half a
    million characters taken evenly over all documents.

    Args:
        documents: texts to learn from.
        vocab_size: entries, the 256 bytes and the end-of-document token included; fewer where the text has fewer.
        min_frequency: how often a pair must stand in the text to be merged.
        total_bytes: size of all documents, in UTF-8 bytes; too high an estimate means that fewer are used.
        max_bytes: the most to learn from, in bytes.

    Raises:
        DataError: ``vocab_size`` is too small, or there are no documents.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < MIN_VOCAB_SIZE:
        raise DataError(
            f"tokenizer: found a vocabulary of {vocab_size}; allowed: at least {MIN_VOCAB_SIZE}, the 256 bytes and "
            f"{EOS_TOKEN}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    seen = 0

    def sample() -> Iterator[str]:
        nonlocal seen
        taken = 0
        for document in documents:
            for piece, _ in cut(document):
                size = len(piece.encode("utf-8"))
                seen += size
                if taken * total_bytes < seen * max_bytes:
                    taken += size
                    yield piece

    tokenizer.train_from_iterator(sample(), trainer=trainer)
    if seen == 0:
        raise DataError("tokenizer: no documents to train on; give more text, or hold less of it out for validation")
    return str(tokenizer.to_str())


def train_tokenizer(
    documents: Iterable[str],
    vocab_size: int,
    output_dir: Path,
    *,
    min_frequency: int = 2,
    total_bytes: int,
    max_bytes: int = MAX_TRAINING_BYTES,
) -> None:
    """Train byte-level BPE and save it as a folder that transformers loads: ``train_bpe``, ``save_tokenizer``."""
    trained = train_bpe(
        documents, vocab_size, min_frequency=min_frequency, total_bytes=total_bytes, max_bytes=max_bytes
    )
    save_tokenizer(trained, output_dir)


def save_tokenizer(tokenizer_json: str, output_dir: Path) -> None:
    """Write a trained tokenizer as a folder that transformers loads; it appears whole or not at all.

    Args:
        tokenizer_json: from ``train_bpe``.
        output_dir: the folder to make; it may not exist.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json), eos_token=EOS_TOKEN, clean_up_tokenization_spaces=False
    )
    partial = output_dir.with_name(f".{output_dir.name}.{uuid.uuid4().hex}.partial")
    try:
        tokenizer.save_pretrained(partial)
        os.rename(partial, output_dir)
    except OSError as error:
        raise DataError(f"{output_dir}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def cut(text: str, characters: int = PIECE_CHARACTERS) -> Iterator[tuple[str, bool]]:
    """Pieces of ``text`` of at most ``characters``, which joined give it back, and whether each is the last.

    Encoding needs a hundred bytes and more a token: pieces bound that for a document of any length. They are cut at a
    lone line end, where byte-level BPE gives the tokens of the whole; where a piece has none, at its very end.
    """
    start = 0
    while len(text) - start > characters:
        end = start + characters
        clean = _CLEAN_CUT.search(text, end - characters // 2, end + 1)
        end = clean.end() if clean else end
        yield text[start:end], False
        start = end
    yield text[start:], True


@dataclass(frozen=True)
class Encoder:
    """What a worker needs to encode text.

    Args:
        path: JSON file of the ``tokenizers`` tokenizer.
        eos_id: token put after each document.
        dtype: type of the token ids to return.
    """

    path: str
    eos_id: int
    dtype: str


@dataclass
class TextBatch:
    """Text to encode together.

    Args:
        tag: passed through, for whoever makes the batch.
        pieces: whole documents, or pieces of long ones.
        last: for each piece, whether it ends its document.
        characters: length of all pieces.
        source_bytes: bytes of the documents that end here, in their files; passed through.
    """

    tag: int
    pieces: list[str] = field(default_factory=list)
    last: list[bool] = field(default_factory=list)
    characters: int = 0
    source_bytes: int = 0

    def add(self, piece: str, *, last: bool, source_bytes: int) -> None:
        """Add the next piece."""
        self.pieces.append(piece)
        self.last.append(last)
        self.characters += len(piece)
        self.source_bytes += source_bytes


def encode_in_order(
    batches: Iterable[TextBatch], encoder: Encoder, workers: int
) -> Generator[tuple[TextBatch, NDArray[np.integer[Any]], list[int]], None, None]:
    """Encode batches in ``workers`` processes; results come in the order of ``batches``.

    Memory: at most ``2 * workers + 2`` batches are under way, however many there are.

    Yields:
        the batch, its token ids end to end, and the number of tokens of each piece.

    Raises:
        DataError: a worker died.
    """
    pool = worker_pool(workers, threads=1)
    waiting: deque[tuple[TextBatch, Future[tuple[NDArray[np.integer[Any]], list[int]]]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, pool.submit(_encode, encoder, batch.pieces, batch.last)))
            if len(waiting) > 2 * workers + 1:
                oldest, result = waiting.popleft()
                yield oldest, *result.result()
        while waiting:
            oldest, result = waiting.popleft()
            yield oldest, *result.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died while encoding, most often for lack of memory; use fewer workers (--workers)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def worker_pool(workers: int, threads: int) -> ProcessPoolExecutor:
    """A pool of fresh processes that leave with their parent and in which `tokenizers` uses ``threads`` threads."""
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker, initargs=(threads,))


def _start_worker(threads: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the whole group: leave without a traceback
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    # A killed parent closes no pipe that its workers wait on: without this they would wait for ever.
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@lru_cache(maxsize=1)
def _load_encoder(path: str) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # a document that spells <|endoftext|> does not end there
    return tokenizer


def _encode(encoder: Encoder, pieces: list[str], last: list[bool]) -> tuple[NDArray[np.integer[Any]], list[int]]:
    encodings = _load_encoder(encoder.path).encode_batch_fast(pieces, add_special_tokens=False)
    arrays = []
    for encoding, ends in zip(encodings, last, strict=True):
        ids = encoding.ids
        if ends:
            ids.append(encoder.eos_id)
        arrays.append(np.array(ids, dtype=encoder.dtype))
    return np.concatenate(arrays), [len(ids) for ids in arrays]


def _check_hub(name: str) -> None:
    """Ask the hub once whether it has ``name``: without a network transformers itself would retry for a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except Exception as error:  # the errors of whichever HTTP client the hub's library uses
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"tokenizer {name}: no such folder, not in the local cache, and the hub does not give it ({reason}); "
            "give a folder that transformers saved, or train one (train:8192)"
        ) from error
