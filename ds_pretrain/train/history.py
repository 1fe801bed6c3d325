"""What a run remembers of its rollbacks, and what it has left behind by them; reads files alone, and needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_pretrain.engine.checkpoint_files import list_checkpoints
from ds_pretrain.engine.checkpoint_list import known_state
from ds_pretrain.errors import CheckpointError
from ds_pretrain.guards import Rollback, RollbackHistory
from ds_pretrain.observe.jsonl import EVENTS_FILE, read_jsonl
from ds_pretrain.train.run_folder import CHECKPOINTS

RECOVERY = "recovery.json"


def read_history(folder: Path) -> RollbackHistory:
    """What a run remembers of its rollbacks: ``recovery.json``, or the copy in a checkpoint that knows of more.

    Args:
        folder: the run's folder.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = folder / RECOVERY
    histories = [_known(known_state(found)) for _, found in list_checkpoints(folder / CHECKPOINTS)]
    if path.exists():
        try:
            histories.append(RollbackHistory.from_json(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error}); it says which checkpoints and data are not to be used again. "
                "Restore it, or start a new run with run.name=…"
            ) from error
    return max(histories, key=lambda history: history.count, default=RollbackHistory())


def is_rejected(folder: Path, history: RollbackHistory) -> bool:
    """Whether a rollback has left a checkpoint behind; one that cannot be read is left to its checksums."""
    state = known_state(folder)
    step = state.get("step")
    return isinstance(step, int) and history.rejects(step, _known(state).count)


def unlogged(folder: Path, history: RollbackHistory) -> tuple[Rollback, ...]:
    """Rollbacks that ``events.jsonl`` does not know of, since the run was killed just then."""
    path = folder / EVENTS_FILE
    events = read_jsonl(path) if path.exists() else []
    return history.rollbacks[sum(event.get("event") == "rollback" for event in events) :]


def _known(state: Mapping[str, Any]) -> RollbackHistory:
    """The copy in a checkpoint; nothing where it is damaged, which its checksums will tell."""
    try:
        return RollbackHistory.from_json(state["recovery"])
    except (ValueError, KeyError, TypeError):
        return RollbackHistory()
