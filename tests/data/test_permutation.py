from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ds_pretrain.data.permutation import Permutation


@given(size=st.integers(1, 5000), key=st.lists(st.integers(-(2**70), 2**70), max_size=4))
def test_every_value_is_hit_once(size: int, key: list[int]) -> None:
    landed = Permutation(size, *key)(np.arange(size))
    assert landed.dtype == np.int64
    assert np.array_equal(np.sort(landed), np.arange(size))


@given(size=st.integers(1, 5000), seed=st.integers(0, 2**40), data=st.data())
def test_a_value_goes_where_it_goes_in_any_company_and_shape(size: int, seed: int, data: st.DataObject) -> None:
    whole = Permutation(size, seed)(np.arange(size))
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=6, max_size=6)))
    assert np.array_equal(Permutation(size, seed)(index.reshape(2, 3)), whole[index].reshape(2, 3))
    assert Permutation(size, seed)(index[:0]).shape == (0,)


def test_the_order_never_changes_between_versions() -> None:
    """Runs are continued by newer versions: these numbers may change only together with a note for users."""
    assert Permutation(10, 1234, 0)(np.arange(10)).tolist() == [2, 7, 3, 1, 8, 6, 9, 0, 5, 4]
    assert Permutation(10**13, 1234, 5)(np.array([0, 1, 10**13 - 1])).tolist() == [
        5594158185562,
        876850294585,
        8793233638440,
    ]


def test_a_huge_permutation_is_one_to_one_where_it_is_looked_at() -> None:
    size = 2**62 - 1
    index = np.concatenate([np.arange(5000), np.arange(size - 5000, size)])
    landed = Permutation(size, 7)(index)
    assert len(np.unique(landed)) == 10_000
    assert landed.min() >= 0
    assert landed.max() < size


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1234, 0), (1234, 1)),
        ((1, 2), (2, 1)),
        ((1, 2), (1, 2, 0)),
        ((12, 3), (1, 23)),
        ((2**32,), (0, 1)),
        ((), (0,)),
    ],
)
def test_different_keys_give_unrelated_orders(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    index = np.arange(1000)
    agreeing = np.count_nonzero(Permutation(1000, *one)(index) == Permutation(1000, *other)(index))
    assert agreeing < 10  # a random permutation has one fixed point on average; 10 or more once in 10^7


def test_np_integers_are_the_same_key_as_ints() -> None:
    index = np.arange(100)
    assert np.array_equal(Permutation(100, np.int64(3))(index), Permutation(100, 3)(index))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [2, 3, 7, 16, 37])
def test_over_many_seeds_every_value_lands_everywhere_equally_often(size: int) -> None:
    landed = np.array([Permutation(size, seed, 0)(np.arange(size)) for seed in range(3000)])
    for value in range(size):
        counts = np.bincount(landed[:, value], minlength=size)
        assert stats.chisquare(counts).pvalue > 1e-5


@pytest.mark.parametrize("size", [3, 6, 11])
def test_over_many_seeds_every_pair_lands_on_every_pair_equally_often(size: int) -> None:
    for one, other in [(0, 1), (0, size - 1)]:
        landed = np.array([Permutation(size, seed, 1)(np.array([one, other])) for seed in range(6000)])
        counts = np.bincount(landed[:, 0] * size + landed[:, 1], minlength=size * size)
        possible = ~np.eye(size, dtype=bool).ravel()
        assert stats.chisquare(counts[possible]).pvalue > 1e-5


def test_neighbours_are_spread_evenly_over_a_large_range() -> None:
    size = 1_000_003
    landed = Permutation(size, 5, 2)(np.arange(50_000))
    assert stats.kstest(landed / size, "uniform").pvalue > 1e-4
    distances = np.diff(landed) % size
    assert stats.kstest(distances / size, "uniform").pvalue > 1e-4


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ValueError, match="size: found 0"):
        Permutation(0, 1)


@pytest.mark.parametrize("index", [-1, 10, 2**62])
def test_an_index_outside_the_range_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match=r"range\(10\)"):
        Permutation(10, 1)(np.array([0, index]))
