from __future__ import annotations

import pytest
from stages import chain

from ds_pretrain.curriculum.skips import Skip, cursor_before, reading_at, skipped_positions

STAGES = chain([(10, 4, 2, 1), (10, 8, 2, 1), (5, 16, 1, 1)])  # 8, 16 and 16 positions a step; 320 in all


def test_the_last_rollback_over_a_step_counts() -> None:
    skips = [Skip(8, 4), Skip(9, 2), Skip(2, 3)]
    assert [reading_at(step, skips) for step in range(13)] == [0, 0, 3, 3, 3, 0, 0, 0, 1, 2, 2, 1, 0]
    assert skipped_positions(STAGES, skips) == (2 * 8 + 2 * 16) + (8 + 16) + 3 * 8


def test_the_cursor_goes_on_where_a_rollback_happens() -> None:
    assert [cursor_before(STAGES, step) for step in (0, 10, 20, 25)] == [0, 80, 240, 320]
    before = cursor_before(STAGES, 12)
    assert cursor_before(STAGES, 8, [Skip(8, 4)]) == before == 80 + 32
    assert cursor_before(STAGES, 25, [Skip(8, 4)]) == 320 + 48


@pytest.mark.parametrize(("step", "steps"), [(-1, 2), (3, 0)])
def test_a_skip_of_nothing_is_refused(step: int, steps: int) -> None:
    with pytest.raises(ValueError, match="skip: found"):
        Skip(step, steps)
