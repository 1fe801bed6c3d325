from __future__ import annotations

import pytest

from ds_pretrain.config import LrScaling
from ds_pretrain.curriculum.scaling import formula_multiplier, scaled_multiplier


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("none", 1.0), ("linear_batch", 4.0), ("sqrt_batch", 2.0), ("sqrt_batch_seq", 6.0)],
)
def test_rules(kind: str, expected: float) -> None:
    # batch 128 of 32 references, length 512 of 1,536: sqrt(4) x 3
    scaling = LrScaling(kind=kind, reference_batch=32, reference_seq_len=1536)
    assert scaled_multiplier(scaling, 128, 512) == pytest.approx(expected)


def test_the_length_factor_is_capped() -> None:
    assert formula_multiplier(32, 64) == 4.0
    assert formula_multiplier(32, 2048) == 1.0
    assert formula_multiplier(8, 4096) == 0.25
