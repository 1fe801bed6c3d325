from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stages import chain

from ds_pretrain.data.deadlines import TABLE_ROWS
from ds_pretrain.data.mixture import Mixture, whole_weights
from ds_pretrain.data.order import RowOrder

weights = st.lists(
    st.one_of(st.integers(1, 1000), st.floats(1e-3, 1.0), st.sampled_from([0.5, 0.3, 1 / 3, 0.01])),
    min_size=1,
    max_size=8,
)


@given(weights=weights, first=st.one_of(st.just(0), st.integers(0, 10**12)))
def test_any_prefix_holds_every_source_in_its_share(weights: list[float], first: int) -> None:
    mixture = Mixture(weights, first + 2000)
    sources, numbers = mixture.deal(np.arange(first, first + 2000))
    before = mixture.counts(first)
    shares = np.array([Fraction(weight, sum(mixture.weights)) for weight in mixture.weights])
    for source, share in enumerate(shares):
        counts = before[source] + np.concatenate([[0], np.cumsum(sources == source)])
        lag = np.array([float(share * (first + row) - int(count)) for row, count in enumerate(counts)])
        assert np.abs(lag).max() <= mixture.bound + 1e-9
        assert np.array_equal(numbers[sources == source], counts[:-1][sources == source])
    assert mixture.counts(first + 2000) == [before[s] + int((sources == s).sum()) for s in range(len(weights))]
    # weights of many digits have no period that a table could hold
    assert mixture.bound <= (1 if len(weights) <= 4 or min(sum(mixture.weights), first + 2000) <= TABLE_ROWS else 1.2)


def test_one_source_gets_every_row_and_two_equal_ones_every_other() -> None:
    sources, numbers = Mixture([3.0], 5).deal(np.arange(5))
    assert (sources.tolist(), numbers.tolist()) == ([0] * 5, [0, 1, 2, 3, 4])
    sources, numbers = Mixture([1, 1], 6).deal(np.arange(6))
    assert sorted(sources[:2].tolist()) == sorted(sources[2:4].tolist()) == [0, 1]
    assert numbers.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_source_of_no_weight_gets_nothing_whatever_it_is_owed() -> None:
    mixture = Mixture([1, 0, 2], 3000, [Fraction(0), Fraction(5), Fraction(-5)])
    assert mixture.counts(3000)[1] == 0
    assert 1 not in mixture.deal(np.arange(3000))[0]


def test_a_debt_of_several_rows_is_made_up_first() -> None:
    mixture = Mixture([1, 1], 10, [Fraction(4), Fraction(-4)])
    assert mixture.deal(np.arange(10))[0].tolist()[:8] == [0] * 8
    assert mixture.owed_after(8) == [0, 0]


@pytest.mark.parametrize(
    ("written", "whole"),
    [([0.7, 0.3], [7, 3]), ([1, 1, 1], [1, 1, 1]), ([0.1, 0.25, 0], [2, 5, 0]), ([2.5e9, 10**10], [1, 4])],
)
def test_weights_are_the_decimal_numbers_that_were_written(written: list[float], whole: list[int]) -> None:
    assert whole_weights(written) == whole


def test_weights_of_too_many_digits_keep_their_shares_to_a_part_in_2_31() -> None:
    whole = whole_weights([0.123456789012, 0.876543210988, 1e-15])
    assert sum(whole) <= 2**31
    assert whole[2] == 1
    assert whole[0] / sum(whole) == pytest.approx(0.123456789012, abs=1e-8)


shapes = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([1, 3, 4, 8, 12]), st.integers(1, 6), st.just(1)),
    min_size=1,
    max_size=4,
)


@given(shapes=shapes, weights=st.lists(st.integers(1, 9), min_size=1, max_size=10), data=st.data())
def test_over_all_stages_every_source_keeps_its_share_of_tokens_and_its_own_cursor(
    shapes: list[tuple[int, int, int, int]], weights: list[int], data: st.DataObject
) -> None:
    """Lengths up and down, and weights that change with the stage: within one window (12) after every row."""
    changed = data.draw(st.lists(st.permutations(weights), min_size=len(shapes), max_size=len(shapes)))
    stages = [replace(s, data_weights=tuple(w)) for s, w in zip(chain(shapes), changed, strict=True)]
    order = RowOrder(stages, seed=1)
    got = np.zeros(len(weights))
    wanted = np.zeros(len(weights))
    positions: list[set[int]] = [set() for _ in weights]
    for stage in stages:
        for step in range(stage.start_step, stage.end_step):
            sources, starts = order.rows(range(step, step + 1), np.arange(stage.batch_size))
            for source, start in zip(sources.tolist(), starts.tolist(), strict=True):
                row = range(start, start + stage.seq_len)
                assert positions[source].isdisjoint(row)
                positions[source].update(row)
                got[source] += stage.seq_len
                wanted += np.array(stage.data_weights) / sum(weights) * stage.seq_len
                assert np.abs(got - wanted).max() <= 12 + 1e-6
            assert order.cursors_after(range(step, step + 1)) == [tuple(got)]
        assert positions == [set(range(int(count))) for count in got]
        assert order.cursors_after(range(stage.start_step, stage.end_step))[-1] == tuple(got)
