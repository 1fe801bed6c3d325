"""A run on this rank, from its recipe to its end: what ``launch/pretrain.py`` calls."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ds_pretrain.config import Recipe, load_recipe
from ds_pretrain.data.positions import planning_problems
from ds_pretrain.engine.lost_rank import is_lost_contact, lost_contact
from ds_pretrain.engine.ranks import Ranks, any_rank, barrier, device_description, start_ranks, stop_ranks
from ds_pretrain.errors import LostRankError, PortTakenError, Stopped, TrainingError, UserError
from ds_pretrain.lifeline import watch_launcher
from ds_pretrain.model.layers import has_learned_positions
from ds_pretrain.model.size import head_parameters, parameter_count, product_parameters
from ds_pretrain.observe.group_table import group_table
from ds_pretrain.observe.jsonl import JsonlTracker
from ds_pretrain.observe.logs import quiet_libraries
from ds_pretrain.observe.progress import ProgressReporter
from ds_pretrain.observe.tracker import Tracker, TrackerGroup
from ds_pretrain.observe.wandb_tracker import start_wandb
from ds_pretrain.train.evaluation import Evaluator
from ds_pretrain.train.flops import flops_per_token, peak_flops
from ds_pretrain.train.formats import positions_run_on
from ds_pretrain.train.history import unlogged
from ds_pretrain.train.resume import go_back
from ds_pretrain.train.setup import Setup, open_folder, open_loader, prepare_run, start_engine
from ds_pretrain.train.stop import StopRequest, ignore_requests
from ds_pretrain.train.trainer import Job, Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# used where the recipe itself cannot be read: ranks still have to meet to leave together
_DEFAULT_TIMEOUT_SECONDS = 1800.0
_DEFAULT_GRACE_SECONDS = 120.0

Work = Callable[[Recipe, Ranks, Sequence[str]], None]


def pretrain(files: Sequence[Path], overrides: Sequence[str]) -> int:
    """Trains a recipe on this rank, or continues its run.

    Args:
        files: recipe files, later ones over earlier ones.
        overrides: ``key.path=value``.

    Returns:
        Exit code, as ``on_ranks`` gives it.
    """
    return on_ranks(files, overrides, train_recipe)


def on_ranks(files: Sequence[Path], overrides: Sequence[str], work: Work) -> int:
    """Loads a recipe, meets the other ranks, works, and leaves together with them.

    Args:
        files: recipe files, later ones over earlier ones.
        overrides: ``key.path=value``.
        work: given the checked recipe, this process's rank and what the command line said.

    Returns:
        Exit code: 0 for finished or stopped on request, 1 for a run that failed, 2 for what the user can mend, 75
        where the port to meet on is taken.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    recipe: Recipe | UserError
    try:
        recipe = load_recipe(files, overrides, [partial(planning_problems, world_size=world_size, unprepared=True)])
    except UserError as error:
        recipe = error
    timeout = (
        _DEFAULT_TIMEOUT_SECONDS if isinstance(recipe, UserError) else recipe.deepspeed.communication_timeout_seconds
    )
    watch_launcher(_DEFAULT_GRACE_SECONDS if isinstance(recipe, UserError) else recipe.checkpoint.grace_seconds)
    try:
        ranks = start_ranks(timeout)
    except (PortTakenError, LostRankError) as error:
        return _told(error)
    try:
        return _together(
            recipe, ranks, work, [*(part for file in files for part in ("--config", str(file))), *overrides]
        )
    except RuntimeError as error:
        if not is_lost_contact(error):
            raise
        message = lost_contact(error, ranks.rank)
        if message is None:
            return LostRankError.exit_code
        return _told(LostRankError(f"{message}; start it again: a run continues from its newest checkpoint"))
    finally:
        ignore_requests()
        stop_ranks()


def _together(recipe: Recipe | UserError, ranks: Ranks, work: Work, arguments: Sequence[str]) -> int:
    """Works, and meets the other ranks before it leaves: the launcher ends the others at once where one has failed."""
    try:
        if isinstance(recipe, UserError):
            raise recipe
        work(recipe, ranks, arguments)
    except (UserError, TrainingError, Stopped) as error:
        if ranks.is_main:
            _told(error)
        barrier()
        return error.exit_code
    return 0


def _told(error: UserError | TrainingError | Stopped) -> int:
    print(f"ds_pretrain: {error}", file=sys.stderr, flush=True)
    return error.exit_code


def train_recipe(recipe: Recipe, ranks: Ranks, arguments: Sequence[str]) -> None:
    """Trains a checked recipe, or continues its run, on ranks that have met.

    Args:
        recipe: alike on every rank.
        ranks: this process among those of the run.
        arguments: what the command line said, to tell how to continue.

    Raises:
        UserError: what the user can mend, on every rank alike.
        TrainingError: the run failed.
        Stopped: there was a request to stop before the first step.
    """
    stop = StopRequest()
    stop.listen()
    quiet_libraries(None)
    setup = prepare_run(recipe, ranks, stop)
    if setup.finished:
        say(ranks, f"{setup.folder}: finished at step {setup.position.step}, nothing left to train")
        return
    _leave_if_asked(stop, ranks)
    open_folder(setup, ranks)
    quiet_libraries(setup.folder if ranks.is_main else None)
    for warning in setup.warnings:
        say(ranks, warning if warning.startswith("note: ") else f"warning: {warning}")
    engine, model, layers = start_engine(setup, ranks)
    _leave_if_asked(stop, ranks)
    parameters = parameter_count(model)
    say(
        ranks,
        f"{setup.config.model_type} of {parameters / 1e6:,.1f} M parameters on {ranks.world_size} x "
        f"{device_description(ranks)}, {setup.precision}, ZeRO {engine.zero_optimization_stage()}; "
        f"{setup.plan.total_tokens:,} tokens in {setup.plan.total_steps:,} steps; {setup.folder}",
    )
    if ranks.is_main:
        Console().print(group_table(setup.groups))
    tracker = _trackers(setup) if ranks.is_main else TrackerGroup([])
    progress = _progress(setup) if ranks.is_main else None
    peak = peak_flops(device_description(ranks), setup.precision)
    job = Job(
        recipe=recipe,
        plan=setup.plan,
        folder=setup.folder,
        ranks=ranks,
        tracker=tracker,
        progress=progress,
        open_loader=partial(open_loader, setup, ranks, setup.plan.stages),
        go_back=partial(go_back, layers=layers, recipe=recipe, ranks=ranks),
        layers=layers,
        learned_positions=has_learned_positions(model) and not positions_run_on(recipe),
        evaluator=_evaluator(setup, ranks) if setup.corpus.validation else None,
        corpus=setup.corpus.fingerprint,
        epoch_positions=setup.positions,
        peak_flops=None if peak is None else peak * ranks.world_size,
        flops_per_token={stage.seq_len: _flops(setup, model, stage.seq_len) for stage in setup.plan.stages},
        min_loss_scale=setup.min_loss_scale,
    )
    trainer = Trainer(engine, job, stop, setup.position)
    exit_code = 1
    try:
        if ranks.is_main:
            for rollback in unlogged(setup.folder, setup.position.history):
                trainer.log_rollback(rollback)
        trainer.event(
            "run_start" if setup.start.checkpoint is None else "resume",
            world_size=ranks.world_size,
            parameters=parameters,
        )
        finished = trainer.train()
        trainer.event("run_end" if finished else "preempted")
        exit_code = 0
    finally:
        if progress is not None:
            progress.close()
        tracker.close(exit_code)
    if finished:
        say(ranks, f"finished at step {trainer.step}: {setup.folder}")
        say(ranks, f"  a folder that transformers loads: ds-pretrain export {setup.folder} --to DIR")
    else:
        command = f"deepspeed --num_gpus {ranks.local_size} launch/pretrain.py {shlex.join(arguments)}"
        several = ranks.world_size > ranks.local_size
        say(ranks, f"stopped; saved at step {trainer.step} of {setup.plan.total_steps}: {setup.folder}")
        say(ranks, f"  to continue: {'start it again as before, on all machines' if several else command}")


def _leave_if_asked(stop: StopRequest, ranks: Ranks) -> None:
    if any_rank(stop.requested, ranks):
        raise Stopped("stopped on request before the first step: there was nothing to save")


def _trackers(setup: Setup) -> Tracker:
    recipe = setup.recipe
    trackers: list[Tracker] = [JsonlTracker(setup.folder)]
    wandb = start_wandb(recipe.tracking.wandb, setup.folder, recipe.run.name, recipe.model_dump(mode="json"))
    return TrackerGroup(trackers if wandb is None else [*trackers, wandb])


def _flops(setup: Setup, model: PreTrainedModel, seq_len: int) -> float:
    without_head = 1 - setup.input_format.targets_per_sequence(seq_len) / seq_len
    parameters = product_parameters(model) - without_head * head_parameters(model)
    return flops_per_token(parameters, setup.config.num_hidden_layers, setup.config.hidden_size, seq_len)


def _evaluator(setup: Setup, ranks: Ranks) -> Evaluator:
    return Evaluator(setup.corpus.validation, setup.recipe, ranks, setup.input_format, setup.corpus.vocabulary.size)


def _progress(setup: Setup) -> ProgressReporter:
    plan = setup.plan
    progress = ProgressReporter(plan.total_tokens, plan.total_steps, len(plan.stages), setup.folder)
    progress.start(plan.tokens_before(setup.position.step))
    return progress


def say(ranks: Ranks, text: str) -> None:
    """Prints a line on rank 0."""
    if ranks.is_main:
        print(text, flush=True)
