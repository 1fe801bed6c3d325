"""What a run needs before its first step: corpus, plan, run folder, engine, and the place to continue from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum import Plan, StagePlan, build_plan
from ds_pretrain.curriculum.skips import Skip
from ds_pretrain.curriculum.unfreezing import widest
from ds_pretrain.data.inputs import InputFormat
from ds_pretrain.data.loader import BatchReader, StepLoader
from ds_pretrain.data.manifest import open_corpus
from ds_pretrain.data.positions import epoch_positions
from ds_pretrain.data.stream import TokenStream
from ds_pretrain.data.token_ids import IdLimit
from ds_pretrain.engine.build import Engine, check_accepted, try_shapes
from ds_pretrain.engine.checkpoint_files import clear_leftovers, list_checkpoints, set_aside
from ds_pretrain.engine.deepspeed_json import (
    Precision,
    effective_zero_stage,
    extra_problems,
    stage_json,
    zero_stage_warnings,
)
from ds_pretrain.engine.plan_files import plan_document, write_plan_files
from ds_pretrain.engine.ranks import Ranks, device_precision, on_main, seed_rank
from ds_pretrain.errors import RecipeError, UserError
from ds_pretrain.model.build import build_model, meta_model, model_config
from ds_pretrain.model.group_rows import group_rows
from ds_pretrain.model.loss import head_is_plain, max_chunk_tokens, with_loss
from ds_pretrain.observe.jsonl import EVENTS_FILE, METRICS_FILE, cut_after
from ds_pretrain.observe.prepare_progress import prepare_progress
from ds_pretrain.schedules.plan_warnings import plan_warnings
from ds_pretrain.train.corpus import Corpus, check_foreign, resolve_corpus
from ds_pretrain.train.formats import attention_notes, attention_problems, check_model, input_format
from ds_pretrain.train.position import Position
from ds_pretrain.train.recovery import set_rejected_aside
from ds_pretrain.train.resume import Start, find_start, load
from ds_pretrain.train.run_folder import CHECKPOINTS, run_folder, write_config
from ds_pretrain.train.stop import StopRequest
from ds_pretrain.train.unfreezing import TrainedLayers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Setup:
    """A run that is ready to build its engine; alike on every rank.

    Args:
        recipe, plan, precision, corpus: what is trained.
        config: the model's transformers config.
        groups: what ``group_rows`` tells of the parameter groups.
        positions: positions of one epoch of every training source, by name.
        input_format: what the model is fed.
        folder: the run's folder.
        start: where the run begins, or goes on.
        warnings: what the user should know, as sentences.
    """

    recipe: Recipe
    plan: Plan
    precision: Precision
    corpus: Corpus
    config: PretrainedConfig
    groups: list[dict[str, Any]]
    positions: dict[str, int]
    input_format: InputFormat
    folder: Path
    start: Start
    warnings: tuple[str, ...]

    @property
    def position(self) -> Position:
        """How far the run is."""
        return self.start.position

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.position.step >= self.plan.total_steps and self.position.evaluated

    @property
    def min_loss_scale(self) -> float | None:
        """Minimum of a dynamic fp16 loss scale; None otherwise."""
        settings = self.recipe.deepspeed.fp16
        return settings.min_loss_scale if self.precision == "fp16" and settings.loss_scale == 0 else None


def prepare_run(recipe: Recipe, ranks: Ranks, stop: StopRequest, fresh: bool = False) -> Setup:
    """Prepares the corpus, plans, and finds the checkpoint to continue from. Writes nothing to the run's folder.

    Args:
        recipe: a checked recipe.
        ranks: this process among those of the run.
        stop: cuts the preparation of a corpus short, where rank 0 is asked to stop.
        fresh: begin at the initial weights, whatever the run's folder holds.

    Returns:
        The setup, alike on every rank.

    Raises:
        UserError: on every rank alike.
        Stopped: likewise.
    """
    corpus = on_main(ranks, lambda: _corpus(recipe, stop))
    positions = {name: epoch_positions(prefix, recipe.data.max_seq_len) for name, prefix in corpus.train}
    plan = build_plan(recipe, ranks.world_size, sum(positions.values()))
    precision = device_precision(recipe.precision)
    problems = [*extra_problems(recipe, plan.stages[0], precision), *attention_problems(recipe, ranks.device.type)]
    if problems:
        raise RecipeError(problems)
    check_accepted(stage_json(recipe, plan.stages[0], precision))
    fed = on_main(ranks, lambda: input_format(recipe, corpus))
    config = model_config(recipe.model, corpus.vocabulary, recipe.data.max_seq_len)
    groups = group_rows(meta_model(recipe.model, config), recipe, plan, find_layers=recipe.divides_parameters)
    folder = run_folder(recipe)
    start = Start() if fresh else find_start(recipe, plan, precision, corpus, sum(positions.values()), folder, ranks)
    return Setup(
        recipe, plan, precision, corpus, config, groups, positions, fed, folder, start,
        (
            *plan.warnings, *zero_stage_warnings(recipe, precision), *plan_warnings(recipe, plan), *start.notes,
            *attention_notes(recipe, ranks.device.type),
        ),
    )  # fmt: skip


def open_folder(setup: Setup, ranks: Ranks) -> None:
    """Rank 0 writes recipe and plan, and cuts checkpoints and logs after the step that the run continues from.

    Args:
        setup: the prepared run.
        ranks: this process among those of the run.
    """

    def write() -> None:
        clear_leftovers(setup.folder / CHECKPOINTS)
        set_rejected_aside(setup.folder / CHECKPOINTS, setup.position.history)
        for step, folder in list_checkpoints(setup.folder / CHECKPOINTS):
            if step > setup.position.step:  # newer than the newest whole one: damaged
                set_aside(folder, "damaged")
        write_config(setup.folder, setup.recipe)
        write_plan_files(plan_document(setup.plan, setup.recipe, setup.precision), setup.folder)
        for name in (METRICS_FILE, EVENTS_FILE):
            # a stage that starts just where the run goes on is entered again, and what was broken off evaluated again
            step = setup.position.step if setup.start.checkpoint else -1
            redone = ("stage_start",) if setup.position.evaluated else ("stage_start", "val_loss")
            cut_after(setup.folder / name, step, redone, setup.position.history.count)

    on_main(ranks, write)


def start_engine(setup: Setup, ranks: Ranks) -> tuple[Engine, PreTrainedModel, TrainedLayers]:
    """Builds model and engine, tries every shape, and loads the checkpoint that the run continues from.

    Args:
        setup: the prepared run.
        ranks: this process among those of the run.

    Returns:
        The engine of the position's stage, the model inside it, and which of its layers the stages train.

    Raises:
        RecipeError: the model cannot be built, or its layers and groups not as asked.
        TrainingError: a shape does not fit into the device's memory.
    """
    recipe, stages = setup.recipe, setup.plan.stages
    document = stage_json(recipe, stages[0], setup.precision)
    partitioned = effective_zero_stage(recipe, setup.precision) == 3
    seed_rank(recipe, 0)
    model = build_model(recipe.model, setup.config, zero3_config=document if partitioned else None)
    module = with_loss(model, recipe.model)
    layers = TrainedLayers(recipe, setup.plan, setup.precision, module, ranks)
    largest = widest(stages)  # what needs the most memory must not come late
    engine = layers.build(largest)
    seed_rank(recipe, ranks.rank)
    _check_chunked_loss(setup, model)
    check_model(recipe, model)
    try_shapes(engine, stages, setup.input_format)
    engine = layers.change(engine, largest, stages[setup.position.stage])
    if setup.start.checkpoint is not None:
        load(engine, layers.groups(stages[setup.position.stage]), setup.start.checkpoint, recipe, ranks)
    return engine, model, layers


def open_loader(
    setup: Setup, ranks: Ranks, stages: Sequence[StagePlan], first_step: int, skips: Sequence[Skip] = ()
) -> StepLoader:
    """This rank's batches of the training corpus, from a step to the end of the stages.

    Args:
        setup: the prepared run.
        ranks: this process among those of the run.
        stages: in order, without gaps.
        first_step: step to begin with, from 0.
        skips: what rollbacks have left out, in their order.
    """
    data, seed = setup.recipe.data, setup.recipe.run.seed
    opened = [open_corpus(prefix) for _, prefix in setup.corpus.train]
    corpora = [corpus for corpus, _ in opened]
    vouched_for = all(manifest is not None for _, manifest in opened)
    reader = BatchReader(
        [TokenStream(corpus.tokens, data.max_seq_len, seed) for corpus in corpora],
        stages,
        seed=seed,
        rank=ranks.rank,
        data_parallel_size=setup.plan.data_parallel_size,
        skips=skips,
        input_format=setup.input_format,
        pin_memory=ranks.device.type == "cuda",
        id_limit=None if vouched_for else IdLimit(setup.corpus.vocabulary.size, corpora),
    )
    return StepLoader(reader, first_step=first_step, total_steps=stages[-1].end_step, prefetch=data.prefetch_steps)


def _corpus(recipe: Recipe, stop: StopRequest) -> Corpus:
    texts = [source.text for source in recipe.data.train if source.text is not None]
    if not texts:
        corpus = resolve_corpus(recipe)
    else:
        print(f"corpus: {', '.join(texts)}, prepared once and kept in {recipe.data.cache_dir}", flush=True)
        with stop.at_once(), prepare_progress() as progress:
            corpus = resolve_corpus(recipe, progress)
    with stop.at_once():
        check_foreign(corpus)
    return corpus


def _check_chunked_loss(setup: Setup, model: PreTrainedModel) -> None:
    limit = setup.recipe.model.max_logits_bytes
    tokens = max(
        stage.micro_batch_size * stage.blocks_per_row * setup.input_format.targets_per_sequence(stage.seq_len)
        for stage in setup.plan.stages
    )
    chunk = max_chunk_tokens(setup.config.vocab_size, limit)
    if tokens > chunk and setup.recipe.model.objective == "masked_lm":
        raise UserError(
            f"model.max_logits_bytes: found {limit}, which the {tokens} masked tokens of a micro batch exceed; "
            f"raise it to {4 * setup.config.vocab_size * tokens}, or lower train.max_tokens_per_micro_batch"
        )
    if tokens > chunk and not head_is_plain(model):
        raise UserError(
            f"model.max_logits_bytes: found {limit}, which {tokens} tokens per micro batch exceed, but "
            f"{setup.config.model_type} changes its logits after the head, so its loss cannot be computed in chunks; "
            f"raise it to {4 * setup.config.vocab_size * tokens}, or lower train.max_tokens_per_micro_batch to {chunk}"
        )
