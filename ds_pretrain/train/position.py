"""How far a run is, beside what the engine itself keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ds_pretrain.guards import GuardState, RollbackHistory
from ds_pretrain.schedules.plateau import PlateauState


@dataclass(frozen=True)
class Position:
    """How far a run is; what a checkpoint keeps beside the engine.

    Args:
        step: optimizer steps done.
        stage: index of the stage that the last one belonged to; its layers are what the engine trains.
        guard: what the guards remember.
        plateau: what the schedule of that type remembers.
        history: the rollbacks behind it; recovery.json tells, not the checkpoint.
        saved: whether a checkpoint holds it.
        evaluated: whether the evaluation that is due after its last step is done; a stop does not wait for it.
    """

    step: int = 0
    stage: int = 0
    guard: GuardState = GuardState()
    plateau: PlateauState = PlateauState()
    history: RollbackHistory = RollbackHistory()
    saved: bool = False
    evaluated: bool = False


def position_from(state: Mapping[str, Any]) -> Position:
    """The position that a checkpoint's state tells."""
    return Position(
        step=state["step"],
        stage=state["stage"],
        guard=GuardState.from_json(state["guard"]),
        plateau=PlateauState(**state["plateau"]),
        saved=True,
        evaluated=state.get("evaluated", True),  # older ones were never saved before
    )
