"""Encoding text in processes: documents cut into pieces, in order, in bounded memory."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ds_pretrain.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PIECE_CHARACTERS = 1 << 19
# A lone line end between two words: byte-level tokenizers encode the two sides alike whether they are cut there or not.
_CLEAN_CUT = re.compile(r"\S\n(?=\S)")
T = TypeVar("T")


def cut(text: str | Iterable[str], characters: int = PIECE_CHARACTERS) -> Iterator[tuple[str, bool]]:
    """Pieces of ``text`` of at most ``characters``, which joined give it back, and whether each is the last.

    Encoding needs a hundred bytes and more a token: pieces bound that for a document of any length. They are cut at a
    lone line end, where a byte-level tokenizer gives the tokens of the whole; where a piece has none, at its very end.

    Args:
        text: whole, or in blocks of any size, which are cut where the whole would be.
        characters: the longest piece.
    """
    held = ""
    for block in (text,) if isinstance(text, str) else text:
        held = held + block if held else block
        start = 0
        while len(held) - start > characters:
            end = start + characters
            clean = _CLEAN_CUT.search(held, end - characters // 2, end + 1)
            end = clean.end() if clean else end
            yield held[start:end], False
            start = end
        held = held[start:] if start else held
    yield held, True


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
class TextBatch(Generic[T]):
    """Text to encode together.

    Args:
        tag: passed through, for whoever makes the batch.
        pieces: whole documents, or pieces of long ones.
        last: for each piece, whether it ends its document.
        characters: length of all pieces.
    """

    tag: T
    pieces: list[str] = field(default_factory=list)
    last: list[bool] = field(default_factory=list)
    characters: int = 0

    def add(self, piece: str, *, last: bool) -> None:
        """Add the next piece."""
        self.pieces.append(piece)
        self.last.append(last)
        self.characters += len(piece)


def encode_in_order(
    batches: Iterable[TextBatch[T]], encoder: Encoder, workers: int
) -> Generator[tuple[TextBatch[T], NDArray[np.integer[Any]], list[int]], None, None]:
    """Encode batches in ``workers`` processes; results come in the order of ``batches``.

    Memory: at most ``2 * workers + 2`` batches are under way, however many there are.

    Yields:
        the batch, its token ids end to end, and the number of tokens of each piece.

    Raises:
        DataError: a worker died.
    """
    # fresh processes, which leave with their parent
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=start_worker, initargs=(1,))
    waiting: deque[tuple[TextBatch[T], Future[tuple[NDArray[np.integer[Any]], list[int]]]]] = deque()
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


def start_worker(threads: int) -> None:
    """Make a fresh process one that leaves with its parent, and in which `tokenizers` uses ``threads`` threads."""
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
