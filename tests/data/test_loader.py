from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from stages import chain

from ds_pretrain.curriculum import StagePlan
from ds_pretrain.curriculum.skips import Skip, cursor_before
from ds_pretrain.data.inputs import InputFormat
from ds_pretrain.data.loader import BatchReader, StepBatch, StepLoader, step_batch
from ds_pretrain.data.masking import Masking
from ds_pretrain.data.order import RowOrder
from ds_pretrain.data.stream import Places, TokenStream


def numbered_stream(num_windows: int, max_seq_len: int, cls: type[TokenStream] = TokenStream) -> TokenStream:
    """A corpus in which every token is its own position in the file."""
    return cls(np.arange(num_windows * max_seq_len + 1, dtype=np.int32), max_seq_len, seed=1)


def make_loader(stream: TokenStream | Sequence[TokenStream], stages: Sequence[Any], **changes: Any) -> StepLoader:
    ahead = {"first_step": 0, "total_steps": stages[-1].end_step, "prefetch": 2}
    ahead |= {key: changes.pop(key) for key in ahead if key in changes}
    streams = (stream,) if isinstance(stream, TokenStream) else stream
    return StepLoader(BatchReader(streams, stages, **({"seed": 1} | changes)), **ahead)


def contents(batches: Sequence[StepBatch]) -> list[tuple[int, int, list[Any], list[Any]]]:
    return [
        (
            batch.step,
            batch.stage,
            [micro.input_ids.tolist() for micro in batch.micro_batches],
            [micro.targets.tolist() for micro in batch.micro_batches],
        )
        for batch in batches
    ]


shapes = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(1, 4), st.integers(1, 3)),
    min_size=1,
    max_size=4,
)


@given(
    shapes=shapes,
    ranks=st.integers(1, 3),
    max_seq_len=st.integers(1, 12),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_an_epoch_uses_every_input_and_every_target_once(
    shapes: list[tuple[int, int, int, int]], ranks: int, max_seq_len: int, seed: int, data: st.DataObject
) -> None:
    """Whatever the stages, lengths, ranks, micro batches and restarts."""
    shapes = [(steps, min(seq_len, max_seq_len), micro, accum) for steps, seq_len, micro, accum in shapes]
    used = sum(steps * seq_len * micro * accum * ranks for steps, seq_len, micro, accum in shapes)
    # steps of `ranks` single tokens fill the epoch up to a whole number of windows
    num_windows = ranks * -(-used // (max_seq_len * ranks))
    left = num_windows * max_seq_len - used
    stages = chain([*shapes, *([(left // ranks, 1, 1, 1)] if left else [])], ranks)
    total = stages[-1].end_step
    restarts = data.draw(st.lists(st.integers(0, total), max_size=3))
    stream = TokenStream(np.arange(num_windows * max_seq_len + 1, dtype=np.int32), max_seq_len, seed)
    inputs: list[NDArray[np.int64]] = []
    targets: list[NDArray[np.int64]] = []
    for rank in range(ranks):
        for first, last in pairwise(sorted({0, *restarts, total})):
            with make_loader(
                stream,
                stages,
                seed=seed,
                rank=rank,
                data_parallel_size=ranks,
                first_step=first,
                total_steps=last,
            ) as loader:
                for batch in loader:
                    inputs += [micro.input_ids.numpy().ravel() for micro in batch.micro_batches]
                    targets += [micro.targets.numpy().ravel() for micro in batch.micro_batches]
    length = stream.positions_per_epoch
    assert np.array_equal(np.sort(np.concatenate(inputs)), np.arange(length))
    assert np.array_equal(np.sort(np.concatenate(targets)), np.arange(1, length + 1))
    assert all(np.array_equal(target, tokens + 1) for tokens, target in zip(inputs, targets, strict=True))


@given(
    shapes=shapes,
    ranks=st.integers(1, 3),
    truncate=st.booleans(),
    weights=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    data=st.data(),
)
def test_whatever_rollbacks_leave_out_nothing_is_used_twice_and_nothing_else_is_lost(
    shapes: list[tuple[int, int, int, int]], ranks: int, truncate: bool, weights: list[int], data: st.DataObject
) -> None:
    """A run that goes on, stops, starts again and goes back, over stages and sources."""
    stages = [
        replace(stage, data_weights=tuple(data.draw(st.permutations(weights))))
        for stage in chain(shapes, ranks, 12 if truncate else None)
    ]
    total = stages[-1].end_step
    length = 40 * total * ranks * 12
    apart = length + 12  # a whole number of windows
    streams = [
        TokenStream(np.arange(length + 1, dtype=np.int32) + source * apart, 12, seed=source)
        for source in range(len(weights))
    ]
    read: dict[int, list[int]] = {}
    left_out: list[int] = []
    skips: list[Skip] = []

    def take(first: int, last: int) -> None:
        for rank in range(ranks):
            settings: dict[str, Any] = {"rank": rank, "data_parallel_size": ranks, "skips": skips}
            with make_loader(streams, stages, first_step=first, total_steps=last, **settings) as loader:
                for batch in loader:
                    for micro in batch.micro_batches:
                        read.setdefault(batch.step, []).extend(micro.input_ids.flatten().tolist())
                        assert torch.equal(micro.targets, micro.input_ids + 1)
                    assert sum(batch.cursors) == cursor_before(stages, batch.step + 1, skips)

    step = 0
    for _ in range(data.draw(st.integers(0, 4))):
        reached = data.draw(st.integers(step, total))
        stop = data.draw(st.integers(step, reached))  # the process ends here, and another goes on
        take(step, stop)
        take(stop, reached)
        step = data.draw(st.integers(0, reached))
        if step < reached:
            skips.append(Skip(step, reached - step))
            for taken_back in range(step, reached):
                left_out += read.pop(taken_back)
    kept = {number: list(tokens) for number, tokens in read.items()}
    take(step, total)
    assert all(read[number] == tokens for number, tokens in kept.items())
    used = [token for tokens in read.values() for token in tokens] + left_out
    assert len(set(used)) == len(used)
    (cursors,) = RowOrder(stages, 1, skips).cursors_after(range(total - 1, total))
    if truncate:
        assert len({token // 12 for token in used}) == sum(cursors) // 12
        return
    for source, (stream, cursor) in enumerate(zip(streams, cursors, strict=True)):
        slots = np.arange(-(-cursor // 12))
        in_order = (stream.windows(slots)[:, None] * 12 + np.arange(12)).ravel()[:cursor] + source * apart
        assert sorted(token for token in used if token // apart == source) == sorted(in_order.tolist())


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_mixture_is_the_same_for_any_number_of_ranks_and_repeats_a_source_that_runs_out(ranks: int) -> None:
    (whole,) = chain([(30, 16, 8, 1)])
    whole = replace(whole, data_weights=(3, 1))
    streams = [numbered_stream(500, 16), TokenStream(np.arange(10**6, 10**6 + 161, dtype=np.int64), 16, seed=1)]
    split = replace(whole, micro_batch_size=8 // ranks)
    batches = [
        [step_batch(streams, [split], step, seed=1, rank=rank, data_parallel_size=ranks) for rank in range(ranks)]
        for step in range(30)
    ]
    rows = [torch.cat([share.micro_batches[0].input_ids for share in shares]) for shares in batches]
    alone = [step_batch(streams, [whole], step, seed=1).micro_batches[0].input_ids for step in range(30)]
    assert all(torch.equal(one, other) for one, other in zip(rows, alone, strict=True))
    second = torch.cat(rows)[:, 0]
    starts, counts = np.unique(second[second >= 10**6].numpy(), return_counts=True)
    assert (len(starts), counts.tolist()) == (10, [6] * 10)  # 30 x 8 / 4 = 60 rows of 10 windows: six epochs
    assert batches[-1][0].cursors == (180 * 16, 60 * 16)


THREE_STAGES = chain([(6, 4, 2, 3), (7, 10, 3, 1), (5, 16, 1, 2)])


@pytest.mark.parametrize("sequence_mode", ["chunk", "truncate", "mask"])
@pytest.mark.parametrize("first_step", [1, 5, 6, 7, 12, 13, 17, 18])
def test_a_continued_run_sees_the_batches_of_the_unbroken_one(sequence_mode: str, first_step: int) -> None:
    shapes = [(6, 4, 2, 3), (7, 8 if sequence_mode == "mask" else 10, 3, 1), (5, 16, 1, 2)]
    stages = chain(shapes, stride=16 if sequence_mode == "truncate" else None)
    if sequence_mode == "mask":
        stages = in_blocks(16, shapes)
    with make_loader(numbered_stream(9, 16), stages) as loader:
        unbroken = contents(list(loader))
    with make_loader(numbered_stream(9, 16), stages, first_step=first_step) as loader:
        assert contents(list(loader)) == unbroken[first_step:]
    assert [step for step, *_ in unbroken] == list(range(18))
    assert [stage for _, stage, *_ in unbroken] == [0] * 6 + [1] * 7 + [2] * 5


def batch_in_order(stream: TokenStream, stage: Any, step: int, ranks: int, micro: int) -> torch.Tensor:
    """All rows of a step, micro step by micro step and rank by rank."""
    accum = stage.batch_size // (ranks * micro)
    split = replace(stage, micro_batch_size=micro, grad_accum_steps=accum)
    shares = [step_batch(stream, [split], step, seed=1, rank=rank, data_parallel_size=ranks) for rank in range(ranks)]
    return torch.cat([shares[rank].micro_batches[m].input_ids for m in range(accum) for rank in range(ranks)])


@pytest.mark.parametrize(("ranks", "micro"), [(1, 1), (1, 6), (2, 3), (2, 6), (3, 2), (4, 1), (12, 1)])
def test_ranks_and_micro_batches_together_are_the_batch_of_one_rank(ranks: int, micro: int) -> None:
    stream = numbered_stream(50, 16)
    (stage,) = chain([(20, 6, 12, 1)])
    for step in (0, 7, 19):
        whole = batch_in_order(stream, stage, step, ranks=1, micro=12)
        assert torch.equal(batch_in_order(stream, stage, step, ranks, micro), whole)


def test_micro_batches_have_the_stages_shape_and_are_int64_on_the_device() -> None:
    for stage in THREE_STAGES:
        batch = step_batch(numbered_stream(9, 16), THREE_STAGES, stage.start_step, seed=1)
        assert len(batch.micro_batches) == stage.grad_accum_steps
        for micro in batch.micro_batches:
            assert micro.input_ids.shape == micro.targets.shape == (stage.micro_batch_size, stage.seq_len)
            assert micro.input_ids.dtype == micro.targets.dtype == torch.int32  # the file's
            moved = micro.to(torch.device("cpu"))
            assert moved.input_ids.dtype == moved.targets.dtype == torch.int64
            assert moved.input_ids.tolist() == micro.input_ids.tolist()


def in_blocks(max_seq_len: int, shapes: Sequence[tuple[int, int, int, int]], ranks: int = 1) -> list[StagePlan]:
    """Stages of mode ``mask`` from (steps, seq_len, micro_batch_size in rows, grad_accum_steps)."""
    stages = []
    rows = chain([(steps, max_seq_len, micro, accum) for steps, _, micro, accum in shapes], ranks)
    for stage, (_, seq_len, _, _) in zip(rows, shapes, strict=True):
        blocks = max_seq_len // seq_len
        stages.append(replace(stage, seq_len=seq_len, batch_size=stage.batch_size * blocks, blocks_per_row=blocks))
    return stages


@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 4), st.sampled_from([2, 3, 4, 6, 12]), st.integers(1, 3), st.integers(1, 3)),
        min_size=1,
        max_size=3,
    ),
    ranks=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_mask_uses_every_position_once_in_blocks_of_whole_windows(
    shapes: list[tuple[int, int, int, int]], ranks: int, seed: int
) -> None:
    stages = in_blocks(12, shapes, ranks)
    num_windows = sum(steps * micro * accum * ranks for steps, _, micro, accum in shapes)
    stream = TokenStream(np.arange(num_windows * 12 + 1, dtype=np.int32), 12, seed)
    used: list[NDArray[np.int64]] = []
    for stage in stages:
        for step in range(stage.start_step, stage.end_step):
            for rank in range(ranks):
                batch = step_batch(stream, stages, step, seed=seed, rank=rank, data_parallel_size=ranks)
                assert len(batch.micro_batches) == stage.grad_accum_steps
                for micro in batch.micro_batches:
                    assert micro.input_ids.shape == (stage.micro_batch_size * stage.blocks_per_row, stage.seq_len)
                    assert torch.equal(micro.targets, micro.input_ids + 1)
                    if stage.blocks_per_row > 1:  # windows begin at multiples of 12
                        assert torch.equal(micro.position_ids, micro.input_ids % 12)
                    else:
                        assert micro.position_ids is None
                    used.append(micro.input_ids.numpy().ravel())
    assert np.array_equal(np.sort(np.concatenate(used)), np.arange(num_windows * 12))


def test_rows_of_a_batch_in_mode_mask_are_a_draw_from_the_shuffle_block() -> None:
    stages = in_blocks(16, [(300, 4, 16, 1)])
    stream = numbered_stream(300 * 16, 16)
    batches = [step_batch(stream, stages, step, seed=1) for step in range(300)]
    windows = np.stack([batch.micro_batches[0].input_ids.numpy()[::4, 0] // 16 for batch in batches])
    assert np.sort(windows.ravel()).tolist() == list(range(300 * 16))
    assert np.abs(np.diff(windows, axis=1)).mean() == pytest.approx(300 * 16 / 3, rel=0.05)  # as of two uniform draws


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_masked_tokens_are_those_of_one_rank(ranks: int) -> None:
    masking = Masking(0.15, mask_id=1, special=np.zeros(50 * 16 + 1, dtype=bool))
    form = InputFormat(16, masking=masking)
    stream = numbered_stream(50, 16)
    (whole,) = in_blocks(16, [(20, 8, 8, 1)])
    (split,) = in_blocks(16, [(20, 8, 8 // ranks // 2, 2)], ranks)

    def batch(stage: StagePlan, step: int, rank: int, size: int) -> StepBatch:
        return step_batch(stream, [stage], step, seed=1, rank=rank, data_parallel_size=size, input_format=form)

    for step in (0, 7):
        (expected,) = batch(whole, step, 0, 1).micro_batches
        shares = [batch(split, step, rank, ranks) for rank in range(ranks)]
        assert {share.target_tokens for share in shares} == {16 * 1}  # of 8 tokens one is hidden
        for name in ("input_ids", "targets", "target_positions", "position_ids"):
            found = [getattr(shares[rank].micro_batches[part], name) for part in range(2) for rank in range(ranks)]
            assert torch.equal(torch.cat(found), getattr(expected, name))
    assert not torch.equal(batch(whole, 0, 0, 1).micro_batches[0].targets, expected.targets)


def test_truncate_takes_the_first_tokens_of_every_window_once() -> None:
    stages = chain([(3, 4, 2, 1), (2, 10, 3, 1)], stride=16)
    stream = numbered_stream(12, 16)
    batches = [
        step_batch(stream, stages, step, seed=1) for stage in stages for step in range(stage.start_step, stage.end_step)
    ]
    rows = [row for batch in batches for micro in batch.micro_batches for row in micro.input_ids.tolist()]
    assert sorted(row[0] for row in rows) == [16 * window for window in range(12)]
    assert all(row == list(range(row[0], row[0] + len(row))) for row in rows)
    assert [len(row) for row in rows] == [4] * 6 + [10] * 6


class RecordingStream(TokenStream):
    """Counts the rows it has read, and fails where it is told to."""

    reads: int = 0
    rows: int = 0
    fail_at: int = -1

    def read_places(self, places: Places, seq_len: int) -> tuple[NDArray[Any], NDArray[Any]]:
        if self.reads == self.fail_at:
            raise OSError("the disk is gone")
        self.reads += 1
        self.rows += len(places.at)
        return super().read_places(places, seq_len)


def test_only_the_ranks_own_rows_are_read() -> None:
    stream = numbered_stream(50, 16, RecordingStream)
    (stage,) = chain([(10, 8, 2, 3)], ranks=4)
    step_batch(stream, [stage], 3, seed=1, rank=2, data_parallel_size=4)
    assert isinstance(stream, RecordingStream)
    assert stream.rows == 6


def test_a_failure_in_the_thread_reaches_the_consumer_after_the_good_batches() -> None:
    stream = numbered_stream(50, 16, RecordingStream)
    stream.fail_at = 1  # type: ignore[attr-defined]  # small steps are read several at once, here a stage's
    good = THREE_STAGES[0].end_step
    with make_loader(stream, THREE_STAGES) as loader:
        assert [next(loader).step for _ in range(good)] == list(range(good))
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                next(loader)


def test_no_more_steps_are_read_ahead_than_asked_for() -> None:
    stream = numbered_stream(50, 16, RecordingStream)
    with make_loader(stream, chain([(5000, 1, 1, 1)]), prefetch=3) as loader:
        for taken in range(1, 200):
            next(loader)
            assert stream.reads <= taken + 3 + 1  # type: ignore[attr-defined]


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ds_pretrain-loader"]


@pytest.mark.parametrize("taken", [0, 1, 5])
@pytest.mark.parametrize("prefetch", [1, 4])
def test_close_ends_the_thread_with_the_queue_full(taken: int, prefetch: int) -> None:
    loader = make_loader(numbered_stream(50, 16), chain([(100_000, 4, 1, 1)]), prefetch=prefetch)
    for _ in range(taken):
        next(loader)
    closer = threading.Thread(target=loader.close, daemon=True)  # so that a thread that never ends fails the test
    closer.start()
    closer.join(timeout=30)
    assert not closer.is_alive()
    assert loader_threads() == []
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_the_thread_is_gone_after_the_last_step_and_after_an_error_of_the_consumer() -> None:
    with make_loader(numbered_stream(9, 16), THREE_STAGES) as loader:
        assert len(list(loader)) == 18
        assert list(loader) == []
    with pytest.raises(KeyError), make_loader(numbered_stream(9, 16), THREE_STAGES):
        raise KeyError("stop")
    assert loader_threads() == []


def test_a_run_that_is_over_has_no_batches() -> None:
    with make_loader(numbered_stream(9, 16), THREE_STAGES, first_step=18) as loader:
        assert list(loader) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefetch": 0}, "prefetch: found 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loader(numbered_stream(9, 16), THREE_STAGES, **changes)
    assert loader_threads() == []
