"""What a corpus holds: documents, tokens, lengths, token ids, and a few texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ds_pretrain.data.index_check import check_index
from ds_pretrain.data.manifest import Manifest, open_corpus, verify
from ds_pretrain.data.token_ids import check_ids
from ds_pretrain.data.tokenizer import load_tokenizer

_SAMPLE_TOKENS = 64


@dataclass(frozen=True)
class Bin:
    """Documents of ``low`` to below ``high`` tokens, and how many tokens they have in all."""

    low: int
    high: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class Sample:
    """The beginning of one document: its index, its tokens in all, and what its first tokens say."""

    document: int
    tokens: int
    text: str


@dataclass(frozen=True)
class Inspection:
    """What ``inspect_corpus`` finds.

    Args:
        documents, tokens, dtype: of the corpus.
        manifest: what it says of itself, or None.
        median_length, longest: tokens of a document.
        histogram: lengths by powers of two, without those that no document has at the ends.
        samples: evenly spread over the corpus; empty where no tokenizer is known.
        largest_id: the largest token id; None where it was not looked for.
    """

    documents: int
    tokens: int
    dtype: str
    manifest: Manifest | None
    median_length: int
    longest: int
    histogram: tuple[Bin, ...]
    samples: tuple[Sample, ...]
    largest_id: int | None


def inspect_corpus(
    prefix: Path, *, samples: int = 3, tokenizer: str | None = None, verify_all: bool = False
) -> Inspection:
    """Look at a corpus; only the index is read, and checked, and the samples, unless all of it is to be verified.

    Args:
        prefix: path without ``.bin`` and ``.idx``.
        samples: documents to decode.
        tokenizer: to decode with; the manifest's unless given.
        verify_all: read every token: look for the largest id, and compare the checksums with the manifest's.

    Raises:
        DataError: the files are damaged, differ from their manifest, or hold a token beyond the vocabulary.
    """
    corpus, manifest = open_corpus(prefix)
    check_index(corpus)
    lengths = corpus.document_lengths
    loaded = None
    if tokenizer is None and manifest is not None:
        tokenizer = manifest.tokenizer_path(prefix)
    if tokenizer is not None:
        loaded = load_tokenizer(tokenizer)
    largest = None
    if verify_all:
        if manifest is not None:
            verify(corpus, manifest, checksum=True)
        vocab_size = len(loaded) if loaded is not None else None
        largest = check_ids(corpus, vocab_size)
    ends = np.cumsum(lengths, dtype=np.int64)
    chosen = sorted({len(lengths) * number // samples for number in range(samples)}) if loaded is not None else []
    decoded = []
    for index in chosen:
        first = int(ends[index] - lengths[index])
        ids = corpus.tokens[first : first + min(int(lengths[index]), _SAMPLE_TOKENS)].tolist()
        assert loaded is not None
        decoded.append(Sample(index, int(lengths[index]), loaded.decode(ids)))
    return Inspection(
        documents=corpus.num_documents,
        tokens=corpus.num_tokens,
        dtype=corpus.dtype.name,
        manifest=manifest,
        median_length=int(np.median(lengths)),
        longest=int(lengths.max()),
        histogram=_histogram(lengths),
        samples=tuple(decoded),
        largest_id=largest,
    )


def _histogram(lengths: np.ndarray) -> tuple[Bin, ...]:
    """Documents by length, in powers of two."""
    # the exponent e with 2**(e - 1) <= length < 2**e; 0 for an empty document
    exponents = np.frexp(lengths.astype(np.float64))[1]
    documents = np.bincount(exponents)
    tokens = np.bincount(exponents, weights=lengths)
    used = np.flatnonzero(documents)
    return tuple(
        Bin(2 ** (power - 1) if power else 0, 2**power, int(documents[power]), int(tokens[power]))
        for power in range(int(used[0]), int(used[-1]) + 1)
    )
