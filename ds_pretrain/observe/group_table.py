"""The parameter groups as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ds_pretrain.observe.plan_table import short

_SHOWN_PEAKS = 5


def group_table(rows: Sequence[dict[str, Any]], assumed_vocabulary: str | None = None) -> RenderableType:
    """Draws what ``group_rows`` gave.

    Args:
        rows: the groups as JSON values.
        assumed_vocabulary: size of a vocabulary that is not known yet, and where it was taken from.

    Returns:
        Something that a rich console prints.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    for heading in ("group", "layers"):
        table.add_column(heading, overflow="fold")
    for heading in ("params", "mult"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("peak lr by stage")
    table.add_column("decay", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"],
            "?" if row["layers"] is None else row["layers"],
            short(row["parameters"]),
            f"{row['multiplier']:.3g}",
            _peaks(row),
            f"{row['weight_decay']:g}",
        )
    if assumed_vocabulary is None:
        return table
    return Group(table, Text(f"vocabulary assumed: {assumed_vocabulary}"))


def _peaks(row: dict[str, Any]) -> str:
    """Rates that follow one another, equal neighbours once; of many, the first and the last."""
    stages = zip(row["peak_lrs"], row["trained_since"], strict=True)
    shown = [text for text, _ in groupby(f"{rate:.2g}" if trained else "frozen" for rate, trained in stages)]
    if len(shown) > _SHOWN_PEAKS:
        shown = [*shown[: _SHOWN_PEAKS - 2], "…", shown[-1]]
    return " ".join(shown)
