"""The plan as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_LARGE = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def plan_table(document: dict[str, Any], title: str) -> RenderableType:
    """Draws what ``plan_document`` gave.

    Args:
        document: the plan as JSON values.
        title: name of the run.

    Returns:
        Something that a rich console prints.
    """
    table = Table(title=f"{title}: {_ranks(document['world_size'])}, {_precision(document)}", title_justify="left")
    table.add_column("stage", justify="right")
    for heading in ("steps", "tokens", "seq_len", "batch = ranks x micro x accum", "tokens/step"):
        table.add_column(heading, justify="right")
    for heading in ("peak lr", "multiplier", "formula", "warmup", "clip"):
        table.add_column(heading, justify="right")
    for stage in document["stages"]:
        table.add_row(
            str(stage["index"]),
            f"{stage['start_step']:,} to {stage['end_step']:,}",
            f"{short(stage['start_tokens'])} to {short(stage['end_tokens'])}",
            f"{stage['seq_len']:,}",
            f"{stage['batch_size']:,} = {document['data_parallel_size']} x {stage['micro_batch_size']} x "
            f"{stage['grad_accum_steps']}",
            f"{stage['batch_size'] * stage['seq_len']:,}",
            f"{stage['peak_lr']:.3g}",
            f"{stage['lr_multiplier']:.3g}",
            f"{stage['formula_multiplier']:.3g}",
            f"{stage['warmup_steps']:,}",
            f"{stage['grad_clip']:g}",
        )
    total = Text(f"{document['total_steps']:,} steps, {document['total_tokens']:,} tokens")
    return Group(table, total)


def short(number: float) -> str:
    """A large number in three digits, e.g. 1.64B."""
    for unit, letter in _LARGE:
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return f"{number:g}"


def _ranks(world_size: int) -> str:
    return f"{world_size} rank" if world_size == 1 else f"{world_size} ranks"


def _precision(document: dict[str, Any]) -> str:
    assumed = " (assumed)" if "precision" in document["assumed"] else ""
    return f"{document['precision']}{assumed}"
