"""Progress: the text of a line, and when one is shown; the clock is the test's own."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from ds_pretrain.observe.progress import ProgressReporter, _duration, _scientific, _short


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Screen:
    """A reporter of 400 steps of 4,096 tokens in 4 stages, with what it has shown."""

    def __init__(self, terminal: bool = False, width: int = 160) -> None:
        self.out = io.StringIO()
        self.clock = Clock()
        console = Console(
            file=self.out, force_terminal=terminal, force_interactive=terminal, width=width, color_system=None
        )
        self.reporter = ProgressReporter(400 * 4096, 400, 4, Path("runs/quickstart"), console, self.clock)

    def step(self, step: int, seconds: float, stage: int = 0, loss: float | None = 5.1234) -> None:
        """A step that took some seconds."""
        self.clock.now += seconds
        self.reporter.step(
            {
                "step": step,
                "tokens": step * 4096,
                "stage": stage,
                "seq_len": 64 << stage,
                "loss": loss,
                "lr": 0.0012,
            }
        )

    @property
    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()


def test_a_plain_line_comes_at_a_stage_start_and_every_ten_seconds_and_at_the_end() -> None:
    screen = Screen()
    screen.reporter.start(0)
    for step in range(1, 36):  # one second each: 10 s after the line of step 1 is step 11, and so on
        screen.step(step, 1.0, stage=0 if step < 25 else 1)
    screen.reporter.close()

    assert screen.lines[0] == "runs/quickstart: 400 steps, 1.64M tokens, 4 stage(s)"
    assert [line.split(" · ")[0] for line in screen.lines[1:]] == [
        "step 1/400",
        "step 11/400",
        "step 21/400",
        "step 25/400",  # stage 2 starts
        "step 35/400",  # 10 s after that, and the end: shown once
    ]
    assert screen.lines[-1] == ("step 35/400 · stage 2/4 · len 128 · loss 5.123 · lr 1.2e-3 · 4.10k tok/s · 06:05 left")


def test_the_last_step_is_shown_at_the_end_if_it_was_not_due() -> None:
    screen = Screen()
    screen.reporter.start(0)
    screen.step(1, 1.0)
    screen.step(2, 1.0)
    assert len(screen.lines) == 2
    screen.reporter.close()
    assert screen.lines[-1].startswith("step 2/400")


def test_a_continued_run_measures_only_what_it_did_itself() -> None:
    screen = Screen()
    screen.reporter.start(200 * 4096)
    screen.step(201, 2.0, loss=None)
    assert screen.lines == [
        "runs/quickstart: 400 steps, 1.64M tokens, 4 stage(s), going on from 819k tokens",
        "step 201/400 · stage 1/4 · len 64 · loss - · lr 1.2e-3 · 2.05k tok/s · 06:38 left",
    ]


def test_the_speed_follows_a_change_and_a_rollback_says_nothing_about_it() -> None:
    screen = Screen()
    screen.reporter.start(0)
    screen.step(10, 10.0)  # 1 step a second
    screen.step(8, 10.0)  # back
    screen.step(48, 10.0)  # 4 steps a second for 10 s: 1 + 3 x (1 - exp(-10/30)) = 1.850 steps a second
    assert [line.split(" · ")[5] for line in screen.lines[1:]] == ["4.10k tok/s", "4.10k tok/s", "7.58k tok/s"]
    assert screen.lines[-1].endswith("03:10 left")  # 352 steps left / 1.850


def test_a_validation_and_a_message_stand_as_they_are() -> None:
    screen = Screen(width=40)
    record = {"step": 0, "tokens": 0, "seq_len": 512, "val_loss": 8.31, "val_perplexity": 4064.3, "source": None}
    screen.reporter.evaluation(record)
    screen.reporter.evaluation({**record, "source": "books", "val_loss": None, "val_perplexity": None})
    screen.reporter.message("see [bold] in /a/very/long/path/that/is/wider/than/the/console")
    assert screen.lines == [
        "step 0/400 · validation at 512 tokens: loss 8.310 · perplexity 4064.3",
        "step 0/400 · validation on books at 512 tokens: loss - · perplexity -",
        "see [bold] in /a/very/long/path/that/is/wider/than/the/console",
    ]


def test_a_terminal_has_one_line_that_is_drawn_four_times_a_second() -> None:
    screen = Screen(terminal=True)
    screen.reporter.start(0)
    for step in range(1, 101):  # 10 seconds
        screen.step(step, 0.1)
    drawn = screen.out.getvalue().count("stage 1/4")
    assert 20 <= drawn <= 41  # 40 at most, and the first

    screen.reporter.message("checkpoint saved")
    screen.reporter.close()
    text = screen.out.getvalue()
    assert "stage 1/4 · len 64 · loss 5.123 · lr 1.2e-3 · 41.0k tok/s · 00:30 left · runs/quickstart" in text
    assert "checkpoint saved" in text
    assert "step 1/400" not in text


def test_a_narrow_terminal_keeps_to_one_line() -> None:
    screen = Screen(terminal=True, width=60)
    screen.reporter.start(0)
    screen.step(1, 1.0)
    screen.reporter.close()
    last = screen.out.getvalue().split("stage 1/4")[-1]
    assert "…" in last.splitlines()[0]
    assert "left" not in last


def test_numbers_are_short() -> None:
    assert [_short(number) for number in (0, 950, 999.6, 1234, 12345, 99960, 123456, 1.64e6, 2.5e9, 1e12)] == [
        "0",
        "950",
        "1.00k",
        "1.23k",
        "12.3k",
        "100k",
        "123k",
        "1.64M",
        "2.50G",
        "1.00T",
    ]
    assert [_scientific(lr) for lr in (1.2e-3, 0.0, 6e-4, 1.0, None)] == ["1.2e-3", "0.0e0", "6.0e-4", "1.0e0", "-"]
    assert [_duration(seconds) for seconds in (0, 59.6, 192, 3599.4, 3600, 90061)] == [
        "00:00",
        "01:00",
        "03:12",
        "59:59",
        "1:00:00",
        "25:01:01",
    ]
