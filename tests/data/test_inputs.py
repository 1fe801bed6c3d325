from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ds_pretrain.data.inputs import InputFormat, MicroBatch

END = 9


def cut(
    rows: list[list[int]],
    seq_len: int,
    starts: list[int] | None = None,
    micro: int | None = None,
    **options: int | bool,
) -> tuple[MicroBatch, ...]:
    tokens = np.array(rows, dtype=np.int64)
    at = np.array(starts or [0] * len(rows), dtype=np.int64)
    settings = {"max_seq_len": tokens.shape[1], **options}
    return InputFormat(**settings).micro_batches(  # type: ignore[arg-type]
        tokens, tokens + 1, at, seq_len=seq_len, micro_batch_size=micro or len(rows), places=at, key=(0,)
    )


def positions(batch: MicroBatch) -> list[list[int]]:
    assert batch.position_ids is not None
    return batch.position_ids.tolist()


def test_whole_rows_bring_nothing_but_their_tokens() -> None:
    (batch,) = cut([[1, 2, 3, 4]], 4)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4]]
    assert batch.targets.tolist() == [[2, 3, 4, 5]]
    assert batch.options == {}


def test_blocks_are_sequences_whose_positions_run_on() -> None:
    (batch,) = cut([[1, 2, 3, 4, 5, 6], [7, 8, 1, 2, 3, 4]], 2)
    assert batch.input_ids.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [1, 2], [3, 4]]
    assert batch.targets.tolist() == [[2, 3], [4, 5], [6, 7], [8, 9], [2, 3], [4, 5]]
    assert positions(batch) == [[0, 1], [2, 3], [4, 5]] * 2
    assert batch.cu_seq_lens is None


def test_positions_of_blocks_are_reset_where_asked() -> None:
    (batch,) = cut([[1, 2, 3, 4]], 2, reset_positions=True)
    assert batch.input_ids.tolist() == [[1, 2], [3, 4]]
    assert batch.options == {}  # sequences count from 0 by themselves


def test_positions_begin_anew_after_the_end_of_a_document() -> None:
    (batch,) = cut([[1, END, 3, 4, 5, END], [END, END, 3, 4, 5, 6]], 6, document_end=END)
    assert positions(batch) == [[0, 1, 0, 1, 2, 3], [0, 0, 0, 1, 2, 3]]
    assert batch.cu_seq_lens is not None
    assert batch.cu_seq_lens.dtype == torch.int32
    assert batch.cu_seq_lens.tolist() == [0, 2, 6, 7, 8, 12]


def test_a_document_goes_on_through_the_blocks_of_its_row_in_position_but_not_in_attention() -> None:
    (batch,) = cut([[1, END, 3, 4, 5, 6, END, 8]], 4, document_end=END)
    assert positions(batch) == [[0, 1, 0, 1], [2, 3, 4, 0]]
    assert batch.cu_seq_lens is not None
    assert batch.cu_seq_lens.tolist() == [0, 2, 4, 7, 8]
    (reset,) = cut([[1, END, 3, 4, 5, 6, END, 8]], 4, document_end=END, reset_positions=True)
    assert positions(reset) == [[0, 1, 0, 1], [0, 1, 2, 0]]


def test_a_windows_seam_inside_a_row_is_the_end_of_a_document() -> None:
    (batch,) = cut([[1, 2, 3, 4, 5, 6, 7, 8]], 8, starts=[7], max_seq_len=5, document_end=END)
    # windows begin at stream positions 10 and 15
    assert positions(batch) == [[0, 1, 2, 0, 1, 2, 3, 4]]
    (aligned,) = cut([[1, 2, 3, 4, 5, 6, 7, 8]], 8, starts=[10], max_seq_len=5, document_end=END)
    assert positions(aligned) == [[0, 1, 2, 3, 4, 0, 1, 2]]
    (plain,) = cut([[1, 2, 3, 4, 5, 6, 7, 8]], 8, starts=[7], max_seq_len=5)
    assert plain.options == {}


def test_cumulative_lengths_are_those_of_the_micro_batch() -> None:
    first, second = cut([[1, END, 3, 4], [1, 2, 3, 4]], 4, micro=1, document_end=END)
    assert first.cu_seq_lens is not None
    assert second.cu_seq_lens is not None
    assert first.cu_seq_lens.tolist() == [0, 2, 4]
    assert second.cu_seq_lens.tolist() == [0, 4]


def slow_positions(row: NDArray[np.int64], start: int, window: int, block: int, reset: bool) -> list[int]:
    found: list[int] = []
    for place in range(len(row)):
        begins = place == 0 or row[place - 1] == END or (start + place) % window == 0 or (reset and place % block == 0)
        found.append(0 if begins else found[-1] + 1)
    return found


@given(
    data=st.data(),
    rows=st.integers(1, 4),
    block=st.integers(1, 6),
    blocks=st.integers(1, 4),
    window=st.integers(1, 30),
    reset=st.booleans(),
)
def test_positions_are_those_counted_token_by_token(
    data: st.DataObject, rows: int, block: int, blocks: int, window: int, reset: bool
) -> None:
    length = block * blocks
    tokens = np.array(data.draw(st.lists(st.integers(7, 9), min_size=rows * length, max_size=rows * length)))
    tokens = tokens.reshape(rows, length)
    starts = data.draw(st.lists(st.integers(0, 90), min_size=rows, max_size=rows))
    (batch,) = cut(tokens.tolist(), block, starts, max_seq_len=window, document_end=END, reset_positions=reset)
    expected = [slow_positions(row, start, window, block, reset) for row, start in zip(tokens, starts, strict=True)]
    assert batch.position_ids is not None
    assert batch.position_ids.reshape(rows, length).tolist() == expected
    # flash attention is told the same documents as the masks, which are made of the zeros among the positions
    assert batch.cu_seq_lens is not None
    begins = batch.position_ids == 0
    begins[:, 0] = True
    assert batch.cu_seq_lens.tolist() == [*begins.flatten().nonzero().flatten().tolist(), rows * length]


@pytest.mark.parametrize("end", [None, 0, 5])
def test_a_blank_batch_is_of_the_kind_that_training_has(end: int | None) -> None:
    batch = InputFormat(8, document_end=end).blank(3, 4)
    assert batch.input_ids.shape == batch.targets.shape == (3, 4)
    assert (batch.position_ids is None) == (batch.cu_seq_lens is None) == (end is None)
    if batch.cu_seq_lens is not None:
        assert batch.cu_seq_lens.tolist() == [0, 4, 8, 12]
