"""The seam between training and whatever keeps its numbers.

A tracker takes three calls: a metrics record, an event record, and the end. Training must outlive its
trackers, so one that can fail for reasons of its own (a network, an account) is wrapped in a ``SafeTracker``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Keeps the records of one run; called by rank 0 alone."""

    def log_metrics(self, record: Mapping[str, object]) -> None:
        """Take one line of ``metrics.jsonl``.

        Args:
            record: the line of a step, or a line of validation, which is the one that has ``val_loss``.
        """

    def log_event(self, record: Mapping[str, object]) -> None:
        """Take one line of ``events.jsonl``.

        Args:
            record: at least ``event`` (its name), ``step`` and ``tokens``.
        """

    def close(self, exit_code: int) -> None:
        """Finish; no call follows.

        Args:
            exit_code: 0 where the run ended well or was stopped on request.
        """


class SafeTracker:
    """Passes everything on to a tracker until that fails; then warns once and drops it.

    Args:
        name: what the warning calls the tracker, e.g. ``W&B``.
        tracker: the tracker that may fail.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker: Tracker | None = tracker

    def log_metrics(self, record: Mapping[str, object]) -> None:
        if self._tracker is not None:
            try:
                self._tracker.log_metrics(record)
            except Exception as error:
                self._drop(error)

    def log_event(self, record: Mapping[str, object]) -> None:
        if self._tracker is not None:
            try:
                self._tracker.log_event(record)
            except Exception as error:
                self._drop(error)

    def close(self, exit_code: int) -> None:
        if self._tracker is not None:
            try:
                self._tracker.close(exit_code)
            except Exception as error:
                self._drop(error)

    def _drop(self, error: Exception) -> None:
        self._tracker = None
        warn_dropped(self._name, error)


class TrackerGroup:
    """Several trackers as one; each gets every call, in the order given.

    Args:
        trackers: the trackers; none of them may raise (see ``SafeTracker``).
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def log_metrics(self, record: Mapping[str, object]) -> None:
        for tracker in self._trackers:
            tracker.log_metrics(record)

    def log_event(self, record: Mapping[str, object]) -> None:
        for tracker in self._trackers:
            tracker.log_event(record)

    def close(self, exit_code: int) -> None:
        for tracker in self._trackers:
            tracker.close(exit_code)


def warn_dropped(name: str, error: Exception) -> None:
    """Say that a tracker is used no more, and why.

    Args:
        name: what the warning calls the tracker.
        error: what it raised.
    """
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    logger.warning("%s failed and is dropped; training goes on without it (%s)", name, reason)
