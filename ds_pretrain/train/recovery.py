"""Takes a run back to its last good checkpoint, in an order in which it may be killed anywhere.

First ``recovery.json`` is replaced, then newer checkpoints are set aside, then the target is loaded. From the first of
these on, a start knows what to do: a checkpoint newer than a rollback's target, saved before the rollback, never
counts again, and every batch that led to the rollback stays left out. Checkpoints hold a copy of the history, in case
the file is lost.
"""

from __future__ import annotations

import json
from pathlib import Path

from ds_pretrain.config import Safety
from ds_pretrain.engine.checkpoint import newest_whole
from ds_pretrain.engine.checkpoint_files import list_checkpoints, replace_durably, set_aside
from ds_pretrain.engine.checkpoint_list import is_good, read_state
from ds_pretrain.engine.ranks import Ranks, on_main
from ds_pretrain.errors import CheckpointError, TrainingError
from ds_pretrain.guards import Rollback, RollbackHistory
from ds_pretrain.train.history import RECOVERY, is_rejected
from ds_pretrain.train.run_folder import CHECKPOINTS

_ADVICE = (
    "Lower optimizer.lr or the stage's lr_multiplier, lengthen its warmup, or look at the data of these steps; "
    "docs/when-a-run-goes-wrong.md has more"
)


def set_rejected_aside(checkpoints: Path, history: RollbackHistory) -> None:
    """Renames what rollbacks have left behind, so that its steps can be saved again."""
    for _, folder in list_checkpoints(checkpoints):
        if is_rejected(folder, history):
            set_aside(folder, "rejected")


def take_back(
    folder: Path,
    history: RollbackHistory,
    reason: str,
    step: int,
    sound_step: int,
    safety: Safety,
    ranks: Ranks,
) -> tuple[Path, RollbackHistory]:
    """Chooses the checkpoint to go back to and makes that lasting; the caller loads it. Every rank takes part.

    Args:
        folder: the run's folder.
        history: the rollbacks so far.
        reason: why, as a clause.
        step: steps done.
        sound_step: the last step after which the guards saw nothing wrong.
        safety: the recipe's section.
        ranks: this process among those of the run.

    Returns:
        The checkpoint to load, and the history from now on.

    Raises:
        TrainingError: on every rank, where the run may not go back once more, or has nothing to go back to.
    """
    if history.count >= safety.max_rollbacks:
        raise TrainingError(
            f"step {step}: {reason}. The run has gone back {history.count} times "
            f"(safety.max_rollbacks is {safety.max_rollbacks}) and stops here. {_ADVICE}"
        )
    target, damaged = newest_whole(folder / CHECKPOINTS, ranks, lambda found: is_good(found, sound_step))
    if target is None:
        raise TrainingError(
            f"step {step}: {reason}. There is no checkpoint of step {sound_step} or before to go back to. "
            + "".join(f"{line}. " for line in damaged)
            + _ADVICE
        )
    to_step = read_state(target)["step"]
    following = history.then(Rollback(step, to_step, safety.rollback_lr_factor, reason))

    def record() -> None:
        try:
            replace_durably(folder / RECOVERY, json.dumps(following.to_json(), indent=2) + "\n")
            set_rejected_aside(folder / CHECKPOINTS, following)
        except OSError as error:
            raise CheckpointError(
                f"{error.filename or folder / RECOVERY}: cannot be written ({error.strerror}), and the run does not go "
                "back without it; make room and start it again"
            ) from error

    on_main(ranks, record)
    return target, following
