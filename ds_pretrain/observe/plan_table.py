"""The plan as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

# of a stage's peak; a run that comes so near is said to reach it
_REACHED = 0.99
_LARGE = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def plan_table(document: dict[str, Any], title: str) -> RenderableType:
    """Draws what ``plan_document`` gave.

    Args:
        document: the plan as JSON values.
        title: name of the run.

    Returns:
        Something that a rich console prints.
    """
    stages = document["stages"]
    columns: dict[str, list[str]] = {
        "": [str(stage["index"]) for stage in stages],
        "step": [f"{stage['start_step']:,}" for stage in stages],
        "tokens": [short(stage["end_tokens"] - stage["start_tokens"]) for stage in stages],
        "len": [str(stage["seq_len"]) for stage in stages],
        "batch": [str(stage["batch_size"]) for stage in stages],
        "micro": [str(stage["micro_batch_size"]) for stage in stages],
        "acc": [str(stage["grad_accum_steps"]) for stage in stages],
        "peak lr": [f"{stage['peak_lr']:.3g}" for stage in stages],
        "max lr": [f"{stage['max_lr']:.3g}" for stage in stages],
        "mult": [f"{stage['lr_multiplier']:.3g}" for stage in stages],
        "rule": [f"{stage['formula_multiplier']:.3g}" for stage in stages],
        "warm": [f"{stage['warmup_steps']:,}" for stage in stages],
        "clip": [f"{stage['grad_clip']:g}" for stage in stages],
        "top": ["all" if (top := stage["trainable_layers"]) is None else str(top) for stage in stages],
    }
    names = list(stages[0].get("data_shares", ()))
    if names:
        columns["mix"] = ["/".join(f"{share:.2g}" for share in stage["data_shares"].values()) for stage in stages]
    # columns that say nothing are left out
    reached = all(stage["max_lr"] >= _REACHED * stage["peak_lr"] for stage in stages)
    if reached:
        del columns["max lr"]
    if all(stage["trainable_layers"] is None for stage in stages):
        del columns["top"]
    # twelve columns and a space more between them are what a terminal of 80 holds
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1 if len(columns) <= 12 else 0), collapse_padding=True, pad_edge=False
    )
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    title_line = Text(f"{title}: {_ranks(document['world_size'])}, {_precision(document)}", style="bold")
    total = Text(
        f"{document['total_steps']:,} steps, {document['total_tokens']:,} tokens\n"
        "rule: sqrt(batch / 32) x min(2048 / len, 4)"
        + ("" if reached else "\nmax lr: the highest rate that a step of the stage has")
        + (f"\nmix: {' / '.join(names)}, shares of the tokens" if names else "")
        + ("\ntop: layers below the head that are trained; the others are frozen" if "top" in columns else "")
        + _blocks(document)
    )
    return Group(title_line, table, total)


def short(number: float) -> str:
    """A large number in three digits, e.g. 1.64B."""
    for unit, letter in _LARGE:
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return f"{number:g}"


def _blocks(document: dict[str, Any]) -> str:
    """In mode mask the columns do not multiply without being told what they count."""
    ranks = document["data_parallel_size"]
    in_blocks = any(
        stage["batch_size"] != ranks * stage["micro_batch_size"] * stage["grad_accum_steps"]
        for stage in document["stages"]
    )
    return "\nbatch counts blocks of len tokens; micro counts rows, which hold several" if in_blocks else ""


def _ranks(world_size: int) -> str:
    return f"{world_size} rank" if world_size == 1 else f"{world_size} ranks"


def _precision(document: dict[str, Any]) -> str:
    assumed = " (assumed)" if "precision" in document["assumed"] else ""
    return f"{document['precision']}{assumed}"
