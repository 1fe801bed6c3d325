"""Where a run goes on: its newest whole checkpoint, whether the recipe may continue that, and how it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum import Plan, StagePlan
from ds_pretrain.engine.build import Engine
from ds_pretrain.engine.checkpoint import load_checkpoint, load_engine, newest_whole
from ds_pretrain.engine.checkpoint_files import list_checkpoints, read_manifest
from ds_pretrain.engine.checkpoint_list import read_state
from ds_pretrain.engine.deepspeed_json import Precision, effective_zero_stage
from ds_pretrain.engine.ranks import Ranks, broadcast_object, on_main, seed_rank
from ds_pretrain.engine.universal import load_elsewhere
from ds_pretrain.errors import CheckpointError
from ds_pretrain.guards import RollbackHistory
from ds_pretrain.model.groups import ParameterGroup
from ds_pretrain.observe.jsonl import METRICS_FILE
from ds_pretrain.train.continuation import recipe_changes
from ds_pretrain.train.corpus import Corpus
from ds_pretrain.train.history import is_rejected, read_history
from ds_pretrain.train.position import Position, position_from
from ds_pretrain.train.run_folder import CHECKPOINTS, check_corpus, check_layout, check_recipe, saved_recipe
from ds_pretrain.train.unfreezing import TrainedLayers


@dataclass(frozen=True)
class Start:
    """Where a run begins, or goes on.

    Args:
        checkpoint: where to continue from; None at the start.
        position: how far that checkpoint is.
        notes: what the user should know, as sentences.
    """

    checkpoint: Path | None = None
    position: Position = Position()
    notes: tuple[str, ...] = ()


def find_start(
    recipe: Recipe, plan: Plan, precision: Precision, corpus: Corpus, positions: int, folder: Path, ranks: Ranks
) -> Start:
    """Finds where a run continues from, as ``checkpoint.resume`` wants it. Every rank takes part.

    Args:
        recipe, plan, precision, corpus: what is to be trained.
        positions: positions of one epoch of the training corpus.
        folder: the run's folder.
        ranks: this process among those of the run.

    Raises:
        CheckpointError: on every rank alike, where the run may not be continued so, or has nothing whole.
    """
    history = on_main(ranks, lambda: read_history(folder))
    checkpoint, warnings = _find_checkpoint(recipe, folder, history, ranks)
    if checkpoint is None:
        lost = (folder / METRICS_FILE).is_file()
        note = f"{folder} has no checkpoint: the run starts over, and its {METRICS_FILE} with it"
        return Start(notes=(note,) if lost else ())
    state, manifest = read_state(checkpoint), read_manifest(checkpoint)
    changes = recipe_changes(
        saved_recipe(folder, state),
        manifest["world_size"],
        recipe,
        plan,
        positions,
        state["step"],
        history.count,
    )
    before = manifest.get("precision", precision)
    if before != precision and recipe.precision == "auto":
        refused = f"precision: {before} in the run, {precision} now, which auto comes to on this device"
        changes = replace(changes, refused=(*changes.refused, refused))
    check_recipe(folder, changes, recipe, None if state["step"] < plan.total_steps else state["step"])
    check_corpus(folder, recipe, state["corpus"], corpus.fingerprint)
    zero = effective_zero_stage(recipe, precision)
    check_layout(folder, recipe, manifest, plan.world_size, zero)
    moved = (manifest["world_size"], manifest["zero_stage"]) != (plan.world_size, zero)
    notes = [f"note: changed since the checkpoint: {change}" for change in changes.allowed]
    if moved:
        notes.append(
            f"note: saved by {manifest['world_size']} rank(s) at ZeRO {manifest['zero_stage']}, continued by "
            f"{plan.world_size} at ZeRO {zero}: data and learning rates go on as they were; dropout draws other numbers"
        )
    notes += [f"note: this run {rollback}" for rollback in history.rollbacks]
    return Start(checkpoint, replace(position_from(state), history=history), (*warnings, *notes))


def load(engine: Engine, groups: Sequence[ParameterGroup], checkpoint: Path, recipe: Recipe, ranks: Ranks) -> None:
    """Loads a checkpoint of the run, whoever saved it. Every rank takes part.

    On other ranks than those that saved it, every rank's generators are seeded anew, by run, rank and step.

    Args:
        engine: the live engine, which trains what the checkpoint's stage does.
        groups: the parameter groups that it was built with.
        checkpoint: its folder, verified.
        recipe: the recipe at hand.
        ranks: this process among those of the run.
    """
    if _saved_alike(engine, checkpoint, ranks):
        load_checkpoint(engine, checkpoint, ranks)
        return
    seed_rank(recipe, ranks.rank, read_manifest(checkpoint)["step"])
    if engine.zero_optimization_stage() == 0:
        load_engine(engine, checkpoint, ranks)
    else:
        load_elsewhere(engine, groups, checkpoint, ranks)


def go_back(
    engine: Engine,
    before: StagePlan,
    after: StagePlan,
    checkpoint: Path,
    layers: TrainedLayers,
    recipe: Recipe,
    ranks: Ranks,
) -> Engine:
    """Loads an earlier checkpoint into a live run, whoever saved it. Every rank takes part.

    Args:
        engine: the live engine; not to be used afterwards if another one is returned.
        before, after: the stages that it trains, and that the checkpoint's engine trained.
        checkpoint: its folder, verified.
        layers: which parameters the stages train.
        recipe: the recipe at hand.
        ranks: this process among those of the run.

    Returns:
        The engine that is where the checkpoint was.
    """
    if _saved_alike(engine, checkpoint, ranks) or engine.zero_optimization_stage() == 0:
        engine = layers.change(engine, before, after)
    else:  # what is converted wants an engine that has not taken a step
        engine = layers.renew(engine, after)
    load(engine, layers.groups(after), checkpoint, recipe, ranks)
    return engine


def _saved_alike(engine: Engine, checkpoint: Path, ranks: Ranks) -> bool:
    """Whether as many ranks saved a checkpoint, at the same ZeRO stage."""
    manifest = read_manifest(checkpoint)
    saved: tuple[int, int] = (manifest["world_size"], manifest["zero_stage"])
    return saved == (ranks.world_size, engine.zero_optimization_stage())


def _find_checkpoint(
    recipe: Recipe, folder: Path, history: RollbackHistory, ranks: Ranks
) -> tuple[Path | None, list[str]]:
    resume = recipe.checkpoint.resume
    any_saved = broadcast_object(bool(list_checkpoints(folder / CHECKPOINTS)), ranks)
    if resume == "never" and any_saved:
        raise CheckpointError(
            f"checkpoint.resume: found never, but {folder} holds a run with checkpoints; "
            "choose another run.name, or checkpoint.resume=auto to continue it"
        )
    checkpoint, warnings = newest_whole(folder / CHECKPOINTS, ranks, lambda found: not is_rejected(found, history))
    if checkpoint is None and any_saved:
        raise CheckpointError(
            f"{folder}: every checkpoint is damaged, and a new start would overwrite the run; "
            "restore one, or start a new run with run.name=…\n" + "\n".join(f"  {line}" for line in warnings)
        )
    if checkpoint is None and resume == "must":
        raise CheckpointError(
            f"checkpoint.resume: found must, but there is no checkpoint in {folder / CHECKPOINTS}; "
            "check run.name and run.output_dir, or use checkpoint.resume=auto to start a new run"
        )
    return checkpoint, warnings
