from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ds_pretrain.data.indexed import bin_path
from ds_pretrain.data.inspect import Bin, inspect_corpus
from ds_pretrain.data.prepare import prepare
from ds_pretrain.data.token_writer import TokenFileWriter
from ds_pretrain.errors import DataError


def write(prefix: Path, lengths: list[int]) -> Path:
    with TokenFileWriter(prefix, np.uint16) as writer:
        for number, length in enumerate(lengths):
            writer.append(np.full(length, number + 1, dtype=np.uint16))
    return prefix


def test_lengths_are_counted_by_powers_of_two(tmp_path: Path) -> None:
    found = inspect_corpus(write(tmp_path / "corpus", [2, 3, 4, 7, 7, 40]))
    assert (found.documents, found.tokens, found.dtype, found.manifest) == (6, 63, "uint16", None)
    assert (found.median_length, found.longest, found.samples, found.largest_id) == (5, 40, (), None)
    assert found.histogram == (
        Bin(2, 4, 2, 5),
        Bin(4, 8, 3, 18),
        Bin(8, 16, 0, 0),
        Bin(16, 32, 0, 0),
        Bin(32, 64, 1, 40),
    )
    assert inspect_corpus(write(tmp_path / "more", [0, 1])).histogram == (Bin(0, 1, 1, 0), Bin(1, 2, 1, 1))


def test_samples_are_spread_over_the_corpus_and_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "document {number}"}}\n' for number in range(10)))
    prepare([str(tmp_path / "a.jsonl")], tmp_path / "mine", tokenizer="train:270", workers=1)
    found = inspect_corpus(tmp_path / "mine", samples=3, verify_all=True)
    assert [(sample.document, sample.text) for sample in found.samples] == [
        (number, f"document {number}<|endoftext|>") for number in (0, 3, 6)
    ]
    assert found.manifest is not None
    assert found.largest_id is not None
    assert found.largest_id < 270
    data = bytearray(bin_path(tmp_path / "mine").read_bytes())
    data[2] ^= 1
    bin_path(tmp_path / "mine").write_bytes(data)
    assert inspect_corpus(tmp_path / "mine").documents == 10
    with pytest.raises(DataError, match=r"states bin_sha256"):
        inspect_corpus(tmp_path / "mine", verify_all=True)
