"""What stands in a run's folder of checkpoints: how far each one is, how large, and whether it is whole.

Needs neither torch nor deepspeed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ds_pretrain.engine.checkpoint_files import STATE, damage, files_of, list_checkpoints, list_set_aside
from ds_pretrain.errors import CheckpointError


@dataclass(frozen=True)
class CheckpointEntry:
    """A checkpoint as a user sees it.

    Args:
        step: optimizer steps done.
        folder: where it stands.
        tokens: tokens trained on; None where it cannot be read.
        size: bytes of all its files.
        world_size: ranks that saved it; None where it cannot be read.
        val_loss: validation loss at full length, in nats; None where it was not evaluated at this step.
        damage: what is wrong with its files; empty where nothing is.
        best: whether no other one has a lower validation loss.
        aside: why it is not continued from: it was found ``damaged``, or ``rejected`` by a rollback; None where it is.
    """

    step: int
    folder: Path
    tokens: int | None
    size: int
    world_size: int | None
    val_loss: float | None
    damage: tuple[str, ...]
    best: bool
    aside: str | None = None


def checkpoint_entries(checkpoints: Path) -> list[CheckpointEntry]:
    """Every checkpoint, oldest first, those set aside as well; reads all files to verify their checksums."""
    found = dict(list_checkpoints(checkpoints))
    best = best_step(found)
    entries = [_entry(step, folder, best) for step, folder in found.items()]
    aside = [replace(_entry(step, folder, None), aside=why) for step, why, folder in list_set_aside(checkpoints)]
    return sorted([*entries, *aside], key=lambda entry: (entry.step, entry.aside is None))


def read_state(folder: Path) -> dict[str, Any]:
    """The run's own state in a checkpoint.

    Raises:
        CheckpointError: it cannot be read, or is not one.
    """
    path = folder / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise ValueError(f"found {type(state).__name__}, not a mapping")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a run's state ({error})") from error
    return state


def best_step(found: Mapping[int, Path]) -> int | None:
    """Which checkpoint has the lowest validation loss, the newest of equals; None where none was evaluated.

    Args:
        found: folders by step; one whose state cannot be read does not count.
    """
    losses = {step: loss for step, folder in found.items() if (loss := _val_loss(known_state(folder))) is not None}
    return min(losses, key=lambda step: (losses[step], -step), default=None)


def known_state(folder: Path) -> dict[str, Any]:
    """The run's own state in a checkpoint; empty where it cannot be read."""
    try:
        return read_state(folder)
    except CheckpointError:
        return {}


def is_good(folder: Path, sound_step: int) -> bool:
    """Whether a run may go back to a checkpoint: the guards saw nothing wrong when it was saved, and do not now.

    Args:
        folder: the checkpoint.
        sound_step: the last step after which, as is known now, nothing was wrong.
    """
    state = known_state(folder)
    step, guard = state.get("step"), state.get("guard")
    if not isinstance(step, int) or not isinstance(guard, dict):
        return False
    return guard.get("sound_step") == step <= sound_step


def last_good(found: Mapping[int, Path], sound_step: int) -> int | None:
    """The step of the checkpoint that a run would go back to now; None where there is none.

    Args:
        found: folders by step.
        sound_step: as for ``is_good``.
    """
    return max((step for step, folder in found.items() if is_good(folder, sound_step)), default=None)


def _entry(step: int, folder: Path, best: int | None) -> CheckpointEntry:
    state = known_state(folder)
    try:
        size = sum((folder / name).stat().st_size for name in files_of(folder))
    except OSError:  # it is being removed
        size = 0
    return CheckpointEntry(
        step=step,
        folder=folder,
        tokens=_whole_number(state.get("tokens")),
        size=size,
        world_size=_whole_number(state.get("world_size")),
        val_loss=_val_loss(state),
        damage=tuple(damage(folder)),
        best=step == best,
    )


def _whole_number(value: object) -> int | None:
    """A count as a damaged state may hold it."""
    return value if isinstance(value, int) else None


def _val_loss(state: Mapping[str, Any]) -> float | None:
    loss = state.get("val_loss")
    return loss if isinstance(loss, float) and math.isfinite(loss) else None  # no number is no lowest loss
