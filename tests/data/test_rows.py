from __future__ import annotations

from dataclasses import replace
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_pretrain.data.rows import StageRows, rank_slice

ROWS = StageRows(seed=1, stage=0, start_cursor=0, steps=512, batch_size=8, stride=64)


def all_starts(rows: StageRows, steps: range) -> np.ndarray:
    return np.concatenate([rows.starts(step) for step in steps])


@given(
    seed=st.integers(0, 2**40),
    stage=st.integers(0, 9),
    start_cursor=st.integers(0, 10**13),
    steps=st.integers(1, 60),
    batch_size=st.integers(1, 12),
    stride=st.integers(1, 100),
    block_steps=st.integers(1, 20),
)
def test_a_stage_uses_exactly_its_own_rows(
    seed: int, stage: int, start_cursor: int, steps: int, batch_size: int, stride: int, block_steps: int
) -> None:
    rows = StageRows(seed, stage, start_cursor, steps, batch_size, stride, block_steps)
    starts = all_starts(rows, range(steps))
    assert np.array_equal(np.sort(starts), start_cursor + stride * np.arange(steps * batch_size))


def test_rows_stay_inside_their_shuffle_block() -> None:
    rows = replace(ROWS, start_cursor=1000, steps=700, block_steps=256)
    first, rest = all_starts(rows, range(256)), all_starts(rows, range(256, 700))
    assert np.array_equal(np.sort(first), 1000 + 64 * np.arange(256 * 8))
    assert np.array_equal(np.sort(rest), 1000 + 64 * np.arange(256 * 8, 700 * 8))
    assert rest[: 188 * 8].max() > 1000 + 64 * 512 * 8  # the 188 steps left over are no block of their own


def test_a_later_end_of_the_stage_changes_no_full_block_before() -> None:
    longer = replace(ROWS, steps=5000)
    assert all(np.array_equal(ROWS.starts(step), longer.starts(step)) for step in (0, 255))


def test_stages_blocks_and_seeds_are_shuffled_differently() -> None:
    variants = [ROWS, replace(ROWS, stage=1), replace(ROWS, seed=2)]
    orders = {tuple(all_starts(rows, range(256)).tolist()) for rows in variants}
    orders.add(tuple((all_starts(ROWS, range(256, 512)) - 256 * 8 * 64).tolist()))
    assert len(orders) == 4


@pytest.mark.parametrize("step", [-1, 512])
def test_a_step_outside_the_stage_is_an_error(step: int) -> None:
    with pytest.raises(IndexError, match="of a stage of 512 steps"):
        ROWS.starts(step)


def pairs_from_one_window(starts: np.ndarray, max_seq_len: int) -> int:
    _, counts = np.unique(starts // max_seq_len, return_counts=True)
    return int((counts * (counts - 1) // 2).sum())


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
            pairs_from_one_window(StageRows(seed, 0, 0, steps, batch_size, seq_len).starts(step), max_seq_len)
            for seed in range(5)
            for step in range(steps)
        ]
    )
    assert abs(pairs.mean() - expected) < 4 * pairs.std() / sqrt(len(pairs))
    in_order = np.arange(batch_size) * seq_len
    assert pairs_from_one_window(in_order, max_seq_len) > 100 * expected


def test_the_last_steps_of_a_stage_are_as_independent_as_the_others() -> None:
    rows = StageRows(seed=1, stage=0, start_cursor=0, steps=258, batch_size=256, stride=64)
    assert all(pairs_from_one_window(rows.starts(step), 1024) < 40 for step in (256, 257))  # in order: 1920


def test_micro_batches_are_dealt_to_the_ranks_in_turn() -> None:
    batch = np.arange(12)
    assert rank_slice(batch, 0, 2, 3, 0).tolist() == [0, 1, 2]
    assert rank_slice(batch, 1, 2, 3, 0).tolist() == [3, 4, 5]
    assert rank_slice(batch, 0, 2, 3, 1).tolist() == [6, 7, 8]
    assert rank_slice(batch, 1, 2, 3, 1).tolist() == [9, 10, 11]


@given(ranks=st.integers(1, 6), micro=st.integers(1, 6), accum=st.integers(1, 6))
def test_micro_steps_and_ranks_in_order_give_the_batch(ranks: int, micro: int, accum: int) -> None:
    batch = np.arange(ranks * micro * accum)
    slices = [rank_slice(batch, rank, ranks, micro, step) for step in range(accum) for rank in range(ranks)]
    assert np.array_equal(np.concatenate(slices), batch)
