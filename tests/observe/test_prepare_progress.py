from __future__ import annotations

import pytest

from ds_pretrain.data.prepare import PrepareProgress
from ds_pretrain.observe import prepare_progress as shown
from ds_pretrain.observe.prepare_progress import Speed, prepare_progress


def test_speed_and_time_left_count_from_where_this_run_began() -> None:
    speed = Speed()
    assert speed.measure(PrepareProgress("tokenizer", 0, 1000, 0), 0.0) is None
    assert speed.measure(PrepareProgress("tokenizer", 100, 1000, 0), 20.0) == (0.0, 180.0)
    assert speed.measure(PrepareProgress("encode", 500, 1000, 4000), 50.0) is None
    assert speed.measure(PrepareProgress("encode", 600, 1000, 4800), 54.0) == (200.0, 16.0)


def test_a_log_gets_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 0.0, 30.0, 70.0, 80.0])
    monkeypatch.setattr(shown.time, "monotonic", lambda: next(clock))
    with prepare_progress() as report:
        for done in range(4):
            report(PrepareProgress("encode", 100 * done, 1000, 7_000 * done))
    assert capsys.readouterr().err == "encoding: 14,000 tokens, 200 tokens/s, 20.0%, 5 minutes left\n"


def test_reading_for_a_tokenizer_is_told_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 0.0, 70.0, 140.0])
    monkeypatch.setattr(shown.time, "monotonic", lambda: next(clock))
    with prepare_progress() as report:
        for done in (0, 500, 1000):
            report(PrepareProgress("tokenizer", done, 1000, 0))
    assert capsys.readouterr().err == (
        "reading for the tokenizer, 50.0%, 1 minutes left\ntraining the tokenizer, 100.0%, 0 minutes left\n"
    )
