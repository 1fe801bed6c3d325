"""What the learning-rate finder found, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ds_pretrain.curriculum.lr_shapes import Shape
from ds_pretrain.observe.lr_finder_files import ShapeResult
from ds_pretrain.schedules.lr_trials import Finding

_SIGNS = {"exact": "", "at least": "≥ ", "at most": "≤ "}


def finder_table(title: str, found: Mapping[Shape, ShapeResult]) -> RenderableType:
    """A row a shape, and what to do where a finding is only a bound.

    Args:
        title: name of the run.
        found: the result of every shape.

    Returns:
        Something that a rich console prints.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    for heading in ("len", "batch", "layers", "edge", "best", "suggestion", "edge / suggestion", "trials", "loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    notes = []
    for shape, result in found.items():
        finding = result.finding
        table.add_row(
            str(shape.seq_len),
            str(shape.batch_size),
            "all" if shape.trainable_layers is None else str(shape.trainable_layers),
            f"{_SIGNS[finding.edge_bound]}{finding.edge:.3g}",
            f"{_SIGNS[finding.best_bound]}{finding.best:.3g}",
            f"{finding.suggestion:.3g}",
            f"{finding.divisor:.3g}",
            str(len(result.trials)),
            f"{min(trial.loss for trial in result.trials):.3f}",
        )
        notes += [f"warning: length {shape.seq_len}, batch {shape.batch_size}: {note}" for note in _notes(finding)]
    return Group(Text(f"{title}: learning rates found", style="bold"), table, *notes)


def _notes(finding: Finding) -> list[str]:
    notes = []
    if finding.edge_bound == "at least":
        notes.append("the highest rate tried still trains; raise lr_finder.end_lr or lr_finder.max_trials")
    if finding.edge_bound == "at most":
        notes.append("no rate trains; lower lr_finder.start_lr, raise lr_finder.trial_steps, or look at data and model")
    elif finding.best_bound == "at most" and finding.suggestion == finding.best:
        notes.append("the lowest rate tried was the best; lower lr_finder.start_lr or raise lr_finder.max_trials")
    if not finding.knows_frequencies:
        notes.append(
            "no trial learned more than how often each token occurs, so that the edge is that of getting below the "
            "first loss; raise lr_finder.trial_steps"
        )
    return notes
