from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import recipe

from ds_pretrain.config import Pacing
from ds_pretrain.curriculum import build_plan
from ds_pretrain.curriculum.pacing import paced_lengths


def test_linear_lengths_begin_where_the_line_reaches_them() -> None:
    lengths = paced_lengths(Pacing(kind="linear", start_seq_len=64, multiple=64), 256)
    assert lengths == [(0.0, 64), (pytest.approx(1 / 3), 128), (pytest.approx(2 / 3), 192), (1.0, 256)]


def test_root_is_quick_at_first_and_exponential_is_not() -> None:
    root = dict(reversed(pair) for pair in paced_lengths(Pacing(kind="root", start_seq_len=8), 72))
    assert root[40] == pytest.approx(0.25)  # half way up after a quarter: sqrt
    exponential = dict(reversed(p) for p in paced_lengths(Pacing(kind="exponential", start_seq_len=8), 128))
    assert exponential[32] == pytest.approx(0.5)  # 8 x 16^0.5


def test_discrete_doubles_in_equal_shares() -> None:
    assert paced_lengths(Pacing(kind="discrete", start_seq_len=64), 512) == [
        (0.0, 64), (pytest.approx(1 / 3), 128), (pytest.approx(2 / 3), 256), (1.0, 512),
    ]  # fmt: skip
    assert [length for _, length in paced_lengths(Pacing(kind="discrete", start_seq_len=512), 64)] == [
        512,
        256,
        128,
        64,
    ]


@given(
    st.sampled_from(["linear", "root", "exponential", "discrete"]),
    st.integers(1, 600),
    st.integers(1, 600),
    st.sampled_from([8, 16, 64]),
)
def test_lengths_move_one_way_from_start_to_end(kind: str, start: int, end: int, multiple: int) -> None:
    found = paced_lengths(Pacing(kind=kind, start_seq_len=start, multiple=multiple), end)
    shares, lengths = zip(*found, strict=True)
    assert (lengths[0], lengths[-1], shares[0]) == (start, end, 0.0)
    assert list(lengths) == sorted(set(lengths), reverse=start > end)
    assert list(shares) == sorted(set(shares))
    assert shares[-1] == 1.0 or start == end
    if kind != "discrete":
        assert all(length % multiple == 0 for length in lengths[1:-1])


def test_pacing_becomes_stages_of_whole_steps() -> None:
    pacing = {"kind": "linear", "start_seq_len": 8, "end_seq_len": 64, "fraction": 0.5, "batch_size": 4}
    plan = build_plan(recipe(curriculum={"total_steps": 140, "pacing": pacing}))
    assert [(stage.start_step, stage.seq_len) for stage in plan.stages] == [(10 * i, 8 * (i + 1)) for i in range(8)]
    # finer than steps: lengths without a step of their own are left out
    coarse = build_plan(recipe(curriculum={"total_steps": 4, "pacing": pacing}))
    assert [(stage.start_step, stage.seq_len) for stage in coarse.stages] == [(0, 8), (1, 32), (2, 64)]
    assert coarse.warnings == ("curriculum.pacing has no step before the next stage starts and is dropped",)
