"""W&B, shown by real offline runs whose transaction logs are read back value by value."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from wandb_files import key_of, records, rows

from ds_pretrain.observe.wandb_tracker import (
    load_or_create_run_id,
    start_wandb,
    step_row,
    validation_row,
)

FLUSH_SECONDS = 30.0

STEP: dict[str, object] = {
    "step": 1,
    "tokens": 4096,
    "stage": 0,
    "seq_len": 64,
    "batch_size": 64,
    "micro_batch_size": 32,
    "grad_accum_steps": 2,
    "lr": 0.002,
    "lr_groups": {"decay": 0.002, "no_decay": 0.001},
    "loss": 8.3125,
    "loss_ratio": 1.0,
    "grad_norm": 2.71828,
    "grad_clip": 1.0,
    "loss_scale": None,
    "skipped": True,
    "tokens_per_second": 12345.5,
    "mfu": None,
    "step_seconds": 0.33,
    "data_seconds": 0.001,
    "epoch": 0,
    "epochs": {"mine": 0.25},
}
STEP_ROW = {
    "step": 1,
    "tokens": 4096,
    "stage": 0,
    "seq_len": 64,
    "batch_size": 64,
    "micro_batch_size": 32,
    "grad_accum_steps": 2,
    "lr": 0.002,
    "lr/decay": 0.002,
    "lr/no_decay": 0.001,
    "loss": 8.3125,
    "loss_ratio": 1.0,
    "grad_norm": 2.71828,
    "grad_clip": 1.0,
    "skipped": 1,
    "tokens_per_second": 12345.5,
    "step_seconds": 0.33,
    "data_seconds": 0.001,
    "epoch": 0,
    "epoch/mine": 0.25,
}
VALIDATION: dict[str, object] = {
    "step": 1,
    "tokens": 4096,
    "seq_len": 512,
    "val_loss": 4.5,
    "val_perplexity": 90.0171,
    "source": "books",
}
VALIDATION_ROW = {
    "step": 1,
    "tokens": 4096,
    "val_loss/books@512": 4.5,
    "val_perplexity/books@512": 90.0171,
}
CONFIG: dict[str, object] = {"optimizer": {"lr": 0.002}, "curriculum": {"stages": [{"seq_len": 64}]}}


@dataclass(frozen=True)
class Settings:
    mode: Literal["online", "offline", "disabled"] = "offline"
    project: str | None = "pretraining"
    entity: str | None = None
    group: str | None = "sweep"
    tags: tuple[str, ...] = ("short", "first")
    notes: str | None = "a note"
    name: str | None = None


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Surroundings that would lead W&B elsewhere, and two secrets that must not be written anywhere."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setenv("DATABASE_PASSWORD", "correct-horse-battery-staple")


def take_log(run_dir: Path) -> list[Any]:
    """The records of the one session of a run folder, which is moved away.

    W&B names a session's folder by the second and the id: two of one second would share it.
    """
    (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    log = list(records(path))
    latest = time.monotonic() + FLUSH_SECONDS
    # W&B's own process may still be writing when finish() has returned
    while not any(record.WhichOneof("record_type") == "exit" for record in log):
        assert time.monotonic() < latest, log
        log = list(records(path))
    (run_dir / "wandb").rename(run_dir / f"wandb-read-{len(list(run_dir.iterdir()))}")
    return log


def the_run(log: list[Any]) -> Any:
    return next(record.run for record in log if record.WhichOneof("record_type") == "run")


def log_session(run_dir: Path, *lines: Mapping[str, object], settings: Settings | None = None) -> None:
    tracker = start_wandb(settings or Settings(), run_dir, "my-run", CONFIG)
    assert tracker is not None
    for line in lines:
        tracker.log_metrics(line)
    tracker.log_event({"event": "checkpoint", "step": 1, "tokens": 4096, "path": Path("x")})
    tracker.close(0)


def test_an_offline_run_read_back_and_continued(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log_session(tmp_path, STEP, VALIDATION)
    first = take_log(tmp_path)
    # The second session goes back to tokens it has seen, as a resumed run may; W&B must take it.
    log_session(tmp_path, {**STEP, "loss": 8.25}, {**STEP, "step": 2, "tokens": 8192})
    second = take_log(tmp_path)

    assert rows(first) == [STEP_ROW, VALIDATION_ROW]
    assert rows(second) == [{**STEP_ROW, "loss": 8.25}, {**STEP_ROW, "step": 2, "tokens": 8192}]

    for log in (first, second):
        run = the_run(log)
        assert run.run_id == load_or_create_run_id(tmp_path)
        assert (run.display_name, run.project, run.run_group) == ("my-run", "pretraining", "sweep")
        assert (sorted(run.tags), run.notes) == (["first", "short"], "a note")
        config = {key_of(item): json.loads(item.value_json) for item in run.config.update}
        assert {key: value for key, value in config.items() if not key.startswith("_")} == CONFIG

        metrics = [record.metric for record in log if record.WhichOneof("record_type") == "metric"]
        assert {(metric.name, metric.glob_name, metric.step_metric) for metric in metrics} >= {
            ("tokens", "", ""),
            ("", "*", "tokens"),
        }

        summary = {
            key_of(item): json.loads(item.value_json)
            for record in log
            if record.WhichOneof("record_type") == "summary"
            for item in record.summary.update
        }
        assert json.loads(summary["event/checkpoint"])["step"] == 1
    assert "dropped" not in caplog.text

    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"0123456789abcdef0123456789abcdef01234567" not in written
    assert b"correct-horse-battery-staple" not in written


def test_a_name_of_its_own_wins(tmp_path: Path) -> None:
    log_session(tmp_path, settings=replace(Settings(), name="chosen"))
    assert the_run(take_log(tmp_path)).display_name == "chosen"


def test_disabled_creates_nothing(tmp_path: Path) -> None:
    assert start_wandb(Settings(mode="disabled"), tmp_path / "run", "my-run", CONFIG) is None
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_start_is_warned_of_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_text("a file, where the run's folder should be")
    assert start_wandb(Settings(), tmp_path / "run", "my-run", CONFIG) is None
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("W&B failed and is dropped; training goes on")


def test_the_id_stays_with_the_folder(tmp_path: Path) -> None:
    first = load_or_create_run_id(tmp_path / "a")
    assert load_or_create_run_id(tmp_path / "a") == first
    assert load_or_create_run_id(tmp_path / "b") != first
    assert (tmp_path / "a" / "wandb_id").read_text().strip() == first

    (tmp_path / "a" / "wandb_id").write_text("")  # a crash between creating and writing it
    assert load_or_create_run_id(tmp_path / "a") == load_or_create_run_id(tmp_path / "a") != ""


def test_rows_leave_out_what_is_not_a_number() -> None:
    assert step_row(STEP) == STEP_ROW
    assert validation_row(VALIDATION) == VALIDATION_ROW
    assert validation_row({"step": 0, "tokens": 0, "seq_len": 64, "val_loss": None, "source": None}) == {
        "step": 0,
        "tokens": 0,
    }
    assert validation_row({"step": 0, "tokens": 0, "seq_len": 64, "val_loss": 9.0}) == {
        "step": 0,
        "tokens": 0,
        "val_loss@64": 9.0,
    }
