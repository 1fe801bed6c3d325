"""The table of ``ds-pretrain checkpoints``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from ds_pretrain.engine.checkpoint_list import CheckpointEntry

_UNITS = ("B", "kB", "MB", "GB", "TB")


def checkpoint_table(entries: Sequence[CheckpointEntry]) -> Table:
    """Steps, tokens, sizes and condition of a run's checkpoints.

    Args:
        entries: oldest first.
    """
    table = Table(title="checkpoints", title_justify="left")
    for column in ("step", "tokens", "size", "ranks", "val loss"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("condition")
    for entry in entries:
        table.add_row(
            f"{entry.step:,}",
            _number(entry.tokens),
            _size(entry.size),
            _number(entry.world_size),
            "" if entry.val_loss is None else f"{entry.val_loss:.4f}",
            condition(entry),
        )
    return table


def checkpoint_document(entries: Sequence[CheckpointEntry]) -> list[dict[str, Any]]:
    """The same as plain JSON values."""
    return [asdict(entry) | {"folder": str(entry.folder), "whole": not entry.damage} for entry in entries]


def condition(entry: CheckpointEntry) -> str:
    """Whether a checkpoint is whole, and what else is to be said of it."""
    words = ["damaged" if entry.damage else "whole"]
    if entry.aside is not None:
        words.append(f"set aside as {entry.aside}")
    if entry.best:
        words.append("best")
    return ", ".join(words)


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _size(size: float) -> str:
    for unit in _UNITS[:-1]:
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} {_UNITS[-1]}"
