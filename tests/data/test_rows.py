from __future__ import annotations

from dataclasses import replace
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ds_pretrain.data.rows import BLOCK_STEPS, ShuffledRows, rank_rows, shuffle_block

ROWS = ShuffledRows(key=(1, 0), start_cursor=0, rows=512 * 8, stride=64, block_rows=256 * 8)


def all_starts(rows: ShuffledRows, steps: range, batch_size: int = 8) -> np.ndarray:
    return rows.starts(np.arange(steps.start * batch_size, steps.stop * batch_size))


@given(
    key=st.lists(st.integers(0, 2**40), min_size=1, max_size=3),
    start_cursor=st.integers(0, 10**13),
    rows=st.integers(1, 700),
    stride=st.integers(1, 100),
    block_rows=st.integers(1, 200),
    cuts=st.lists(st.integers(0, 700), max_size=3),
)
def test_exactly_the_rows_asked_for_are_given_in_whatever_pieces(
    key: list[int], start_cursor: int, rows: int, stride: int, block_rows: int, cuts: list[int]
) -> None:
    shuffled = ShuffledRows(tuple(key), start_cursor, rows, stride, block_rows)
    starts = shuffled.starts(np.arange(rows))
    assert np.array_equal(np.sort(starts), start_cursor + stride * np.arange(rows))
    pieces = [shuffled.starts(piece) for piece in np.split(np.arange(rows), sorted(cuts))]
    assert np.array_equal(np.concatenate(pieces), starts)


def test_rows_stay_inside_their_shuffle_block() -> None:
    rows = replace(ROWS, start_cursor=1000, rows=700 * 8)
    first, rest = all_starts(rows, range(256)), all_starts(rows, range(256, 700))
    assert np.array_equal(np.sort(first), 1000 + 64 * np.arange(256 * 8))
    assert np.array_equal(np.sort(rest), 1000 + 64 * np.arange(256 * 8, 700 * 8))
    assert rest[: 188 * 8].max() > 1000 + 64 * 512 * 8  # the 188 steps left over are no block of their own


def test_more_rows_behind_change_no_full_block_before() -> None:
    longer = replace(ROWS, rows=5000 * 8)
    assert np.array_equal(all_starts(ROWS, range(256)), all_starts(longer, range(256)))


@pytest.mark.parametrize("steps", [100, 256, 700, 1024])
def test_the_block_of_a_step_holds_its_rows(steps: int) -> None:
    rows = replace(ROWS, rows=steps * 8)
    for step in (0, steps // 2, steps - 1):
        first, last = shuffle_block(step, steps)
        assert first <= step < last
        starts = all_starts(rows, range(first, last))
        assert np.array_equal(np.sort(starts), 64 * np.arange(first * 8, last * 8))


def test_keys_and_blocks_are_shuffled_differently() -> None:
    variants = [ROWS, replace(ROWS, key=(1, 1)), replace(ROWS, key=(2, 0)), replace(ROWS, key=(1, 0, 0))]
    orders = {tuple(all_starts(rows, range(256)).tolist()) for rows in variants}
    orders.add(tuple((all_starts(ROWS, range(256, 512)) - 256 * 8 * 64).tolist()))
    assert len(orders) == 5


@pytest.mark.parametrize("first", [0, 300 * 64, 299 * 64 * 16])
def test_within_a_shuffle_block_a_row_comes_from_anywhere(first: int) -> None:
    """Chi-square: over many keys, the row that a place gets lies in each sixteenth of its block equally often."""
    size = 256 * 64
    places = first + np.arange(8)
    landed = np.array([ShuffledRows((seed, 0), 0, 300 * size, 1, size).starts(places) % size for seed in range(400)])
    for place in range(8):
        counts = np.bincount(landed[:, place] * 16 // size, minlength=16)
        assert stats.chisquare(counts).pvalue > 1e-5


def pairs_from_one_window(starts: np.ndarray, max_seq_len: int) -> int:
    _, counts = np.unique(starts // max_seq_len, return_counts=True)
    return int((counts * (counts - 1) // 2).sum())


def shuffled(seed: int, steps: int, batch_size: int, seq_len: int) -> ShuffledRows:
    """The rows of a stage of one source."""
    return ShuffledRows((seed, 0), 0, steps * batch_size, seq_len, BLOCK_STEPS * batch_size)


@pytest.mark.parametrize(("batch_size", "seq_len", "steps"), [(256, 64, 256), (128, 128, 300), (64, 256, 511)])
def test_pairs_from_one_window_are_those_of_a_uniform_draw(batch_size: int, seq_len: int, steps: int) -> None:
    max_seq_len = 1024
    per_window = max_seq_len // seq_len
    num_rows = steps * batch_size
    # every pair of rows of one window is drawn together with the probability of drawing two given rows
    same_window = num_rows // per_window * comb(per_window, 2)
    expected = same_window * comb(batch_size, 2) / comb(num_rows, 2)
    pairs = np.array(
        [
            pairs_from_one_window(starts, max_seq_len)
            for seed in range(5)
            for starts in np.split(
                all_starts(shuffled(seed, steps, batch_size, seq_len), range(steps), batch_size), steps
            )
        ]
    )
    assert abs(pairs.mean() - expected) < 4 * pairs.std() / sqrt(len(pairs))
    in_order = np.arange(batch_size) * seq_len
    assert pairs_from_one_window(in_order, max_seq_len) > 100 * expected


def test_the_last_steps_of_a_stage_are_as_independent_as_the_others() -> None:
    rows = shuffled(1, 258, 256, 64)
    last = [all_starts(rows, range(step, step + 1), 256) for step in (256, 257)]
    assert all(pairs_from_one_window(starts, 1024) < 40 for starts in last)  # in order: 1920


def test_micro_batches_are_dealt_to_the_ranks_in_turn() -> None:
    assert rank_rows(0, 2, 3, 2).tolist() == [0, 1, 2, 6, 7, 8]
    assert rank_rows(1, 2, 3, 2).tolist() == [3, 4, 5, 9, 10, 11]


@given(ranks=st.integers(1, 6), micro=st.integers(1, 6), accum=st.integers(1, 6))
def test_micro_steps_and_ranks_in_order_give_the_batch(ranks: int, micro: int, accum: int) -> None:
    shares = np.array([rank_rows(rank, ranks, micro, accum) for rank in range(ranks)]).reshape(ranks, accum, micro)
    assert np.array_equal(shares.transpose(1, 0, 2).ravel(), np.arange(ranks * micro * accum))
