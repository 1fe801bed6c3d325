from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stages import chain

from ds_pretrain.data.indexed import TokenFile
from ds_pretrain.data.inputs import InputFormat
from ds_pretrain.data.loader import step_batch
from ds_pretrain.data.masking import Masking
from ds_pretrain.data.stream import TokenStream
from ds_pretrain.data.token_ids import IdLimit, check_ids
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


@pytest.mark.parametrize("wrong", [0, 77, 159, 160])  # an input only, both, both, a target only
@pytest.mark.parametrize("masked", [False, True])
def test_the_rank_that_reads_an_id_beyond_the_vocabulary_tells_file_and_place(
    tmp_path: Path, wrong: int, masked: bool
) -> None:
    """Its batch keeps its shape, so that it can meet the ranks that know nothing of it."""
    tokens = np.arange(161, dtype=np.uint16) % 50
    tokens[wrong] = 50
    with TokenFileWriter(tmp_path / "other", np.int32) as writer:
        writer.append(np.ones(161, dtype=np.int32))
    with TokenFileWriter(tmp_path / "corpus", np.uint16) as writer:
        for document in np.split(tokens, [60, 100]):
            writer.append(document)
    corpora = [TokenFile.open(tmp_path / name) for name in ("other", "corpus")]
    streams = [TokenStream(corpus.tokens, 16, seed=1) for corpus in corpora]
    (stage,) = chain([(10, 16, 1, 1)], ranks=2)
    stage = replace(stage, data_weights=(1.0, 1.0))
    form = InputFormat(16, masking=Masking(0.15, 1, np.zeros(50, dtype=bool)) if masked else None)
    problems = []
    for step in range(10):
        for rank in range(2):
            settings: dict[str, Any] = {"seed": 1, "rank": rank, "data_parallel_size": 2, "input_format": form}
            checked = step_batch(streams, [stage], step, id_limit=IdLimit(50, corpora), **settings)
            (part,) = checked.micro_batches
            assert part.input_ids.shape == (1, 16)
            assert int(part.input_ids.max()) < 50
            assert int(part.targets.max()) < 50
            if checked.problem is None:
                assert torch.equal(
                    part.input_ids, step_batch(streams, [stage], step, **settings).micro_batches[0].input_ids
                )
            else:
                problems.append(str(checked.problem))
    document = (wrong >= 60) + (wrong >= 100)
    assert {problem.partition(";")[0] for problem in problems} == {
        f"{tmp_path}/corpus.bin: token {wrong}, in document {document}: found id 50"
    }
    # a token at a window's seam is the last target of one row and the first input of another
    assert len(problems) == (2 if wrong % 16 == 0 and 0 < wrong < 160 else 1)


def test_rows_of_signed_tokens_are_checked_for_negative_ids() -> None:
    limit = IdLimit(50, [])
    rows = np.zeros((2, 3), dtype=np.int32)
    assert limit.first_beyond(rows) is None
    rows[1, 2] = -1
    assert limit.first_beyond(rows) == (1, 2)
    assert not limit.replaced(rows).any()
