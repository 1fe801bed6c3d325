"""When a run's checkpoints are written, and which of them stay; a save that fails is a loud warning and no end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ds_pretrain.config import Checkpoint
from ds_pretrain.engine.build import Engine
from ds_pretrain.engine.checkpoint_files import delete_checkpoint, list_checkpoints, superseded
from ds_pretrain.engine.checkpoint_list import best_step, last_good
from ds_pretrain.engine.checkpoint_writer import CheckpointWriter
from ds_pretrain.engine.ranks import Ranks
from ds_pretrain.errors import SaveError, TrainingError


class Saving:
    """The checkpoints of a run while it trains. Every rank takes part in all of it, in the same order.

    Args:
        settings: the recipe's section.
        checkpoints: their folder.
        ranks: this process among those of the run.
        event: logs an event, by name and details; does so on rank 0 alone.
        warn: tells the user, on rank 0 alone.
        saved_step: steps done in the checkpoint that the run continues from; None at the start.
    """

    def __init__(
        self,
        settings: Checkpoint,
        checkpoints: Path,
        ranks: Ranks,
        event: Callable[..., None],
        warn: Callable[[str], None],
        saved_step: int | None,
    ) -> None:
        self._settings = settings
        self._checkpoints = checkpoints
        self._ranks = ranks
        self._event = event
        self._warn = warn
        self._writer = CheckpointWriter(checkpoints, ranks, settings.asynchronous)
        self._saved_step = saved_step
        self._taken: Mapping[str, Any] = {}
        self._began = time.monotonic()

    def due(self, step: int, total_steps: int) -> bool:
        """Whether the recipe wants a checkpoint after a step."""
        every = self._settings.every_steps
        return step == total_steps or (every is not None and step % every == 0)

    def minutes_passed(self) -> bool:
        """Whether rank 0's clock wants one; it decides for all, by way of the step's reduction."""
        minutes = self._settings.every_minutes
        return minutes is not None and self._ranks.is_main and time.monotonic() - self._began >= 60 * minutes

    @property
    def writing(self) -> bool:
        """Whether this rank still writes its share of a checkpoint."""
        return self._writer.writing

    def save(self, engine: Engine, state: Mapping[str, Any], anew: bool = False) -> None:
        """Writes a checkpoint, or begins to where that is asynchronous; none where the step's is there already.

        Args:
            engine: the live engine, between two steps.
            state: the run's own state; JSON values, ``step`` and ``tokens`` among them.
            anew: replaces the step's checkpoint, of which the state has changed.
        """
        if not anew and state["step"] in (self._saved_step, self._writer.step):
            return
        self.settle()
        self._taken, self._began = state, time.monotonic()
        try:
            self._writer.start(engine, state)
        except SaveError as error:
            self._failed(error)
            return
        if not self._settings.asynchronous:
            self.settle()

    def settle(self) -> None:
        """Waits for the checkpoint in flight, if there is one, and makes it visible."""
        if self._writer.step is None:
            return
        try:
            folder = self._writer.finish()
        except SaveError as error:
            self._failed(error)
            return
        self._saved_step = self._taken["step"]
        self._event("checkpoint", **self._when(), path=str(folder))
        if self._ranks.is_main:
            self._retain()

    def went_back(self, step: int) -> None:
        """The run is where a checkpoint of ``step`` steps was taken; later steps will be saved anew."""
        self._saved_step, self._taken = step, {}

    def leave(self) -> None:
        """Waits for the last checkpoint before the run ends.

        Raises:
            TrainingError: it could not be written.
        """
        self.settle()
        if self._saved_step != self._taken.get("step", self._saved_step):
            raise TrainingError(
                f"the run ends at step {self._taken['step']}, which could NOT be saved; see the warning above. "
                f"{self._remains()} Make room and start it again"
            )

    def _retain(self) -> None:
        try:
            found = dict(list_checkpoints(self._checkpoints))
            exempt = {last_good(found, self._taken["guard"]["sound_step"])}
            if self._settings.keep_best:
                exempt.add(best_step(found))
            for step in superseded(list(found), self._settings.keep_last, self._settings.keep_every_steps):
                if step not in exempt:
                    delete_checkpoint(found[step])
        except OSError as error:
            self._warn(f"an older checkpoint could not be removed: {error.strerror} ({error.filename})")

    def _failed(self, error: SaveError) -> None:
        self._event("checkpoint_failed", **self._when(), reason=str(error))
        if self._ranks.is_main:
            free = shutil.disk_usage(self._existing_folder()).free / 1e9
            self._warn(
                f"WARNING: step {self._taken['step']} is NOT SAVED: {error} ({free:.2f} GB free at "
                f"{self._checkpoints}). {self._remains()} Training goes on, and the next save is tried as planned"
            )

    def _remains(self) -> str:
        if self._saved_step is None:
            return "There is no checkpoint yet."
        return f"The checkpoint of step {self._saved_step} is unharmed."

    def _existing_folder(self) -> Path:
        return next(folder for folder in (self._checkpoints, *self._checkpoints.parents) if folder.exists())

    def _when(self) -> dict[str, int]:
        return {"step": self._taken["step"], "tokens": self._taken["tokens"]}
