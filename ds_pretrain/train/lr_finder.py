"""The learning-rate finder: sweeps every length of a curriculum on the live engine, and writes what it found."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum import StagePlan
from ds_pretrain.curriculum.lr_overlay import Shape, shapes
from ds_pretrain.curriculum.unfreezing import same_layers
from ds_pretrain.engine.ranks import Ranks, device_description
from ds_pretrain.engine.snapshot import EngineSnapshot
from ds_pretrain.errors import UserError
from ds_pretrain.observe.logs import quiet_libraries
from ds_pretrain.observe.lr_finder_files import OVERLAY, LengthResult, write_results
from ds_pretrain.observe.lr_finder_table import finder_table
from ds_pretrain.schedules.lr_sweep import (
    SweepPoint,
    climb_ending,
    climb_rates,
    find_rates,
    search_ending,
    search_rates,
    steepest_rate,
)
from ds_pretrain.train.run import on_ranks, say
from ds_pretrain.train.run_folder import run_folder
from ds_pretrain.train.setup import on_main, prepare_run, start_engine
from ds_pretrain.train.stop import StopRequest
from ds_pretrain.train.sweep import SweepTrainer

FOLDER = "lr_finder"
_STATE = ".state"
_SHOWN_SECONDS = 10.0


def find_learning_rates(files: Sequence[Path], overrides: Sequence[str], out: Path | None) -> int:
    """Finds the learning rates of a recipe on this rank.

    Args:
        files: recipe files, later ones over earlier ones.
        overrides: ``key.path=value``.
        out: folder for the results; ``lr_finder`` in the run's folder unless given.

    Returns:
        Exit code: 0 for found, 1 for a failure, 2 for what the user can mend.
    """
    return on_ranks(files, overrides, partial(_find, out=out))


def _find(recipe: Recipe, ranks: Ranks, arguments: Sequence[str], out: Path | None) -> None:
    folder = out or run_folder(recipe) / FOLDER
    on_main(ranks, lambda: _make(folder))  # before minutes are spent
    quiet_libraries(None)
    setup = prepare_run(recipe, ranks, StopRequest(), fresh=True)
    quiet_libraries(folder if ranks.is_main else None)
    for warning in setup.warnings:
        say(ranks, warning if warning.startswith("note: ") else f"warning: {warning}")
    engine, _, layers = start_engine(setup, ranks)
    wanted = shapes(setup.plan)
    say(
        ranks,
        f"{len(wanted)} shape(s) on {ranks.world_size} x {device_description(ranks)}, {setup.precision}, "
        f"ZeRO {engine.zero_optimization_stage()}; {folder}",
    )
    trainer = SweepTrainer(engine, setup, ranks)
    snapshot = EngineSnapshot(engine, folder / _STATE, ranks)
    found: dict[Shape, LengthResult] = {}
    trained = setup.plan.stages[0]
    for shape, stage in wanted.items():
        if not same_layers(trained, stage):
            snapshot.restore()
            engine, trained = layers.change(engine, trained, stage), stage
            trainer, snapshot = SweepTrainer(engine, setup, ranks), EngineSnapshot(engine, folder / _STATE, ranks)
        found[shape] = sweep_length(trainer, snapshot, stage, _Progress(ranks, stage))
    # not after an error: a rank that failed alone would wait for the others; the next finder clears what is left
    snapshot.delete()
    on_main(ranks, lambda: write_results(folder, recipe, setup.plan, found))
    if ranks.is_main:
        Console().print(finder_table(recipe.run.name, found))
    say(ranks, f"{folder}: results.json, lr_finder.png, {OVERLAY}")
    command = f"deepspeed --num_gpus {ranks.local_size} launch/pretrain.py {shlex.join(arguments)}"
    say(ranks, f"  to train by it: {command} --config {shlex.quote(str(folder / OVERLAY))}")


def sweep_length(
    trainer: SweepTrainer, snapshot: EngineSnapshot, stage: StagePlan, show: Callable[[str, Sequence[SweepPoint]], None]
) -> LengthResult:
    """Both sweeps of one length, each from the snapshot. Every rank comes to the same result.

    Args:
        trainer: over the live engine.
        snapshot: where both sweeps begin.
        stage: the first one of the length and batch.
        show: told the sweep's name and its points after every step.
    """
    settings = trainer.setup.recipe.lr_finder

    def search_is_over(points: Sequence[SweepPoint]) -> bool:
        show("search", points)
        return search_ending(points, settings) is not None

    def climb_is_over(points: Sequence[SweepPoint]) -> bool:
        show("climb", points)
        return climb_ending(points, settings, len(rates)) is not None

    snapshot.restore()
    search = trainer.train(stage, search_rates(settings), search_is_over)
    rates = climb_rates(settings, steepest_rate(search, settings))
    snapshot.restore()
    climb = trainer.train(stage, rates, climb_is_over)
    return LengthResult(tuple(search), tuple(climb), find_rates(search, climb, settings))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another with --out") from error


class _Progress:
    """A line now and then, on rank 0."""

    def __init__(self, ranks: Ranks, stage: StagePlan) -> None:
        self._ranks = ranks
        self._stage = stage
        self._due = 0.0

    def __call__(self, sweep: str, points: Sequence[SweepPoint]) -> None:
        """Shows the last point where a line is due."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _SHOWN_SECONDS
            last = points[-1]
            shape = f"len {self._stage.seq_len} batch {self._stage.batch_size}"
            say(self._ranks, f"{shape} · {sweep} step {len(points)} · lr {last.lr:.1e} · loss {last.loss:.3f}")
