from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_pretrain.data.deadlines import DeadlineTable
from ds_pretrain.data.mixture import whole_weights

NOTHING = Fraction(0)
weights = st.lists(st.integers(1, 60), min_size=1, max_size=9).map(lambda drawn: whole_weights([*map(float, drawn)]))


def farthest(table: DeadlineTable, weights: list[int], owed: list[Fraction], rows: int) -> float:
    """Rows by which a source is off its share at most, whatever the prefix."""
    sources, _ = table.deal(np.arange(rows))
    given = np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
    wanted = np.array(owed, float) + np.arange(1, rows + 1)[:, None] * np.array(weights) / sum(weights)
    return float(np.abs(wanted - given).max())


def test_by_hand() -> None:
    # shares 1/2, 1/3, 1/6: deadlines are every 2nd, 3rd and 6th row, and of equal ones the first source's comes first
    table = DeadlineTable([3, 2, 1], [NOTHING] * 3, 12)
    sources, numbers = table.deal(np.arange(12))
    assert sources.tolist() == [0, 1, 0, 1, 0, 2] * 2
    assert numbers.tolist() == [0, 0, 1, 1, 2, 0, 3, 2, 4, 3, 5, 1]
    assert table.counts(9) == [5, 3, 1]


@given(weights=weights)
def test_no_source_is_a_row_off_at_any_moment(weights: list[int]) -> None:
    owed = [NOTHING] * len(weights)
    table = DeadlineTable(weights, owed, 3 * sum(weights))
    assert farthest(table, weights, owed, 3 * sum(weights)) < 1
    assert table.bound == 1


@given(weights=weights, seed=st.integers(0, 1000))
def test_small_debts_change_nothing_about_it(weights: list[int], seed: int) -> None:
    draw = np.random.default_rng(seed)
    debts = [Fraction(int(each), 1000 * len(weights)) for each in draw.integers(-500, 500, len(weights))]
    owed = [debt - sum(debts) / len(weights) for debt in debts]
    table = DeadlineTable(weights, owed, 4 * sum(weights))
    assert farthest(table, weights, owed, 4 * sum(weights)) < 1


@given(weights=weights, debt=st.integers(0, 30), table_rows=st.sampled_from([7, 100, 2**18]), far=st.integers(0, 10**9))
def test_any_row_is_found_without_those_before_it(weights: list[int], debt: int, table_rows: int, far: int) -> None:
    """Within the table, in periods after it, and in what follows a table that is too short for a period."""
    owed = [NOTHING] * len(weights)
    if len(weights) > 1:
        owed[0], owed[-1] = Fraction(debt), Fraction(-debt)
    table = DeadlineTable(weights, owed, far + 1000, table_rows)
    for first in (0, far):
        rows = np.arange(first, first + 1000)
        sources, numbers = table.deal(rows)
        before = np.array(table.counts(first))
        given = before + np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
        assert int(before.sum()) == first
        assert np.array_equal(numbers, given[np.arange(1000), sources] - 1)
        assert np.array_equal(np.array(table.counts(rows + 1)).T, given)
        assert all(isinstance(count, int) for count in table.counts(first))


@pytest.mark.parametrize("debt", [0, 5])
def test_what_is_dealt_does_not_depend_on_how_many_rows_there_are(debt: int) -> None:
    weights, owed = [5, 4, 3, 2, 2], [Fraction(debt), *[NOTHING] * 3, Fraction(-debt)]
    dealt = [DeadlineTable(weights, owed, rows).deal(np.arange(50)) for rows in (50, 51, 1000)]
    assert all(np.array_equal(sources, dealt[0][0]) for sources, _ in dealt)


def test_a_debt_of_several_rows_is_made_up_first_and_forgotten() -> None:
    table = DeadlineTable([1, 1], [Fraction(4), Fraction(-4)], 100)
    sources, _ = table.deal(np.arange(100))
    assert sources.tolist()[:8] == [0] * 8
    assert sources.tolist()[8:] == [0, 1] * 46
    assert table.counts(10**9) == [5 * 10**8 + 4, 5 * 10**8 - 4]


def test_a_source_without_weight_gets_nothing_and_what_it_is_owed_goes_to_all() -> None:
    table = DeadlineTable([1, 0, 1], [NOTHING, Fraction(3), NOTHING], 10)
    assert table.deal(np.arange(10))[0].tolist() == [0, 2] * 5
