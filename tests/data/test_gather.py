from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from ds_pretrain.data.gather import RowGatherer
from ds_pretrain.data.stream import TokenStream


def stream(first: int, dtype: str) -> TokenStream:
    """Forty-one tokens that count on from a number: four windows of ten."""
    return TokenStream(np.arange(first, first + 41).astype(dtype), max_seq_len=10, seed=1)


@pytest.mark.parametrize("dtypes", [("uint16", "uint16"), ("uint16", "int32"), ("uint16", "uint16", "uint16")])
@pytest.mark.parametrize("row_len", [5, 10, 7])  # sevens cross the windows
def test_every_row_is_that_of_its_own_source(dtypes: tuple[str, ...], row_len: int) -> None:
    streams = [stream(1000 * index, dtype) for index, dtype in enumerate(dtypes)]
    draw = np.random.default_rng(0)
    sources, places = draw.integers(0, min(2, len(streams)), 12), draw.integers(0, 4, 12)  # a third source has no row
    starts = places * row_len
    steps = list(RowGatherer(streams).read(sources, starts, row_len, rows=3))
    assert len(steps) == 4
    for number, (inputs, targets) in enumerate(steps):
        assert inputs.dtype == targets.dtype == np.result_type(*(each.dtype for each in streams))
        for row in range(3):
            source, start = sources[3 * number + row], starts[3 * number + row]
            alone_inputs, alone_targets = streams[source].read(np.array([start]), row_len)
            assert inputs[row].tolist() == alone_inputs[0].tolist()
            assert targets[row].tolist() == alone_targets[0].tolist()
            assert {token // 1000 for token in inputs[row].tolist()} == {source}


def test_steps_too_large_to_be_read_together_are_read_one_by_one() -> None:
    long = TokenStream(np.arange(200_001).astype("int32"), max_seq_len=50_000, seed=1)
    reads = RowGatherer([long]).read(np.zeros(4, np.int64), np.arange(4) * 50_000, 50_000, rows=2)
    steps = [inputs for inputs, _ in reads]
    assert [inputs.shape for inputs in steps] == [(2, 50_000)] * 2
    firsts = [int(row[0]) for inputs in steps for row in inputs]
    assert sorted(firsts) == [0, 50_000, 100_000, 150_000]
    assert all(after - before == 1 for inputs in steps for row in inputs for before, after in pairwise(row[:100]))
