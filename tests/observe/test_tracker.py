"""Trackers: several as one, and one that fails is dropped with a single warning."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ds_pretrain.observe.tracker import SafeTracker, TrackerGroup


class ListTracker:
    """Keeps its calls; raises from the given call on."""

    def __init__(self, fails_at: str = "") -> None:
        self.calls: list[object] = []
        self._fails_at = fails_at

    def _take(self, name: str, value: object) -> None:
        self.calls.append((name, value))
        if name == self._fails_at:
            raise ConnectionError("no route")

    def log_metrics(self, record: Mapping[str, object]) -> None:
        self._take("metrics", record)

    def log_event(self, record: Mapping[str, object]) -> None:
        self._take("event", record)

    def close(self, exit_code: int) -> None:
        self._take("close", exit_code)


ALL = [("metrics", {"step": 1}), ("event", {"event": "spike"}), ("metrics", {"step": 2}), ("close", 3)]


def drive(tracker: SafeTracker | TrackerGroup) -> None:
    tracker.log_metrics({"step": 1})
    tracker.log_event({"event": "spike"})
    tracker.log_metrics({"step": 2})
    tracker.close(3)


def test_a_group_hands_every_call_to_every_tracker() -> None:
    first, second = ListTracker(), ListTracker()
    drive(TrackerGroup([first, second]))
    assert first.calls == second.calls == ALL


@pytest.mark.parametrize(("fails_at", "calls_made"), [("metrics", 1), ("event", 2), ("close", 4)])
def test_a_failing_tracker_is_dropped_with_one_warning_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture, fails_at: str, calls_made: int
) -> None:
    failing, healthy = ListTracker(fails_at), ListTracker()
    drive(TrackerGroup([SafeTracker("W&B", failing), healthy]))

    assert failing.calls == ALL[:calls_made]
    assert healthy.calls == ALL
    assert [record.getMessage() for record in caplog.records] == [
        "W&B failed and is dropped; training goes on without it (ConnectionError: no route)"
    ]


def test_a_healthy_tracker_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    tracker = ListTracker()
    drive(SafeTracker("W&B", tracker))
    assert tracker.calls == ALL
    assert caplog.records == []
