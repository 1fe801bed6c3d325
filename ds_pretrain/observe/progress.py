"""How far a run is: one live line on a terminal, and a plain line now and then anywhere else.

Both say the same things and cost a step next to nothing: until the next line is due, a step leaves its record
and a comparison of two clock values behind. Speed and time left come from the tokens and the time between
shown lines, smoothed over about half a minute, so that evaluations and saves count as well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import SupportsFloat, SupportsInt, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

TERMINAL_SECONDS = 0.25
PLAIN_SECONDS = 10.0
SMOOTHING_SECONDS = 30.0


class ProgressReporter:
    """Shows the progress of one run; used by rank 0 alone.

    Args:
        total_tokens: tokens of the whole run.
        total_steps: optimizer steps of the whole run.
        num_stages: stages of the plan.
        run_dir: the run's folder, shown as given.
        console: where to show it; standard output unless given.
        clock: seconds, from any origin.
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
        self._total_tokens = total_tokens
        self._total_steps = total_steps
        self._num_stages = num_stages
        self._run_dir = run_dir
        self._console = console or Console()
        self._clock = clock
        self._interval = TERMINAL_SECONDS if self._console.is_interactive else PLAIN_SECONDS
        self._due = -math.inf
        self._stage: object = None
        self._record: Mapping[str, object] | None = None
        self._shown_step: object = None
        self._rate: float | None = None
        self._rate_time = 0.0
        self._rate_tokens = 0
        self._bar: Progress | None = None
        if self._console.is_interactive:
            text = Column(no_wrap=True, overflow="ellipsis")
            self._bar = Progress(
                BarColumn(bar_width=12),
                TextColumn("{task.description}", markup=False, table_column=text),
                console=self._console,
                auto_refresh=False,
            )
            self._task = self._bar.add_task("starting", total=total_tokens)

    def start(self, tokens: int) -> None:
        """Begin to show, and to measure the speed.

        Args:
            tokens: tokens already trained on, more than 0 in a run that is continued.
        """
        self._rate_time, self._rate_tokens = self._clock(), tokens
        if self._bar is not None:
            self._bar.start()
            self._bar.update(self._task, completed=tokens, refresh=True)
        else:
            self.message(
                f"{self._run_dir}: {self._total_steps} steps, {_short(self._total_tokens)} tokens, "
                f"{self._num_stages} stage(s)" + (f", going on from {_short(tokens)} tokens" if tokens else "")
            )

    def step(self, record: Mapping[str, object]) -> None:
        """Take a finished step; show it if a line is due or a stage has begun.

        Args:
            record: a step's line of ``metrics.jsonl``; ``stage`` counts from 0 there, from 1 here.
        """
        self._record = record
        now = self._clock()
        if now >= self._due or record["stage"] != self._stage:
            self._show(record, now)

    def evaluation(self, record: Mapping[str, object]) -> None:
        """Show a validation.

        Args:
            record: a validation line of ``metrics.jsonl``.
        """
        source = f" on {record['source']}" if record.get("source") else ""
        self.message(
            f"step {record['step']}/{self._total_steps} · validation{source} at {record['seq_len']} tokens: "
            f"loss {_decimal(record['val_loss'], 3)} · perplexity {_decimal(record.get('val_perplexity'), 1)}"
        )

    def message(self, text: str) -> None:
        """Print a line of its own, above the live line where there is one.

        Args:
            text: the line, shown as it is.
        """
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Show the last step, unless it is shown already, and leave the terminal as it was."""
        if self._record is not None and self._record["step"] != self._shown_step:
            self._show(self._record, self._clock())
        if self._bar is not None:
            self._bar.stop()

    def _show(self, record: Mapping[str, object], now: float) -> None:
        tokens = int(cast(SupportsInt, record["tokens"]))
        self._measure(tokens, now)
        self._due = now + self._interval
        self._stage, self._shown_step = record["stage"], record["step"]
        parts = [
            f"stage {int(cast(SupportsInt, record['stage'])) + 1}/{self._num_stages}",
            f"len {record['seq_len']}",
            f"loss {_decimal(record.get('loss'), 3)}",
            f"lr {_scientific(record.get('lr'))}",
            f"{_short(self._rate) if self._rate else '-'} tok/s",
            f"{_duration((self._total_tokens - tokens) / self._rate) if self._rate else '--:--'} left",
        ]
        if self._bar is not None:
            line = " · ".join([*parts, str(self._run_dir)])
            self._bar.update(self._task, completed=tokens, description=line, refresh=True)
        else:
            self.message(" · ".join([f"step {record['step']}/{self._total_steps}", *parts]))

    def _measure(self, tokens: int, now: float) -> None:
        seconds, done = now - self._rate_time, tokens - self._rate_tokens
        self._rate_time, self._rate_tokens = now, tokens
        if seconds <= 0 or done <= 0:  # a rollback goes back; it says nothing about speed
            return
        new = 1.0 if self._rate is None else 1.0 - math.exp(-seconds / SMOOTHING_SECONDS)
        self._rate = (1.0 - new) * (self._rate or 0.0) + new * done / seconds


def _short(number: float) -> str:
    """A count with three digits and a suffix: 950, 12.3k, 1.64M."""
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            value = number / size
            decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{decimals}f}{suffix}"
    return f"{number:.0f}"


def _decimal(value: object, digits: int) -> str:
    return "-" if value is None else f"{float(cast(SupportsFloat, value)):.{digits}f}"


def _scientific(value: object) -> str:
    """Two digits and a bare exponent: 1.2e-3."""
    if value is None:
        return "-"
    mantissa, exponent = f"{float(cast(SupportsFloat, value)):.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _duration(seconds: float) -> str:
    """mm:ss, or h:mm:ss from one hour on."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
