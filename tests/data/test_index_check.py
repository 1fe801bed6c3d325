from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ds_pretrain.data import index_check
from ds_pretrain.data.index_check import check_index
from ds_pretrain.data.indexed import TokenFile, idx_path
from ds_pretrain.data.inspect import inspect_corpus
from ds_pretrain.data.manifest import describe
from ds_pretrain.data.token_writer import TokenFileWriter
from ds_pretrain.errors import DataError

LENGTHS = [3, 0, 1, 2, 5, 1]
_OFFSETS = 34 + 4 * len(LENGTHS)
_BOUNDS = _OFFSETS + 8 * len(LENGTHS)


@pytest.fixture(params=[1 << 20, 2])
def prefix(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(index_check, "_BLOCK", request.param)
    with TokenFileWriter(tmp_path / "corpus", "uint16") as writer:
        for length in LENGTHS:
            writer.append(np.arange(length))
    return tmp_path / "corpus"


def patch(prefix: Path, offset: int, layout: str, *values: int) -> None:
    with idx_path(prefix).open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(layout, *values))


def test_a_whole_index_passes(prefix: Path) -> None:
    check_index(TokenFile.open(prefix))
    patch(prefix, _BOUNDS, "<7q", 0, 0, 2, 2, 5, 5, 6)  # documents of several sequences, and of none
    check_index(TokenFile.open(prefix))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        # one length up, another down: their sum is right
        (lambda p: patch(p, 34, "<3i", 4, 0, 0), r"idx: sequence 1: begins at byte 6 .* before it make 8; copy"),
        (lambda p: patch(p, 34, "<3i", 5, -2, 1), r"idx: sequence 1: has -2 tokens; allowed: 0 and more"),
        (lambda p: patch(p, 34 + 16, "<i", -1), r"idx: sequence 4: has -1 tokens"),
        (lambda p: patch(p, _OFFSETS + 24, "<q", 10), r"idx: sequence 3: begins at byte 10 of .* make 8"),
        (lambda p: patch(p, _OFFSETS + 24, "<q", -8), r"idx: sequence 3: begins at byte -8 of .* make 8"),
        (lambda p: patch(p, _BOUNDS + 16, "<q", 5), r"idx: document 2: its sequences run from 5 to 3; allowed"),
        (lambda p: patch(p, _BOUNDS + 24, "<q", 7), r"idx: document 3: its sequences run from 7 to 4"),
        (lambda p: patch(p, _BOUNDS + 24, "<q", -1), r"idx: document 2: its sequences run from 2 to -1"),
    ],
)
def test_damage_that_opening_does_not_see_is_found(prefix: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(prefix)
    corpus = TokenFile.open(prefix)
    for read in (
        lambda: check_index(corpus),
        lambda: inspect_corpus(prefix),
        lambda: describe(prefix, sources=[], tokenizer="gpt2", vocab_size=300, eos_id=0),
    ):
        with pytest.raises(DataError, match=message):
            read()
