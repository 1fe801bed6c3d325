from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ds_pretrain.data.indexed import TokenFile
from ds_pretrain.data.token_ids import check_ids
from ds_pretrain.data.token_writer import TokenFileWriter
from ds_pretrain.errors import DataError


def write(prefix: Path, lengths: list[int]) -> Path:
    with TokenFileWriter(prefix, np.uint16) as writer:
        for number, length in enumerate(lengths):
            writer.append(np.full(length, number + 1, dtype=np.uint16))
    return prefix


def test_an_id_beyond_the_vocabulary_is_placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = TokenFile.open(write(tmp_path / "corpus", [4, 4, 4]))
    monkeypatch.setattr("ds_pretrain.data.token_ids._BLOCK_TOKENS", 3)
    assert check_ids(corpus, 4) == check_ids(corpus, None) == 3
    with pytest.raises(DataError, match=r"corpus\.bin: token 8, in document 2: found id 3; allowed: 0 to 2, "):
        check_ids(corpus, 3)
    assert check_ids(corpus, 3, at_most=3) == 1  # the first block alone
    with TokenFileWriter(tmp_path / "negative", np.int32) as writer:
        writer.append(np.array([1, -5], dtype=np.int32))
    with pytest.raises(DataError, match=r"negative\.bin: token 1, in document 0: found id -5"):
        check_ids(TokenFile.open(tmp_path / "negative"), None)
