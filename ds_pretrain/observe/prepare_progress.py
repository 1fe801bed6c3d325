"""What preparing a corpus shows: a bar over the bytes, tokens per second, time left; a line a minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ds_pretrain.data.prepare import PrepareProgress
from ds_pretrain.data.prepare import Progress as Report

_LOG_SECONDS = 60.0


class Speed:
    """Tokens per second and seconds left since the first report of a phase, which may follow an earlier run's work."""

    def __init__(self) -> None:
        self._start: PrepareProgress | None = None
        self._time = 0.0

    def measure(self, progress: PrepareProgress, now: float) -> tuple[float, float] | None:
        """Tokens per second, 0 where none are written, and seconds left; None while there is nothing to tell them from.

        Args:
            progress: how far the preparation is.
            now: a monotonic clock, in seconds.
        """
        if self._start is None or self._start.phase != progress.phase:
            self._start, self._time = progress, now
        tokens, read = progress.tokens - self._start.tokens, progress.bytes_done - self._start.bytes_done
        seconds = now - self._time
        if seconds <= 0 or read <= 0:
            return None
        return tokens / seconds, (progress.bytes_total - progress.bytes_done) * seconds / read


@contextmanager
def prepare_progress() -> Iterator[Report]:
    """Gives ``prepare`` something to report to: a bar on a terminal, else lines on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _log_report()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task, speed = bar.add_task("reading"), Speed()

        def report(progress: PrepareProgress) -> None:
            measured = speed.measure(progress, time.monotonic())
            bar.update(
                task,
                description=_doing(progress, measured[0] if measured else 0.0),
                completed=progress.bytes_done,
                total=progress.bytes_total,
            )

        yield report


def _doing(progress: PrepareProgress, tokens_per_second: float) -> str:
    """What goes on, in words."""
    if progress.phase == "encode":
        rate = f", {tokens_per_second:,.0f} tokens/s" if tokens_per_second else ""
        return f"encoding: {progress.tokens:,} tokens{rate}"
    return "reading for the tokenizer" if progress.bytes_done < progress.bytes_total else "training the tokenizer"


def _log_report() -> Report:
    speed, last = Speed(), time.monotonic()

    def report(progress: PrepareProgress) -> None:
        nonlocal last
        now = time.monotonic()
        measured = speed.measure(progress, now)
        if measured is not None and now - last >= _LOG_SECONDS:
            last = now
            share = 100 * progress.bytes_done / progress.bytes_total
            print(
                f"{_doing(progress, measured[0])}, {share:.1f}%, {measured[1] / 60:,.0f} minutes left",
                file=sys.stderr,
                flush=True,
            )

    return report
