from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from stages import chain

from ds_pretrain.data.order import RowOrder
from ds_pretrain.data.permutation import Permutation
from ds_pretrain.data.stream import TokenStream
from ds_pretrain.errors import DataError


def numbered(num_tokens: int, dtype: str = "uint16") -> NDArray[np.int64]:
    """A corpus in which every token is its own position in the file."""
    return np.arange(num_tokens).astype(dtype)


def token_at(stream: TokenStream, position: int) -> int:
    """Number of the input token at a stream position, by the definition, one position at a time."""
    epoch, within = divmod(position, stream.num_windows * stream.max_seq_len)
    slot, offset = divmod(within, stream.max_seq_len)
    window = int(Permutation(stream.num_windows, stream.seed, epoch)(np.array([slot]))[0])
    return window * stream.max_seq_len + offset


def test_windows_and_the_dropped_tail_are_counted() -> None:
    stream = TokenStream(numbered(4 * 10 + 1 + 7), max_seq_len=10, seed=1)
    assert (stream.num_windows, stream.positions_per_epoch, stream.dropped_tokens) == (4, 40, 7)
    exact = TokenStream(numbered(41), max_seq_len=10, seed=1)
    assert (exact.num_windows, exact.dropped_tokens) == (4, 0)
    # without its last target the fourth window is no window
    short = TokenStream(numbered(40), max_seq_len=10, seed=1)
    assert (short.num_windows, short.dropped_tokens) == (3, 9)


@pytest.mark.parametrize("num_tokens", [0, 1, 10])
def test_a_corpus_without_one_window_is_refused(num_tokens: int) -> None:
    with pytest.raises(DataError, match=rf"data.max_seq_len: found 10, .* holds {num_tokens} tokens .* = 11"):
        TokenStream(numbered(num_tokens), max_seq_len=10, seed=1)


def test_a_row_of_a_whole_window_is_that_window_and_its_targets_are_one_on() -> None:
    stream = TokenStream(numbered(31), max_seq_len=10, seed=3)
    inputs, targets = stream.read(np.array([0, 10, 20]), seq_len=10)
    assert sorted(inputs[:, 0].tolist()) == [0, 10, 20]
    assert np.array_equal(inputs, inputs[:, :1] + np.arange(10))
    assert np.array_equal(targets, inputs + 1)
    assert (inputs.dtype, targets.dtype) == (np.uint16, np.uint16)  # the file's


def test_a_row_across_a_seam_goes_on_in_the_next_slots_window() -> None:
    stream = TokenStream(numbered(31), max_seq_len=10, seed=3)
    first, second, _ = (10 * int(window) for window in stream.windows(np.arange(3)))
    inputs, targets = stream.read(np.array([7]), seq_len=6)
    assert inputs.tolist() == [[first + 7, first + 8, first + 9, second, second + 1, second + 2]]
    assert targets.tolist() == [[first + 8, first + 9, first + 10, second + 1, second + 2, second + 3]]


@given(
    num_tokens=st.integers(2, 300),
    max_seq_len=st.integers(1, 40),
    seed=st.integers(0, 2**63),
    dtype=st.sampled_from(["uint16", "int32", "uint32", "int64"]),
    data=st.data(),
)
def test_every_row_is_what_the_definition_says(
    num_tokens: int, max_seq_len: int, seed: int, dtype: str, data: st.DataObject
) -> None:
    max_seq_len = min(max_seq_len, num_tokens - 1)
    stream = TokenStream(numbered(num_tokens, dtype), max_seq_len, seed)
    seq_len = data.draw(st.integers(1, max_seq_len))
    starts = data.draw(st.lists(st.integers(0, 3 * num_tokens), max_size=5))
    inputs, targets = stream.read(np.array(starts, dtype=np.int64), seq_len)
    expected = [[token_at(stream, start + offset) for offset in range(seq_len)] for start in starts]
    assert inputs.shape == targets.shape == (len(starts), seq_len)
    assert inputs.tolist() == expected
    assert np.array_equal(targets, inputs.astype(np.int64) + 1)


@given(
    num_windows=st.integers(1, 30),
    max_seq_len=st.integers(1, 12),
    tail=st.integers(0, 11),
    seq_len=st.integers(1, 12),
)
def test_every_epoch_holds_every_input_and_every_target_once(
    num_windows: int, max_seq_len: int, tail: int, seq_len: int
) -> None:
    seq_len = min(seq_len, max_seq_len)
    stream = TokenStream(numbered(num_windows * max_seq_len + 1 + tail % max_seq_len), max_seq_len, seed=11)
    length = stream.positions_per_epoch
    inputs, targets = stream.read(np.arange(0, 2 * length, seq_len), seq_len)
    for epoch in range(2):
        span = slice(epoch * length, (epoch + 1) * length)
        assert sorted(inputs.ravel()[span].tolist()) == list(range(length))
        assert sorted(targets.ravel()[span].tolist()) == list(range(1, length + 1))


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    orders = [
        tuple(TokenStream(numbered(201), 2, seed).windows(np.arange(100) + 100 * epoch).tolist())
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9
    assert all(sorted(order) == list(range(100)) for order in orders)


def test_a_memory_map_is_read_in_place(tmp_path: Path) -> None:
    file = tmp_path / "tokens.bin"
    numbered(1001).tofile(file)
    mapped = np.memmap(file, dtype="uint16", mode="r")
    starts = np.array([0, 95, 500])
    from_file = TokenStream(mapped, 100, seed=5).read(starts, 10)
    from_memory = TokenStream(numbered(1001), 100, seed=5).read(starts, 10)
    assert np.array_equal(from_file, from_memory)
    assert type(from_file[0]) is np.ndarray


def test_a_corpus_of_10_to_the_12_tokens_needs_no_index(tmp_path: Path) -> None:
    file = tmp_path / "sparse.bin"
    num_tokens = 10**12
    try:
        with file.open("wb") as out:
            out.truncate(2 * num_tokens)
        tokens = np.memmap(file, dtype="uint16", mode="r+")
    except (
        OSError,
        ValueError,
    ) as error:  # a file system without sparse files, or too small an address space
        pytest.skip(f"no sparse file of 2 TB here: {error}")
    rows = RowOrder(chain([(10**6 + 1, 1024, 16, 1)]), seed=1)
    for number, step in enumerate([0, 10**6], start=7):
        tracemalloc.start()
        stream = TokenStream(tokens, 1024, seed=1)
        _, starts = rows.rows(range(step, step + 1), np.arange(16))
        windows = stream.windows(starts // 1024)
        tokens[windows * 1024 + 1] = number
        inputs, targets = stream.read(starts, 1024)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert inputs[:, 1].tolist() == targets[:, 0].tolist() == [number] * 16
        assert inputs.sum(dtype=np.int64) == targets.sum(dtype=np.int64) == 16 * number
        assert windows.max() > 10**8  # from the whole file
        assert peak < 2**20
