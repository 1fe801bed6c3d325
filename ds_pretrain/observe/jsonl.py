"""``metrics.jsonl`` and ``events.jsonl``: one JSON object a line, each line written whole and at once.

Every line goes to the file in one unbuffered write, so a killed run leaves whole lines and at most one torn
one at the end, which is dropped when the file is next opened or cut. A write that fails (a full disk) is
taken back, reported, and forgotten: the run is worth more than its log. Numbers keep every bit (``repr`` of
a float); JSON has no NaN or infinity, so those become null.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ds_pretrain.errors import UserError

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"

STEP_KEYS = (
    "step",
    "tokens",
    "stage",
    "seq_len",
    "batch_size",
    "micro_batch_size",
    "grad_accum_steps",
    "lr",
    "lr_groups",
    "momentum",
    "loss",
    "loss_ratio",
    "grad_norm",
    "grad_clip",
    "loss_scale",
    "skipped",
    "tokens_per_second",
    "mfu",
    "step_seconds",
    "data_seconds",
    "epoch",
    "epochs",
)
VALIDATION_KEYS = ("step", "tokens", "seq_len", "val_loss", "val_perplexity", "source")
EVENT_KEYS = ("event", "step", "tokens", "time")


class JsonlTracker:
    """Appends to ``metrics.jsonl`` and ``events.jsonl`` in a run's folder.

    Never raises for a file system that fails; it warns instead. On resume, ``cut_after`` comes first: it
    replaces the file, and a tracker that is already open would go on writing to the one replaced.

    Args:
        run_dir: the run's folder; made if it does not exist.
    """

    def __init__(self, run_dir: Path) -> None:
        self._metrics = _LineFile(run_dir / METRICS_FILE)
        self._events = _LineFile(run_dir / EVENTS_FILE)

    def log_metrics(self, record: Mapping[str, object]) -> None:
        keys = VALIDATION_KEYS if "val_loss" in record else STEP_KEYS
        self._metrics.append(_ordered(record, keys))

    def log_event(self, record: Mapping[str, object]) -> None:
        """Append an event, with ``time`` (ISO 8601, UTC) unless the record has its own."""
        time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self._events.append(_ordered({"time": time, **record}, EVENT_KEYS))

    def close(self, exit_code: int) -> None:
        self._metrics.close()
        self._events.close()


def cut_after(path: Path, step: int, redone: tuple[str, ...] = (), rollbacks: int = 0) -> None:
    """Drop the lines of a metrics or events file that lie after a step, and whatever is not a whole line.

    The new content is written beside, synced and renamed, so a crash leaves either the old file or the new.

    Args:
        path: the file; one that does not exist is left so.
        step: the last step that stays. Lines without a step stay too.
        redone: what a run which goes on from there logs again at this very step: events, or records with such a key;
            they go as well.
        rollbacks: how many the run has behind it; what was written before the last of them stays as it is.
    """
    if not path.exists():
        return
    beside = path.with_name(path.name + ".tmp")
    torn = 0
    behind = _lines_before_rollback(path, rollbacks)
    with beside.open("wb") as target:
        for number, (line, record) in enumerate(_lines(path)):
            if record is None:
                torn += 1
                continue
            line_step = record.get("step")
            again = line_step == step and not {record.get("event"), *record}.isdisjoint(redone)
            stays = not isinstance(line_step, int) or line_step <= step
            if number < behind or (stays and not again):
                target.write(line)
        target.flush()
        os.fsync(target.fileno())
    beside.replace(path)
    _sync_folder(path.parent)
    if torn:
        logger.warning("%s: dropped %d torn line(s)", path, torn)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines; a torn last line is passed over.

    Args:
        path: the file.

    Returns:
        The records in the order of the file. After a rollback a step may stand twice; the later one counts.

    Raises:
        UserError: there is no such file, or a line before the last is not a JSON object.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; give the folder or file of a run that has started")
    records: list[dict[str, object]] = []
    broken: int | None = None
    for number, (_, record) in enumerate(_lines(path), start=1):
        if broken is not None:
            raise UserError(f"{path}, line {broken}: not a JSON object; mend or delete the line")
        if record is None:
            broken = number
        else:
            records.append(record)
    return records


def _lines_before_rollback(path: Path, rollbacks: int) -> int:
    """How many lines the last rollback left behind: up to the event, or up to a step that does not go on."""
    ends: list[int] = []
    last_step, number = 0, -1
    for number, (_, record) in enumerate(_lines(path)):
        if record is None:
            continue
        if record.get("event") == "rollback":
            ends.append(number + 1)
        step = record.get("step")
        if "loss" in record and "event" not in record and isinstance(step, int):
            if step <= last_step:
                ends.append(number)
            last_step = step
    if not rollbacks:
        return 0
    # a run killed right after a rollback has not written a line since
    return number + 1 if len(ends) < rollbacks else ends[-1]


class _LineFile:
    """An append-only file that never keeps part of a line, and never raises ``OSError``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lost = 0
        self._fd: int | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self._drop_torn_end(self._fd)
        except OSError as error:
            self._report(error)

    def append(self, record: Mapping[str, object]) -> None:
        if self._fd is None:
            return
        line = (json.dumps(_finite(record), allow_nan=False) + "\n").encode()
        try:
            size = os.fstat(self._fd).st_size
            try:
                written = os.write(self._fd, line)
                if written < len(line):
                    # A second write says why the first fell short, or completes it.
                    os.write(self._fd, line[written:])
            except OSError:
                with suppress(OSError):  # part of a line would spoil the next one
                    os.ftruncate(self._fd, size)
                raise
        except OSError as error:
            self._lost += 1
            if self._lost == 1:
                self._report(error)
            return
        if self._lost:
            logger.warning("%s: writing works again; %d line(s) are lost", self._path, self._lost)
            self._lost = 0

    def close(self) -> None:
        if self._lost:
            logger.error("%s: %d line(s) at the end are lost", self._path, self._lost)
        if self._fd is not None:
            with suppress(OSError):
                os.close(self._fd)
            self._fd = None

    def _report(self, error: OSError) -> None:
        logger.error("%s cannot be written (%s); TRAINING GOES ON WITHOUT IT", self._path, error)

    @staticmethod
    def _drop_torn_end(fd: int) -> None:
        end = size = os.fstat(fd).st_size
        while end > 0:
            start = max(0, end - 65536)
            newline = os.pread(fd, end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            os.ftruncate(fd, end)


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, object] | None]]:
    """Each line with its record, or with None where it is not a whole JSON object."""
    with path.open("rb") as source:
        for line in source:
            record: object = None
            if line.endswith(b"\n"):
                with suppress(ValueError, RecursionError):
                    record = json.loads(line)
            yield line, record if isinstance(record, dict) else None


def _ordered(record: Mapping[str, object], keys: tuple[str, ...]) -> dict[str, object]:
    """The record with the known keys first, in their order, and the others after them in their own."""
    known = {key: record[key] for key in keys if key in record}
    return {**known, **record}


def _finite(value: object) -> object:
    """The value with every NaN and infinity, at any depth, replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
