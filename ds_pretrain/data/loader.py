"""A rank's batches, step by step, read ahead by a thread.

``BatchReader`` is a pure function of the plan, the seed and the step; ``StepLoader`` only calls it ahead of
time. So a run that continues at any step sees the batches that the unbroken run sees.

What costs time is neither the copy nor the disk but finding the rows, whose permutations are dear in small calls: the
rows of many steps are found at once.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ds_pretrain.curriculum.skips import Skip
from ds_pretrain.data.gather import RowGatherer
from ds_pretrain.data.inputs import InputFormat, MicroBatch
from ds_pretrain.data.order import RowOrder
from ds_pretrain.data.rows import rank_rows
from ds_pretrain.data.stream import TokenStream
from ds_pretrain.data.token_ids import IdLimit
from ds_pretrain.errors import DataError

if TYPE_CHECKING:
    from ds_pretrain.curriculum.plan import StagePlan

# keeps what training draws apart from what evaluation does
_TRAINING = 0
_ROWS_AT_ONCE = 4096  # rows found in one go: about a millisecond of work, 100 kB


@dataclass(frozen=True, eq=False)
class StepBatch:
    """One rank's share of an optimizer step.

    Args:
        step: step of the run, from 0.
        stage: index of the step's stage.
        micro_batches: in the order in which they are accumulated, grad_accum_steps of them.
        target_tokens: targets of the step, over all micro batches and ranks.
        cursors: positions of every source's stream that are consumed, or left out, once the step is done.
        problem: why this step must end the run; its rows then only have the right shape, so that this rank can still
            meet the others, who do not know of it.
    """

    step: int
    stage: int
    micro_batches: tuple[MicroBatch, ...]
    target_tokens: int
    cursors: tuple[int, ...] = ()
    problem: DataError | None = None


class BatchReader:
    """Reads one rank's rows of any step.

    Args:
        streams: the training stream of every source.
        stages: the plan's stages, from its first, in order, without gaps.
        seed: the run's seed.
        rank: data-parallel rank, from 0.
        data_parallel_size: ranks that see different data.
        skips: what rollbacks have left out, in their order.
        input_format: what the model is fed of the rows; their tokens alone unless given.
        pin_memory: page-locked tensors, for copies to a GPU that overlap computing.
        id_limit: what token ids are checked against; None where manifests vouch for all of them.
    """

    def __init__(
        self,
        streams: Sequence[TokenStream],
        stages: Sequence[StagePlan],
        *,
        seed: int,
        rank: int = 0,
        data_parallel_size: int = 1,
        skips: Sequence[Skip] = (),
        input_format: InputFormat | None = None,
        pin_memory: bool = False,
        id_limit: IdLimit | None = None,
    ) -> None:
        self._streams = tuple(streams)
        self._order = RowOrder(stages, seed, skips)
        if self._order.num_sources != len(self._streams):
            raise ValueError(f"streams: found {len(self._streams)} for a plan of {self._order.num_sources} sources")
        self._seed = seed
        self._rank = rank
        self._data_parallel_size = data_parallel_size
        self._input_format = input_format or InputFormat(streams[0].max_seq_len)
        self._pin_memory = pin_memory
        self._id_limit = id_limit
        self._gather = RowGatherer(streams)

    def read(self, steps: range) -> Iterator[StepBatch]:
        """The batches of consecutive steps.

        Args:
            steps: of the run, from 0.

        Returns:
            Each batch is read when it is asked for.

        Raises:
            IndexError: the stages do not hold a step.
        """
        first = steps.start
        while first < steps.stop:
            stage, until = self._order.reading_until(first)
            rows_per_rank = stage.rows_per_step // self._data_parallel_size
            last = min(until, steps.stop, first + max(1, _ROWS_AT_ONCE // rows_per_rank))
            yield from self._read_found(stage, range(first, last))
            first = last

    def find(self, steps: range) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sources and starts of this rank's rows of steps of one stage, as ``RowOrder.rows`` gives them."""
        stage, _ = self._order.reading_until(steps.start)
        return self._order.rows(steps, self._rows_of(stage))

    def _rows_of(self, stage: StagePlan) -> NDArray[np.int64]:
        return rank_rows(self._rank, self._data_parallel_size, stage.micro_batch_size, stage.grad_accum_steps)

    def _read_found(self, stage: StagePlan, steps: range) -> Iterator[StepBatch]:
        sources, starts = self.find(steps)
        in_batch = self._rows_of(stage)
        rows = len(in_batch)
        steps_read = self._gather.read(sources, starts, stage.seq_len * stage.blocks_per_row, rows)
        target_tokens = stage.batch_size * self._input_format.targets_per_sequence(stage.seq_len)
        cursors = self._order.cursors_after(steps)
        for number, read in enumerate(steps_read):
            step, mine = steps[number], slice(number * rows, (number + 1) * rows)
            inputs, targets = read
            problem = None
            if self._id_limit is not None:
                problem = self._beyond(self._id_limit, sources[mine], starts[mine], read)
                if problem is not None:
                    inputs, targets = (self._id_limit.replaced(tokens) for tokens in read)
            micro_batches = self._input_format.micro_batches(
                inputs,
                targets,
                starts[mine],
                seq_len=stage.seq_len,
                micro_batch_size=stage.micro_batch_size,
                places=in_batch,
                key=(self._seed, _TRAINING, step),
            )
            if self._pin_memory:
                micro_batches = tuple(part.pin_memory() for part in micro_batches)
            yield StepBatch(step, stage.index, micro_batches, target_tokens, cursors[number], problem)

    def _beyond(
        self, limit: IdLimit, sources: NDArray[np.int64], starts: NDArray[np.int64], read: Sequence[NDArray[Any]]
    ) -> DataError | None:
        """The error of the first token id beyond the vocabulary, among a step's inputs, then its targets."""
        for ahead, tokens in enumerate(read):
            if (place := limit.first_beyond(tokens)) is not None:
                row, column = place
                source = int(sources[row])
                at = self._streams[source].locate(starts[row : row + 1] + column, 1).at
                return limit.error(source, int(at[0]) + ahead)
        return None


def step_batch(
    streams: TokenStream | Sequence[TokenStream], stages: Sequence[StagePlan], step: int, **settings: Any
) -> StepBatch:
    """One rank's rows of one step; ``settings`` are ``BatchReader``'s."""
    several = (streams,) if isinstance(streams, TokenStream) else streams
    return next(BatchReader(several, stages, **settings).read(range(step, step + 1)))


class StepLoader:
    """Iterates one rank's ``StepBatch`` of every step from ``first_step`` to the last; a context manager.

    Args:
        reader: reads the batches.
        first_step: step of the run to begin with, from 0.
        total_steps: steps of the run; the last batch is that of step total_steps - 1.
        prefetch: steps held ready, at least 1.

    Raises:
        Exception: from ``next``, whatever reading failed with.
    """

    def __init__(self, reader: BatchReader, *, first_step: int, total_steps: int, prefetch: int) -> None:
        if prefetch < 1:
            raise ValueError(f"prefetch: found {prefetch}; at least 1 step must be held ready")
        self._reader = reader
        self._steps = range(first_step, total_steps)
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
            for batch in self._reader.read(self._steps):
                self._ready.put(batch)
                if self._stop.is_set():
                    return
            end: Exception = StopIteration()
        except Exception as error:
            end = error
        if not self._stop.is_set():
            self._ready.put(end)
