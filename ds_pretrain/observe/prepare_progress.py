"""What preparing a corpus shows on a terminal: a bar over the bytes, tokens per second, time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ds_pretrain.data.prepare import PrepareProgress
from ds_pretrain.data.prepare import Progress as Report


@contextmanager
def prepare_progress() -> Iterator[Report | None]:
    """Gives ``prepare`` something to report to; None where there is no terminal to show it on."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("reading")

        def report(progress: PrepareProgress) -> None:
            seconds = bar.tasks[0].elapsed or 0.0
            speed = f", {progress.tokens / seconds:,.0f} tokens/s" if progress.tokens and seconds else ""
            bar.update(
                task,
                description=f"{progress.phase}{speed}",
                completed=progress.bytes_done,
                total=progress.bytes_total,
            )

        yield report
