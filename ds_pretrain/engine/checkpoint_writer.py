"""Writes checkpoints: no rank waits for one whose disk fails, and training goes on meanwhile where that is asked for.

DeepSpeed meets at barriers inside ``save_checkpoint``, which a rank that cannot write would never reach. So its own
checkpoint engine is wrapped: what it is asked to write is put off until every rank has come through, and what then
fails is gathered, so that all ranks know. An asynchronous save differs in two things: the state is first copied to
the host, by torch.distributed.checkpoint's stager, and a thread does the writing, flushing and measuring.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from ds_pretrain.engine.checkpoint import ENGINE_TAG, rng_name
from ds_pretrain.engine.checkpoint_files import (
    STATE,
    FileRecord,
    checkpoint_folder,
    delete_checkpoint,
    files_of,
    partial_folder,
    publish,
    record_files,
    write_durably,
)
from ds_pretrain.engine.ranks import Ranks, broadcast_object, engine_precision, gather_objects
from ds_pretrain.engine.rng import rng_state
from ds_pretrain.errors import SaveError

Write = Callable[[], None]


@dataclass(frozen=True)
class _Share:
    """What a rank wrote: a record of every file, or what went wrong."""

    records: Mapping[str, FileRecord]
    problem: str | None = None


@dataclass(frozen=True)
class _Flight:
    """A save that is not visible yet."""

    step: int
    about: Mapping[str, Any]
    share: Future[_Share]


class CheckpointWriter:
    """Saves the live engine, one checkpoint at a time. Every rank takes part in all of it, in the same order.

    Args:
        checkpoints: folder of the run's checkpoints, on a disk that all ranks share.
        ranks: this process among those of the run.
        asynchronous: whether ``start`` returns once the state is copied, which takes its size in host memory.
    """

    def __init__(self, checkpoints: Path, ranks: Ranks, asynchronous: bool) -> None:
        self._checkpoints = checkpoints
        self._ranks = ranks
        self._stager = _stager() if asynchronous else None
        self._thread = ThreadPoolExecutor(1, "ds_pretrain-checkpoint") if asynchronous else None
        self._flight: _Flight | None = None

    @property
    def step(self) -> int | None:
        """Step of the save in flight; None where there is none."""
        return None if self._flight is None else self._flight.step

    @property
    def writing(self) -> bool:
        """Whether this rank still writes its share."""
        return self._flight is not None and not self._flight.share.done()

    def start(self, engine: DeepSpeedEngine, state: Mapping[str, Any]) -> None:
        """Takes the state and begins to write it; no other save may be in flight.

        Args:
            engine: the live engine, between two steps.
            state: the run's own state; JSON values, ``step`` among them.

        Raises:
            SaveError: on every rank, where the checkpoint's folder cannot be made.
        """
        assert self._flight is None
        step = int(state["step"])
        beside = partial_folder(self._checkpoints, step)
        self._agree(_attempt(partial(_make_room, beside)) if self._ranks.is_main else None)
        writes = self._collect(engine, beside)
        writes[beside / rng_name(self._ranks.rank)] = partial(
            _write_rng, rng_state(), beside / rng_name(self._ranks.rank)
        )
        if self._ranks.is_main:
            text = json.dumps(state, indent=2) + "\n"
            writes[beside / STATE] = partial(write_durably, beside / STATE, text)
        about = {
            "world_size": self._ranks.world_size,
            "zero_stage": engine.zero_optimization_stage(),
            "precision": engine_precision(engine),
        }
        self._flight = _Flight(step, about, self._submit(partial(_write_share, beside, writes, self._ranks.rank)))

    def finish(self) -> Path:
        """Waits for the save in flight and makes it visible, if every rank has written its share.

        Returns:
            The checkpoint's folder.

        Raises:
            SaveError: on every rank, where one of them could not write; nothing is left of the checkpoint.
        """
        assert self._flight is not None
        flight, self._flight = self._flight, None
        beside, final = (
            partial_folder(self._checkpoints, flight.step),
            checkpoint_folder(self._checkpoints, flight.step),
        )
        shares = gather_objects(flight.share.result(), self._ranks)
        problem = "; ".join(f"rank {rank}: {share.problem}" for rank, share in enumerate(shares) if share.problem)
        if self._ranks.is_main:
            records = {name: record for share in shares for name, record in share.records.items()}
            problem = problem or _attempt(partial(_publish, beside, final, flight, records)) or ""
            if problem:
                shutil.rmtree(beside, ignore_errors=True)
        self._agree(problem or None)
        return final

    def _collect(self, engine: DeepSpeedEngine, beside: Path) -> dict[Path, Write]:
        """What DeepSpeed would write, by file, copied where training goes on meanwhile."""
        own = engine.checkpoint_engine
        deferred = _DeferredEngine(own, self._stage)
        engine.checkpoint_engine = deferred
        # rank 0's copy of a script that DeepSpeed itself brings: another write that the others would wait for
        engine._copy_recovery_script = lambda folder: None
        try:
            engine.save_checkpoint(str(beside), tag=ENGINE_TAG, save_latest=False)
        finally:
            engine.checkpoint_engine = own
            del engine._copy_recovery_script
        return deferred.writes

    def _stage(self, state: Any) -> Any:
        return state if self._stager is None else self._stager.stage(state)

    def _submit(self, work: Callable[[], _Share]) -> Future[_Share]:
        if self._thread is not None:
            return self._thread.submit(work)
        done: Future[_Share] = Future()
        done.set_result(work())
        return done

    def _agree(self, problem: str | None) -> None:
        """Rank 0's verdict for all."""
        problem = broadcast_object(problem, self._ranks)
        if problem is not None:
            raise SaveError(problem)


class _DeferredEngine(CheckpointEngine):  # type: ignore[misc]
    """DeepSpeed's own checkpoint engine, with its writes collected instead of carried out."""

    def __init__(self, own: CheckpointEngine, stage: Callable[[Any], Any]) -> None:
        super().__init__()
        self.name = own.name
        self._own = own
        self._stage = stage
        self.writes: dict[Path, Write] = {}

    def create(self, info: CheckpointCommitInfo) -> None:
        self._own.create(info)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: the one folder that DeepSpeed asks for is there."""

    def save(self, state_dict: Any, path: str) -> None:
        self.writes[Path(path)] = partial(self._own.save, self._stage(state_dict), path)

    def load(self, path: str, map_location: Any = None) -> Any:
        return self._own.load(path, map_location)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True


def _stager() -> DefaultStager:
    on_gpu = torch.cuda.is_available()
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=on_gpu,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=on_gpu,
        )
    )


def _make_room(beside: Path) -> None:
    shutil.rmtree(beside, ignore_errors=True)
    (beside / ENGINE_TAG).mkdir(parents=True)


def _write_rng(state: dict[str, Tensor], path: Path) -> None:
    save_file(state, path)


def _write_share(beside: Path, writes: dict[Path, Write], rank: int) -> _Share:
    """Writes, flushes and measures a rank's files; never raises."""
    names = [path.relative_to(beside).as_posix() for path in writes]
    for name, path in zip(names, list(writes), strict=True):
        problem = _attempt(writes.pop(path))  # and with it the copy that it holds
        if problem is not None:
            writes.clear()
            return _Share({}, f"{name} could not be written ({problem})")
    # what an optimizer on NVMe has had copied there already
    offloaded = f"{ENGINE_TAG}/offloaded_tensors/rank{rank:02d}/"
    names += [name for name in files_of(beside) if name.startswith(offloaded)]
    records: dict[str, FileRecord] = {}
    problem = _attempt(lambda: records.update(record_files(beside, names)))
    return _Share(records, problem)


def _publish(beside: Path, final: Path, flight: _Flight, records: Mapping[str, FileRecord]) -> None:
    if final.exists():  # of a history that was given up
        delete_checkpoint(final)
    publish(beside, final, flight.step, records, flight.about)


def _attempt(work: Callable[[], None]) -> str | None:
    """What went wrong, in a line; None for nothing."""
    try:
        work()
    except Exception as error:  # a full disk comes as OSError, RuntimeError or SafetensorError, depending on who writes
        # nothing here may hold on to the error: with its traceback goes the open file, and only with that one its room
        return _reason(error)
    return None


def _reason(error: BaseException) -> str:
    while error.__context__ is not None:  # torch's next complaint, on closing the file, hides the first
        error = error.__context__
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
