"""``metrics.jsonl`` and ``events.jsonl``: what stands in them, also after kills, cuts and a full disk."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_pretrain.errors import UserError
from ds_pretrain.observe.jsonl import JsonlTracker, cut_after, read_jsonl


def metrics(folder: Path) -> Path:
    return folder / "metrics.jsonl"


def write_steps(folder: Path, *steps: int) -> None:
    tracker = JsonlTracker(folder)
    for step in steps:
        tracker.log_metrics({"step": step})
    tracker.close(0)


def test_keys_stand_in_their_documented_order_whatever_order_they_come_in(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path / "run")
    tracker.log_metrics({"extra": 1, "loss": 5.5, "lr_groups": {"b": 2.0, "a": 1.0}, "tokens": 8, "step": 1})
    tracker.log_metrics({"val_loss": 5.0, "source": "val", "seq_len": 64, "tokens": 8, "step": 1})
    tracker.log_event({"seq_len": 64, "tokens": 0, "step": 0, "event": "stage_start"})
    tracker.close(0)

    lines = metrics(tmp_path / "run").read_text().splitlines()
    assert lines == [
        '{"step": 1, "tokens": 8, "lr_groups": {"b": 2.0, "a": 1.0}, "loss": 5.5, "extra": 1}',
        '{"step": 1, "tokens": 8, "seq_len": 64, "val_loss": 5.0, "source": "val"}',
    ]
    (event,) = read_jsonl(tmp_path / "run" / "events.jsonl")
    assert list(event) == ["event", "step", "tokens", "time", "seq_len"]
    time = datetime.fromisoformat(str(event["time"]))
    assert time.utcoffset() == timedelta(0)


def test_values_that_are_not_finite_become_null_at_any_depth(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.log_metrics(
        {"step": 1, "loss": math.nan, "grad_norm": math.inf, "lr_groups": {"a": -math.inf, "b": [math.nan, 2.0]}}
    )
    tracker.close(0)
    assert read_jsonl(metrics(tmp_path)) == [
        {"step": 1, "lr_groups": {"a": None, "b": [None, 2.0]}, "loss": None, "grad_norm": None}
    ]


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.log_metrics({"step": 1})
    assert read_jsonl(metrics(tmp_path)) == [{"step": 1}]
    tracker.close(0)


@given(loss=st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_comes_back_to_the_last_bit(tmp_path_factory: pytest.TempPathFactory, loss: float) -> None:
    folder = tmp_path_factory.mktemp("run")
    tracker = JsonlTracker(folder)
    tracker.log_metrics({"loss": loss})
    tracker.close(0)
    (record,) = read_jsonl(metrics(folder))
    assert math.copysign(1.0, loss) == math.copysign(1.0, float(str(record["loss"])))
    assert record["loss"] == loss


def test_a_run_that_goes_on_appends_after_a_torn_line(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 2)
    with metrics(tmp_path).open("a") as file:
        file.write('{"step": 3, "los' + "x" * 70_000)
    write_steps(tmp_path, 3)
    assert [record["step"] for record in read_jsonl(metrics(tmp_path))] == [1, 2, 3]


def test_a_file_that_is_one_torn_line_starts_anew(tmp_path: Path) -> None:
    metrics(tmp_path).write_text('{"st')
    write_steps(tmp_path, 1)
    assert metrics(tmp_path).read_text() == '{"step": 1}\n'


def test_cutting_keeps_the_lines_up_to_the_step_byte_for_byte(tmp_path: Path) -> None:
    # A rollback from step 4 to step 2, a validation, a line of no step, and a kill in the middle of a line.
    kept = ['{"step": 1, "loss": 0.1}', '{"step": 2}', '{"step":3}', '{"note": "x"}', '{"step": 3, "val_loss": 5}']
    lines = [kept[0], kept[1], kept[2], '{"step": 4}', kept[3], kept[4], '{"step": 5}', '{"step": 3, "lo']
    metrics(tmp_path).write_text("\n".join(lines))

    cut_after(metrics(tmp_path), 3)

    assert metrics(tmp_path).read_text() == "".join(line + "\n" for line in kept)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_cutting_names_what_was_torn_and_takes_a_missing_file_as_empty(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut_after(metrics(tmp_path), 3)
    assert list(tmp_path.iterdir()) == []

    metrics(tmp_path).write_bytes(b'{"step": 1}\n\x00\x00\n{"step": 2}\n{"st')
    cut_after(metrics(tmp_path), 3)
    assert [record["step"] for record in read_jsonl(metrics(tmp_path))] == [1, 2]
    assert "dropped 2 torn line(s)" in caplog.text


def test_cutting_leaves_what_lies_before_the_last_rollback(tmp_path: Path) -> None:
    def step_lines(*steps: int) -> list[str]:
        return [json.dumps({"step": step, "loss": None if step == 6 else 1.5}) for step in steps]

    first, second = step_lines(1, 2, 3, 4, 5, 6), step_lines(3, 4, 5)
    first.insert(4, json.dumps({"step": 4, "val_loss": 2.0}))
    metrics(tmp_path).write_text("".join(line + "\n" for line in [*first, *second]))
    cut_after(metrics(tmp_path), 4, rollbacks=1)
    assert metrics(tmp_path).read_text().splitlines() == [*first, *second[:2]]
    # killed right after the rollback: nothing was written since, so nothing is too much
    metrics(tmp_path).write_text("".join(line + "\n" for line in first))
    cut_after(metrics(tmp_path), 2, rollbacks=1)
    assert metrics(tmp_path).read_text().splitlines() == first
    # went back by a single step
    metrics(tmp_path).write_text("".join(line + "\n" for line in [*first, *step_lines(6, 7)]))
    cut_after(metrics(tmp_path), 6, rollbacks=1)
    assert metrics(tmp_path).read_text().splitlines() == [*first, *step_lines(6)]


def test_cutting_leaves_the_events_that_led_to_a_rollback(tmp_path: Path) -> None:
    events = [
        {"event": "spike", "step": 5, "loss": 9.0},
        {"event": "rollback", "step": 6, "to_step": 2},
        {"event": "checkpoint", "step": 4},
        {"event": "spike", "step": 5, "loss": 9.0},
    ]
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    cut_after(path, 4, rollbacks=1)
    assert read_jsonl(path) == events[:3]


@given(steps=st.lists(st.integers(0, 20)), step=st.integers(0, 20), torn=st.integers(0, 12))
def test_cutting_is_filtering(tmp_path_factory: pytest.TempPathFactory, steps: list[int], step: int, torn: int) -> None:
    path = metrics(tmp_path_factory.mktemp("run"))
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in steps) + '{"step": 1}'[:torn])
    cut_after(path, step)
    assert [record["step"] for record in read_jsonl(path)] == [s for s in steps if s <= step]


def test_reading_passes_over_a_torn_last_line_only(tmp_path: Path) -> None:
    metrics(tmp_path).write_text('{"step": 1}\n{"ste')
    assert read_jsonl(metrics(tmp_path)) == [{"step": 1}]

    metrics(tmp_path).write_text('{"step": 1}\n[2]\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: not a JSON object"):
        read_jsonl(metrics(tmp_path))

    with pytest.raises(UserError, match="no such file"):
        read_jsonl(tmp_path / "absent.jsonl")


def test_a_full_disk_is_reported_once_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics(tmp_path).symlink_to("/dev/full")
    tracker = JsonlTracker(tmp_path)
    for step in (1, 2, 3):
        tracker.log_metrics({"step": step})
    tracker.log_event({"event": "run_end"})
    tracker.close(0)

    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "No space left on device" in messages[0]
    assert "TRAINING GOES ON" in messages[0]
    assert "3 line(s) at the end are lost" in messages[1]
    assert len(read_jsonl(tmp_path / "events.jsonl")) == 1


def test_a_line_that_fits_only_in_part_is_taken_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    tracker = JsonlTracker(tmp_path)
    try:
        tracker.log_metrics({"step": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))  # room for the first line and a half
        tracker.log_metrics({"step": 2})
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        tracker.log_metrics({"step": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
        tracker.close(0)
    assert metrics(tmp_path).read_text() == '{"step": 1}\n{"step": 3}\n'
    assert "writing works again; 1 line(s) are lost" in caplog.text


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    tracker = JsonlTracker(tmp_path / "file" / "run")
    tracker.log_metrics({"step": 1})
    tracker.close(0)
    assert len(caplog.records) == 2  # once for each of the two files
