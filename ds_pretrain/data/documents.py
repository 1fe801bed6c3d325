"""Which documents of the sources are taken, and into which split: decided by their own text alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ds_pretrain.data.duplicates import DigestSet
from ds_pretrain.data.readers import Document, LongText, NotUtf8Error, read_source
from ds_pretrain.data.sources import SourceFile
from ds_pretrain.errors import UserError

TRAIN, VALIDATION = 0, 1


@dataclass
class LeftOut:
    """How many documents were left out, and why; ``undecodable`` are files of ``python-stdlib`` that are not UTF-8."""

    empty: int = 0
    undecodable: int = 0
    too_short: int = 0
    too_long: int = 0
    duplicate: int = 0


@dataclass(frozen=True)
class Selection:
    """What to take.

    Args:
        text_field: key, column or field that holds the text of a record.
        validation: share of the documents that is held out, by a hash of their text; at least 0 and below 1.
        deduplicate: take the first of documents with one and the same text.
        min_characters: leave out documents that are shorter.
        max_characters: leave out documents that are longer; None takes any.

    Raises:
        UserError: a value that is not allowed.
    """

    text_field: str = "text"
    validation: float = 0.0
    deduplicate: bool = False
    min_characters: int = 1
    max_characters: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.validation < 1.0:
            raise UserError(f"validation: found {self.validation}; allowed: a share of the documents from 0 to below 1")
        if self.min_characters < 1:
            raise UserError(f"min_characters: found {self.min_characters}; allowed: 1 and more")
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise UserError(
                f"max_characters: found {self.max_characters}; allowed: at least min_characters, {self.min_characters}"
            )


class Place(NamedTuple):
    """How far a reading is: sources done, records of the next one done, bytes of all done."""

    source: int = 0
    record: int = 0
    bytes_done: int = 0


START = Place()


class Chosen(NamedTuple):
    """A document that is taken: its text, characters, split and digest, and how far the reading is with it."""

    text: str | LongText
    characters: int
    split: int
    digest: int
    place: Place


def choose_documents(
    files: Sequence[SourceFile],
    selection: Selection,
    *,
    left_out: LeftOut,
    seen: DigestSet | None = None,
    start: Place = START,
) -> Iterator[Chosen]:
    """The documents of ``files`` that ``selection`` takes, in order.

    Args:
        files: from ``list_files``.
        selection: what to take.
        left_out: counts, added to while reading.
        seen: digests of documents already taken; needed to de-duplicate.
        start: where an earlier reading of the same files stopped.

    Raises:
        DataError: as ``read_source``.
    """
    before = sum(file.end - file.start for file in files[: start.source])
    for index in range(start.source, len(files)):
        file = files[index]
        skip = start.record if index == start.source else 0
        try:
            for document in read_source(file, selection.text_field, skip):
                place = Place(index, document.record, before + document.position)
                chosen = _choose(document, selection, left_out, seen, place)
                if chosen is not None:
                    yield chosen
        except NotUtf8Error:
            if not file.skip_undecodable:
                raise
            left_out.undecodable += 1
        before += file.end - file.start


def _choose(
    document: Document, selection: Selection, left_out: LeftOut, seen: DigestSet | None, place: Place
) -> Chosen | None:
    digest, characters, blank = _measure(document.text)
    if blank:
        left_out.empty += 1
    elif characters < selection.min_characters:
        left_out.too_short += 1
    elif selection.max_characters is not None and characters > selection.max_characters:
        left_out.too_long += 1
    elif selection.deduplicate and seen is not None and not seen.add(digest):
        left_out.duplicate += 1
    else:
        split = VALIDATION if digest < selection.validation * 2**64 else TRAIN
        return Chosen(document.text, characters, split, digest, place)
    return None


def _measure(text: str | LongText) -> tuple[int, int, bool]:
    """Digest, characters, and whether there is nothing but whitespace."""
    digest, characters, blank = hashlib.blake2b(digest_size=8), 0, True
    for block in (text,) if isinstance(text, str) else text:
        digest.update(block.encode("utf-8"))
        characters += len(block)
        blank = blank and (not block or block.isspace())
    return int.from_bytes(digest.digest(), "big"), characters, blank
