from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from ds_pretrain.data.splits import SplitTree

NOTHING = Fraction(0)


def test_by_hand() -> None:
    # 3 of 5 rows go left: floor(3 n / 5 + 1/2) of the first n
    tree = SplitTree([3, 2], [NOTHING] * 2)
    sources, numbers = tree.deal(np.arange(10))
    assert sources.tolist() == [0, 1, 0, 1, 0] * 2
    assert numbers.tolist() == [0, 0, 1, 1, 2, 3, 2, 4, 3, 5]
    assert tree.counts(7) == [4, 3]
    assert tree.bound == 0.5


@pytest.mark.parametrize(
    ("weights", "bound"),
    [
        ([1], 0.0),
        ([1, 1, 1, 1], 0.75),  # half a row at the lower split, and half of the half from above
        ([2, 1, 1], 0.75),
        ([5, 0, 5], 0.5),
    ],
)
def test_how_far_a_source_may_be_off(weights: list[int], bound: float) -> None:
    assert SplitTree(weights, [NOTHING] * len(weights)).bound == bound


def test_debts_move_the_rounding() -> None:
    owed = SplitTree([1, 1], [Fraction(-1, 2), Fraction(1, 2)])
    assert owed.deal(np.arange(4))[0].tolist() == [1, 0, 1, 0]
    assert SplitTree([1, 1], [NOTHING] * 2).deal(np.arange(4))[0].tolist() == [0, 1, 0, 1]
