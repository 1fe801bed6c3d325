"""The learning-rate finder: sweeps and trains every shape of a curriculum for a while, and writes what it found."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from rich.console import Console

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum import StagePlan
from ds_pretrain.curriculum.lr_shapes import Shape, measured_shapes
from ds_pretrain.curriculum.unfreezing import same_layers
from ds_pretrain.engine.ranks import Ranks, device_description, on_main
from ds_pretrain.engine.snapshot import EngineSnapshot
from ds_pretrain.errors import UserError
from ds_pretrain.observe.logs import quiet_libraries
from ds_pretrain.observe.lr_finder_files import OVERLAY, ShapeResult, write_results
from ds_pretrain.observe.lr_finder_table import finder_table
from ds_pretrain.schedules.lr_sweep import SweepPoint, steepest_rate, sweep_ending, sweep_rates
from ds_pretrain.schedules.lr_trials import Trial, first_peak, judge, next_peak, repetitions
from ds_pretrain.train.run import on_ranks, say
from ds_pretrain.train.run_folder import run_folder
from ds_pretrain.train.setup import prepare_run, start_engine
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
    wanted = measured_shapes(recipe, setup.plan)
    settings = recipe.lr_finder
    say(
        ranks,
        f"{len(wanted)} shape(s) on {ranks.world_size} x {device_description(ranks)}, {setup.precision}, "
        f"ZeRO {engine.zero_optimization_stage()}; {folder}\n"
        f"at most {len(wanted) * (settings.steps + settings.max_trials * settings.trial_steps):,} steps: a sweep of "
        f"{settings.steps} and up to {settings.max_trials} trainings of {settings.trial_steps} a shape, mostly fewer",
    )
    trainer = SweepTrainer(engine, setup, ranks)
    snapshot = EngineSnapshot(engine, folder / _STATE, ranks)
    found: dict[Shape, ShapeResult] = {}
    trained = setup.plan.stages[0]
    for shape, stage in wanted.items():
        if not same_layers(trained, stage):
            snapshot.restore()
            engine, trained = layers.change(engine, trained, stage), stage
            trainer, snapshot = SweepTrainer(engine, setup, ranks), EngineSnapshot(engine, folder / _STATE, ranks)
        found[shape] = find_shape(trainer, snapshot, stage, shape, _Progress(ranks, shape))
    # not after an error: a rank that failed alone would wait for the others; the next finder clears what is left
    snapshot.delete()
    on_main(ranks, lambda: write_results(folder, recipe, setup.plan, found))
    if ranks.is_main:
        Console().print(finder_table(recipe.run.name, found))
    say(ranks, f"{folder}: results.json, lr_finder.png, {OVERLAY}")
    command = f"deepspeed --num_gpus {ranks.local_size} launch/pretrain.py {shlex.join(arguments)}"
    say(ranks, f"  to train by it: {command} --config {shlex.quote(str(folder / OVERLAY))}")


class Listener(Protocol):
    """Told how a shape gets on."""

    def step(self, course: str, points: Sequence[SweepPoint]) -> None:
        """After every step, with the name of its sweep or trial and that one's points so far."""

    def trial(self, trial: Trial) -> None:
        """After every trial."""


def find_shape(
    trainer: SweepTrainer, snapshot: EngineSnapshot, stage: StagePlan, shape: Shape, listener: Listener
) -> ShapeResult:
    """A sweep and the trials of one shape, each from the snapshot. Every rank comes to the same result.

    Args:
        trainer: over the live engine.
        snapshot: where all of them begin.
        stage: the first one of the shape.
        shape: the shape.
        listener: told of every step and trial.
    """
    settings = trainer.setup.recipe.lr_finder
    sweep = run_sweep(trainer, snapshot, stage, partial(listener.step, "sweep"))
    snapshot.restore()
    baselines = trainer.baselines(stage, sweep[0].loss)
    trials: list[Trial] = []
    peak: float | None = first_peak(steepest_rate(sweep, settings), settings)
    while peak is not None:
        snapshot.restore()
        show = partial(listener.step, f"training {len(trials) + 1}")
        trials.append(trainer.try_peak(stage, peak, shape.warmup_steps, show, repetitions(trials, peak)))
        listener.trial(trials[-1])
        peak = next_peak(trials, baselines, settings)
    return ShapeResult(tuple(sweep), tuple(trials), baselines, judge(trials, baselines, settings))


def run_sweep(
    trainer: SweepTrainer, snapshot: EngineSnapshot, stage: StagePlan, show: Callable[[Sequence[SweepPoint]], None]
) -> list[SweepPoint]:
    """The exponential sweep of a stage's shape, from the snapshot.

    Args:
        trainer, snapshot, stage: as for ``find_shape``.
        show: told the points so far after every step.
    """
    settings = trainer.setup.recipe.lr_finder

    def is_over(points: Sequence[SweepPoint]) -> bool:
        show(points)
        return sweep_ending(points, settings) is not None

    snapshot.restore()
    return trainer.train(stage, sweep_rates(settings), is_over)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another with --out") from error


class _Progress:
    """A line for every trial, and one now and then between, on rank 0."""

    def __init__(self, ranks: Ranks, shape: Shape) -> None:
        self._ranks = ranks
        self._name = f"len {shape.seq_len} batch {shape.batch_size}"
        self._due = 0.0

    def step(self, course: str, points: Sequence[SweepPoint]) -> None:
        """Shows the last point where a line is due."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _SHOWN_SECONDS
            last = points[-1]
            say(self._ranks, f"{self._name} · {course} step {len(points)} · lr {last.lr:.1e} · loss {last.loss:.3f}")

    def trial(self, trial: Trial) -> None:
        """Shows what a trial came to."""
        say(self._ranks, f"{self._name} · trained at {trial.peak_lr:g}: loss {trial.loss:.3f}")
