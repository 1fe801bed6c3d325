from __future__ import annotations

import pytest
from stages import chain

from ds_pretrain.curriculum.skips import Skip, Stretch, cursor_before, skipped_positions, stretch_at

STAGES = chain([(10, 4, 2, 1), (10, 8, 2, 1), (5, 16, 1, 1)])  # 8, 16 and 16 positions a step; 320 in all


def test_without_rollbacks_a_step_reads_what_its_stage_was_given() -> None:
    assert stretch_at(STAGES, 9) == (STAGES[0], Stretch(0, 10, 0))
    assert stretch_at(STAGES, 10) == (STAGES[1], Stretch(10, 20, 80))
    assert [cursor_before(STAGES, step) for step in (0, 10, 20, 25)] == [0, 80, 240, 320]


def test_a_rollback_reads_on_beyond_the_end_and_changes_no_other_step() -> None:
    skips = [Skip(3, 4)]
    assert stretch_at(STAGES, 2, skips)[1] == Stretch(0, 10, 0)
    assert stretch_at(STAGES, 3, skips)[1] == stretch_at(STAGES, 6, skips)[1] == Stretch(3, 7, 320, 1)
    assert stretch_at(STAGES, 7, skips)[1] == Stretch(0, 10, 0)
    assert stretch_at(STAGES, 20, skips)[1] == Stretch(20, 25, 240)


def test_a_rollback_across_a_stage_gives_each_stage_its_own_part() -> None:
    skips = [Skip(8, 4)]
    assert stretch_at(STAGES, 9, skips) == (STAGES[0], Stretch(8, 10, 320, 1))
    assert stretch_at(STAGES, 10, skips) == (STAGES[1], Stretch(10, 12, 320 + 2 * 8, 1))
    assert skipped_positions(STAGES, skips) == 2 * 8 + 2 * 16


def test_the_last_rollback_over_a_step_counts_and_begins_where_the_one_before_ends() -> None:
    skips = [Skip(8, 4), Skip(9, 2), Skip(2, 3)]
    assert stretch_at(STAGES, 8, skips)[1] == Stretch(8, 10, 320, 1)
    assert stretch_at(STAGES, 9, skips)[1] == Stretch(9, 10, 320 + 48, 2)
    assert stretch_at(STAGES, 10, skips)[1] == Stretch(10, 11, 320 + 48 + 8, 2)
    assert stretch_at(STAGES, 11, skips)[1] == Stretch(10, 12, 320 + 16, 1)
    assert stretch_at(STAGES, 4, skips)[1] == Stretch(2, 5, 320 + 48 + 24, 3)


def test_the_cursor_goes_on_where_a_rollback_happens() -> None:
    before = cursor_before(STAGES, 12)
    assert cursor_before(STAGES, 8, [Skip(8, 4)]) == before == 80 + 32
    assert cursor_before(STAGES, 25, [Skip(8, 4)]) == 320 + 48


@pytest.mark.parametrize("step", [-1, 25])
def test_a_step_outside_the_stages_is_an_error(step: int) -> None:
    with pytest.raises(IndexError, match="which end at step 25"):
        stretch_at(STAGES, step)


@pytest.mark.parametrize(("step", "steps"), [(-1, 2), (3, 0)])
def test_a_skip_of_nothing_is_refused(step: int, steps: int) -> None:
    with pytest.raises(ValueError, match="skip: found"):
        Skip(step, steps)
