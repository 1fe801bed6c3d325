"""A rank's batches, step by step, read ahead by a thread.

``step_batch`` is a pure function of the plan, the seed and the step; ``StepLoader`` only calls it ahead of
time. So a run that continues at any step sees the batches that the unbroken run sees.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import numpy as np

from ds_pretrain.curriculum.skips import Skip, stretch_at
from ds_pretrain.data.inputs import InputFormat, MicroBatch
from ds_pretrain.data.rows import StageRows, rank_slice
from ds_pretrain.data.stream import TokenStream

if TYPE_CHECKING:
    from ds_pretrain.curriculum.plan import StagePlan

SequenceMode = Literal["chunk", "truncate", "mask"]
# keeps what training draws apart from what evaluation does
_TRAINING = 0


@dataclass(frozen=True, eq=False)
class StepBatch:
    """One rank's share of an optimizer step.

    Args:
        step: step of the run, from 0.
        stage: index of the step's stage.
        micro_batches: in the order in which they are accumulated, grad_accum_steps of them.
        target_tokens: targets of the step, over all micro batches and ranks.
    """

    step: int
    stage: int
    micro_batches: tuple[MicroBatch, ...]
    target_tokens: int


def step_batch(
    stream: TokenStream,
    stages: Sequence[StagePlan],
    step: int,
    *,
    seed: int,
    rank: int = 0,
    data_parallel_size: int = 1,
    sequence_mode: SequenceMode = "chunk",
    skips: Sequence[Skip] = (),
    input_format: InputFormat | None = None,
    pin_memory: bool = False,
) -> StepBatch:
    """Reads one rank's rows of one step.

    Args:
        stream: the training stream.
        stages: the plan's stages, in order, without gaps.
        step: step of the run, from 0.
        seed: the run's seed.
        rank: data-parallel rank, from 0.
        data_parallel_size: ranks that see different data.
        sequence_mode: ``chunk`` uses every position, ``truncate`` the first seq_len of every window, ``mask`` whole
            windows in blocks of seq_len.
        skips: what rollbacks have left out, in their order.
        input_format: what the model is fed of the rows; their tokens alone unless given.
        pin_memory: page-locked tensors, for copies to a GPU that overlap computing.

    Returns:
        The rank's micro batches.
    """
    stage, stretch = stretch_at(stages, step, skips)
    rows = StageRows(
        seed=seed,
        stage=stage.index,
        start_cursor=stretch.start_cursor,
        steps=stretch.end_step - stretch.start_step,
        batch_size=stage.rows_per_step,
        stride=stage.seq_len if sequence_mode == "chunk" else stream.max_seq_len,
        reading=stretch.reading,
    )
    starts = rows.starts(step - stretch.start_step)
    micro = stage.micro_batch_size
    numbers = np.arange(len(starts))
    slices = [rank_slice(numbers, rank, data_parallel_size, micro, part) for part in range(stage.grad_accum_steps)]
    places = np.concatenate(slices)
    mine = starts[places]
    inputs, targets = stream.read(mine, stage.seq_len * stage.blocks_per_row)
    wanted = input_format or InputFormat(stream.max_seq_len)
    micro_batches = wanted.micro_batches(
        inputs,
        targets,
        mine,
        seq_len=stage.seq_len,
        micro_batch_size=micro,
        places=places,
        key=(seed, _TRAINING, step),
    )
    if pin_memory:
        micro_batches = tuple(part.pin_memory() for part in micro_batches)
    return StepBatch(step, stage.index, micro_batches, stage.batch_size * wanted.targets_per_sequence(stage.seq_len))


class StepLoader:
    """Iterates one rank's ``StepBatch`` of every step from ``first_step`` to the last; a context manager.

    Args:
        stream: the training stream.
        stages: the plan's stages, in order, without gaps.
        seed: the run's seed.
        rank: data-parallel rank, from 0.
        data_parallel_size: ranks that see different data.
        first_step: step of the run to begin with, from 0.
        total_steps: steps of the run; the last batch is that of step total_steps - 1.
        sequence_mode, skips, input_format: as in ``step_batch``.
        prefetch: steps held ready, at least 1.
        pin_memory: as in ``step_batch``.

    Raises:
        Exception: from ``next``, whatever reading failed with.
    """

    def __init__(
        self,
        stream: TokenStream,
        stages: Sequence[StagePlan],
        *,
        seed: int,
        rank: int,
        data_parallel_size: int,
        first_step: int,
        total_steps: int,
        sequence_mode: SequenceMode,
        prefetch: int,
        pin_memory: bool,
        skips: Sequence[Skip] = (),
        input_format: InputFormat | None = None,
    ) -> None:
        if prefetch < 1:
            raise ValueError(f"prefetch: found {prefetch}; at least 1 step must be held ready")
        if total_steps > stages[-1].end_step:
            raise ValueError(f"total_steps: found {total_steps}, but the stages end at step {stages[-1].end_step}")
        self._stream = stream
        self._stages = tuple(stages)
        self._seed = seed
        self._rank = rank
        self._data_parallel_size = data_parallel_size
        self._steps = range(first_step, total_steps)
        self._sequence_mode: SequenceMode = sequence_mode
        self._input_format = input_format
        self._pin_memory = pin_memory
        self._skips = tuple(skips)
        self._ready: queue.Queue[StepBatch | Exception] = queue.Queue(prefetch)
        self._stop = threading.Event()
        self._end: Exception | None = None
        self._thread = threading.Thread(target=self._read_ahead, name="ds_pretrain-loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        if self._end is None:
            item = self._ready.get()
            if isinstance(item, StepBatch):
                return item
            self._end = item
        raise self._end

    def __enter__(self) -> StepLoader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread; batches read ahead are dropped. May be called again."""
        self._stop.set()
        # The thread puts at most one more item once it is told to stop, and an emptied queue has room for it.
        while not self._ready.empty():
            self._ready.get()
        self._thread.join()
        self._end = self._end or RuntimeError("the loader is closed")

    def _read_ahead(self) -> None:
        try:
            for step in self._steps:
                if self._stop.is_set():
                    return
                self._ready.put(self._read(step))
            end: Exception = StopIteration()
        except Exception as error:
            end = error
        if not self._stop.is_set():
            self._ready.put(end)

    def _read(self, step: int) -> StepBatch:
        return step_batch(
            self._stream,
            self._stages,
            step,
            seed=self._seed,
            rank=self._rank,
            data_parallel_size=self._data_parallel_size,
            sequence_mode=self._sequence_mode,
            skips=self._skips,
            input_format=self._input_format,
            pin_memory=self._pin_memory,
        )
