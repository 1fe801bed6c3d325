"""The plan as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
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
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    headings = (
        "",
        "step",
        "tokens",
        "len",
        "batch",
        "micro",
        "acc",
        "peak lr",
        "mult",
        "rule",
        "warm",
        "clip",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in document["stages"]:
        table.add_row(
            str(stage["index"]),
            f"{stage['start_step']:,}",
            short(stage["end_tokens"] - stage["start_tokens"]),
            str(stage["seq_len"]),
            str(stage["batch_size"]),
            str(stage["micro_batch_size"]),
            str(stage["grad_accum_steps"]),
            f"{stage['peak_lr']:.3g}",
            f"{stage['lr_multiplier']:.3g}",
            f"{stage['formula_multiplier']:.3g}",
            f"{stage['warmup_steps']:,}",
            f"{stage['grad_clip']:g}",
        )
    title_line = Text(f"{title}: {_ranks(document['world_size'])}, {_precision(document)}", style="bold")
    total = Text(
        f"{document['total_steps']:,} steps, {document['total_tokens']:,} tokens\n"
        "rule: sqrt(batch / 32) x min(2048 / len, 4)"
    )
    return Group(title_line, table, total)


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
