"""What a run shows while it trains: one line with a bar on a terminal, else a plain line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_REFRESH_SECONDS = 0.25
_PLAIN_SECONDS = 10.0


class ProgressReporter:
    """Reports steps on rank 0; costs a comparison of clocks where nothing is due.

    Args:
        total_tokens: length of the run.
        total_steps: length of the run.
        num_stages: stages of the plan.
        run_dir: the run's folder, shown behind the line.
        console: where to print; standard output unless given.
        clock: seconds that only go up.
    """

    def __init__(
        self,
        total_tokens: int,
        total_steps: int,
        num_stages: int,
        run_dir: Path,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(highlight=False)
        self._clock = clock
        self._total_tokens = total_tokens
        self._total_steps = total_steps
        self._num_stages = num_stages
        self._run_dir = run_dir
        self._bar: Progress | None = None
        self._interval = _REFRESH_SECONDS if self._console.is_terminal else _PLAIN_SECONDS
        self._due = 0.0
        self._began = 0.0
        self._first_tokens = 0
        self._last: Mapping[str, Any] | None = None

    def start(self, tokens: int) -> None:
        """Begins to show; ``tokens`` have been trained on before."""
        self._began, self._first_tokens = self._clock(), tokens
        self._due = self._began + self._interval
        if self._console.is_terminal:
            # drawn by our own clock: a refreshing thread would take time from the step
            self._bar = Progress(
                BarColumn(bar_width=24), TextColumn("{task.description}"), console=self._console, auto_refresh=False
            )
            self._bar.add_task("starting", total=self._total_tokens, completed=tokens)
            self._bar.start()

    def step(self, record: Mapping[str, Any]) -> None:
        """Takes the metrics line of a step."""
        self._last = record
        if self._clock() >= self._due:
            self._show()

    def message(self, text: str) -> None:
        """Prints a line that stays."""
        if self._bar is None and self._last is not None:
            self._show()
        self._console.print(text, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Shows the last step and stops."""
        if self._last is not None:
            self._show()
        if self._bar is not None:
            self._bar.stop()

    def _show(self) -> None:
        assert self._last is not None
        now = self._clock()
        self._due = now + self._interval
        text = self._line(self._last, now)
        if self._bar is None:
            self._console.print(text, soft_wrap=True, markup=False)
            self._last = None
        else:
            task = self._bar.task_ids[0]
            self._bar.update(task, description=text, completed=int(self._last["tokens"]), refresh=True)

    def _line(self, record: Mapping[str, Any], now: float) -> str:
        done = int(record["tokens"]) - self._first_tokens
        left = (self._total_tokens - int(record["tokens"])) * (now - self._began) / max(1, done)
        return " · ".join(
            (
                f"stage {record['stage'] + 1}/{self._num_stages}",
                f"step {record['step']:,}/{self._total_steps:,}",
                f"len {record['seq_len']}",
                f"loss {record['loss']:.4f}",
                f"lr {record['lr']:.2e}",
                f"{record['tokens_per_second']:,.0f} tok/s",
                f"{_clock_time(left)} left",
                str(self._run_dir),
            )
        )


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
