from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_pretrain.schedules.warmup import WarmupShape, warmup_lr

SHAPES: tuple[WarmupShape, ...] = ("linear", "cosine", "inverse", "constant")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [0.25, 0.5, 0.75, 1.0]),
        ("cosine", [(1 - math.sqrt(0.5)) / 2, 0.5, (1 + math.sqrt(0.5)) / 2, 1.0]),
        ("inverse", [0.5, 1 / math.sqrt(2), math.sqrt(3) / 2, 1.0]),
        ("constant", [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_by_hand(shape: WarmupShape, expected: list[float]) -> None:
    assert [warmup_lr(shape, 0.0, 1.0, k, 4) for k in range(4)] == pytest.approx(expected, abs=1e-15)
    assert np.asarray(warmup_lr(shape, 0.0, 1.0, np.arange(4), 4)) == pytest.approx(expected, abs=1e-15)
    down = [warmup_lr(shape, 3.0, 1.0, k, 4) for k in range(4)]
    assert down == pytest.approx([3.0 - 2.0 * share for share in expected], abs=1e-15)


@given(st.sampled_from(SHAPES), st.floats(0, 1), st.floats(0, 1), st.integers(1, 500))
def test_it_moves_one_way_and_ends_at_the_target(
    shape: WarmupShape, entry: float, target: float, warmup_steps: int
) -> None:
    rates = [entry, *(warmup_lr(shape, entry, target, k, warmup_steps) for k in range(warmup_steps))]
    assert rates[-1] == pytest.approx(target, abs=1e-15)
    ups = [after - before for before, after in pairwise(rates)]
    assert all(up * (target - entry) >= -1e-15 for up in ups)


@given(st.sampled_from(["linear", "cosine", "inverse"]), st.integers(100, 1000))
def test_a_longer_warmup_has_smaller_steps_at_both_ends(shape: WarmupShape, warmup_steps: int) -> None:
    first = warmup_lr(shape, 0.0, 1.0, 0, warmup_steps)
    last = 1.0 - warmup_lr(shape, 0.0, 1.0, warmup_steps - 2, warmup_steps)
    # sqrt(1 / W) is the largest of them at the start, 1 / W at the end
    assert 0.0 < first <= warmup_steps**-0.5 * (1 + 1e-12)
    assert 0.0 < last <= 1.0 / warmup_steps * (1 + 1e-9)
