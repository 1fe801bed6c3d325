"""What the learning-rate finder found, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ds_pretrain.curriculum.lr_overlay import Shape
from ds_pretrain.observe.lr_finder_files import LengthResult
from ds_pretrain.schedules.lr_sweep import Finding

_REMEDIES = {
    "at least": "the loss had not left its minimum at the end of the sweep; raise lr_finder.end_lr",
    "at most": "the loss left its minimum before the rate had climbed; lower lr_finder.start_lr",
}


def finder_table(title: str, found: Mapping[Shape, LengthResult]) -> RenderableType:
    """A row a length, and what to do where an edge is only a bound.

    Args:
        title: name of the run.
        found: the result of every shape.

    Returns:
        Something that a rich console prints.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    for heading in ("len", "batch", "steepest", "edge", "suggestion", "the climb ended"):
        table.add_column(heading, justify="right", no_wrap=True)
    notes = []
    for (seq_len, batch_size), result in found.items():
        finding = result.finding
        table.add_row(
            str(seq_len),
            str(batch_size),
            f"{finding.steepest:.2e}",
            _edge(finding),
            f"{finding.suggestion:.2e}",
            f"{finding.climb_ending}, step {len(result.climb)}",
        )
        if finding.bound != "exact":
            notes.append(f"warning: length {seq_len}, batch {batch_size}: {_REMEDIES[finding.bound]}")
    return Group(Text(f"{title}: learning rates found", style="bold"), table, *notes)


def _edge(finding: Finding) -> str:
    sign = {"exact": "", "at least": "≥ ", "at most": "≤ "}[finding.bound]
    return f"{sign}{finding.edge:.2e}"
