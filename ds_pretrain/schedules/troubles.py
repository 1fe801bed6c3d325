"""A trouble with a stage of a plan, and the one sentence that several of a kind make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Trouble:
    """Something wrong with a stage.

    Args:
        stage: its index.
        size: how bad it is; only the worst is described.
        text: what is wrong, after "stage 3: " or "stages 3 to 5: ".
    """

    stage: int
    size: float
    text: str


def sentence(troubles: Sequence[Trouble]) -> str:
    """One sentence on troubles of one kind, at least one of them; it describes the worst."""
    worst = max(troubles, key=lambda trouble: trouble.size)
    if len(troubles) == 1:
        return f"stage {worst.stage}: {worst.text}"
    return f"stages {_spans([trouble.stage for trouble in troubles])}, worst in stage {worst.stage}: {worst.text}"


def _spans(stages: Sequence[int]) -> str:
    """Indices as a reader says them: ``0, 3 to 5``."""
    rows: list[list[int]] = []
    for stage in stages:
        if rows and stage == rows[-1][-1] + 1:
            rows[-1].append(stage)
        else:
            rows.append([stage])
    return ", ".join(f"{row[0]} to {row[-1]}" if len(row) > 1 else str(row[0]) for row in rows)
