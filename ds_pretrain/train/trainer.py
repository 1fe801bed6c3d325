"""The training loop: locate the stage, set the learning rate, train one batch, guard, track, evaluate or save."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum import Plan, StagePlan
from ds_pretrain.curriculum.skips import Skip, cursor_before
from ds_pretrain.curriculum.unfreezing import fresh_share
from ds_pretrain.data.loader import StepLoader
from ds_pretrain.engine.build import Engine
from ds_pretrain.engine.checkpoint_list import read_state
from ds_pretrain.engine.ranks import Ranks, ask_any_rank
from ds_pretrain.engine.stage import (
    Newcomers,
    applied_clip,
    applied_momentum,
    apply_stage,
    learning_rates,
    set_learning_rate,
    set_momentum,
)
from ds_pretrain.engine.step import Requests, StepResult, train_batch
from ds_pretrain.errors import DataError, TrainingError
from ds_pretrain.guards import Rollback, Verdict
from ds_pretrain.observe.progress import ProgressReporter
from ds_pretrain.observe.tracker import Tracker
from ds_pretrain.schedules import LearningRateSchedule
from ds_pretrain.schedules.plateau import after_evaluation
from ds_pretrain.train.continuation import recipe_document
from ds_pretrain.train.evaluation import EvaluationStopped, Evaluator, full_length_loss
from ds_pretrain.train.guarding import Guarding
from ds_pretrain.train.metrics import StepTimes, step_record
from ds_pretrain.train.position import Position, position_from
from ds_pretrain.train.recovery import take_back
from ds_pretrain.train.run_folder import CHECKPOINTS
from ds_pretrain.train.saving import Saving
from ds_pretrain.train.stop import StopRequest
from ds_pretrain.train.unfreezing import TrainedLayers


@dataclass(frozen=True)
class Job:
    """What a trainer works with, all of it fixed for the run.

    Args:
        recipe, plan: what to do.
        folder: the run's folder.
        ranks: this process among those of the run.
        tracker: where records go; called on rank 0 alone.
        progress: what the terminal shows; None on other ranks.
        go_back: loads an earlier checkpoint, given the live engine and the stages before and after; its engine.
        open_loader: this rank's batches, from a step on and without the data that rollbacks left out.
        layers: which layers the stages train.
        learned_positions: whether the model learns its position embeddings, of which short stages train the first.
        evaluator: None where there is no validation corpus.
        corpus: fingerprint of the training tokens.
        epoch_positions: length of an epoch of every training source, by name.
        peak_flops: peak FLOP/s of all ranks; None where not known.
        flops_per_token: model FLOPs of a token, by sequence length.
        min_loss_scale: minimum of a dynamic fp16 loss scale; None otherwise.
    """

    recipe: Recipe
    plan: Plan
    folder: Path
    ranks: Ranks
    tracker: Tracker
    progress: ProgressReporter | None
    go_back: Callable[[Engine, StagePlan, StagePlan, Path], Engine]
    open_loader: Callable[[int, Sequence[Skip]], StepLoader]
    layers: TrainedLayers
    learned_positions: bool
    evaluator: Evaluator | None
    corpus: str
    epoch_positions: dict[str, int]
    peak_flops: float | None
    flops_per_token: dict[int, float]
    min_loss_scale: float | None


class Trainer:
    """Trains from a position to the end of the plan, or to a request to stop.

    Args:
        engine: the live engine, loaded with the position's checkpoint where there is one.
        job: what to work with.
        stop: this process's request to stop.
        position: where to begin.
    """

    def __init__(self, engine: Engine, job: Job, stop: StopRequest, position: Position) -> None:
        self.engine = engine
        self.job = job
        self.recipe = recipe_document(job.recipe)  # once: it takes longer than many a step
        self.stop = stop
        self.schedule = LearningRateSchedule(job.plan, job.recipe.schedule)
        self.step = position.step
        self.trained = job.plan.stages[position.stage]
        self.guarding = Guarding(job.recipe.safety, job.min_loss_scale, position.guard, self.event, self._say)
        self.plateau = position.plateau
        self.history = position.history
        self.stopped = False
        self.evaluated = position.evaluated
        self.cursors: tuple[int, ...] = ()
        # full-length validation loss of the present step, where it tells which checkpoint is best
        self.val_loss: float | None = None
        self.saving = Saving(
            job.recipe.checkpoint,
            job.folder / CHECKPOINTS,
            job.ranks,
            self.event,
            self._say,
            position.step if position.saved else None,
        )

    def train(self) -> bool:
        """Trains, and goes back where the guards say so.

        Returns:
            Whether the plan was finished; False where the run was asked to stop, and has saved.

        Raises:
            TrainingError: the run cannot repair itself any more, or the last checkpoint could not be written.
            DataError: the corpus holds what cannot be trained on.
        """
        try:
            finished = self._train()
        except (TrainingError, DataError):
            self.saving.settle()
            raise
        self.saving.leave()
        return finished

    def _train(self) -> bool:
        plan = self.job.plan
        if not self.evaluated:
            self._catch_up()
        while self.step < plan.total_steps and not self.stopped:
            with self.job.open_loader(self.step, self.history.skips) as loader:
                reason = self._train_on(loader)
            if reason is not None:
                self._go_back(reason)
        return self.step == plan.total_steps and self.evaluated

    def _catch_up(self) -> None:
        """The evaluation and the save that come before the next step: at the start, and where a stop came first."""
        self._evaluate(self.trained)
        self.saving.save(self.engine, self._state(self.trained), anew=self.evaluated)

    def _train_on(self, loader: StepLoader) -> str | None:
        """The loop, up to the end or a stop; or why the run has to go back."""
        plan = self.job.plan
        stage: StagePlan | None = None
        while self.step < plan.total_steps and not self.stopped:
            began = time.monotonic()
            batch = next(loader)
            self.cursors = batch.cursors
            data_seconds = time.monotonic() - began
            if stage is None or batch.stage != stage.index:
                stage = self._enter(batch.stage)
            lr = self._learning_rate(stage)
            newcomers = Newcomers(stage.index, fresh_share(stage, self.step))
            set_learning_rate(self.engine, lr, newcomers)
            set_momentum(self.engine, self.schedule.momentum(self.step, stage.tokens_before(self.step)))
            result = train_batch(self.engine, batch, batch.target_tokens, lr, self._requests(), newcomers)
            self.step += 1
            self.val_loss = None
            self.stopped = result.requests.stop
            verdict = self.guarding.after_step(self.step, stage, result)
            self._record(stage, result, lr, verdict, StepTimes(time.monotonic() - began, data_seconds))
            if verdict.rollback is not None:
                return verdict.rollback
            self._evaluate(stage)
            if not result.requests.wait:
                self.saving.settle()
            if self.stopped or result.requests.save or self.saving.due(self.step, plan.total_steps):
                self.saving.save(self.engine, self._state(stage))
        return None

    def _learning_rate(self, stage: StagePlan) -> float:
        """What the step that comes is to use: as planned, times all that was learned from the run."""
        planned = self.schedule.lr(self.step, stage.tokens_before(self.step))
        return planned * self.plateau.factor * self.guarding.damping(self.step) * self.history.lr_factor

    def _go_back(self, reason: str) -> None:
        self.saving.settle()
        folder, self.history = take_back(
            self.job.folder, self.history, reason, self.step, self.guarding.state.sound_step,
            self.job.recipe.safety, self.job.ranks,
        )  # fmt: skip
        self.log_rollback(self.history.rollbacks[-1])
        target = position_from(read_state(folder))
        stage = self.job.plan.stages[target.stage]
        self.engine = self.job.go_back(self.engine, self.trained, stage, folder)
        self.trained = stage
        self.step, self.guarding.state, self.plateau = target.step, target.guard, target.plateau
        self.saving.went_back(self.step)
        if not target.evaluated:
            self._catch_up()

    def log_rollback(self, rollback: Rollback) -> None:
        """Logs and shows that the run goes back."""
        plan = self.job.plan
        self.event(
            "rollback",
            step=rollback.from_step,
            tokens=plan.tokens_before(rollback.from_step),
            to_step=rollback.target_step,
            skipped_tokens=plan.tokens_before(rollback.from_step) - plan.tokens_before(rollback.target_step),
            lr_factor=rollback.lr_factor,
            reason=rollback.reason,
        )
        self._say(f"ROLLBACK: {rollback}")

    def _enter(self, index: int) -> StagePlan:
        stage = self.job.plan.stages[index]
        self.engine = self.job.layers.change(self.engine, self.trained, stage)
        self.trained = stage
        apply_stage(self.engine, stage)
        if self.step == stage.start_step:
            self.event("stage_start", stage=index, seq_len=stage.seq_len, batch_size=stage.batch_size)
        if self.job.progress is not None:
            self.job.progress.message(
                f"stage {index + 1}/{len(self.job.plan.stages)}: seq_len {stage.seq_len}, batch {stage.batch_size} "
                f"({stage.micro_batch_size} x {stage.grad_accum_steps} x {self.job.plan.data_parallel_size}), "
                f"peak lr {stage.peak_lr:.3g}, clip {stage.grad_clip:g}, {stage.num_steps} steps"
            )
        return stage

    def _requests(self) -> Requests:
        return Requests(stop=self.stop.requested, save=self.saving.minutes_passed(), wait=self.saving.writing)

    def _ask_to_stop(self) -> Callable[[], bool]:
        return ask_any_rank(self.stop.requested, self.job.ranks)

    def _record(self, stage: StagePlan, result: StepResult, lr: float, verdict: Verdict, times: StepTimes) -> None:
        if self.job.ranks.is_main:
            record = step_record(
                self.step,
                stage,
                result,
                lr,
                learning_rates(self.engine),
                applied_momentum(self.engine) if self.schedule.moves_momentum else None,
                applied_clip(self.engine),
                verdict.loss_ratio,
                times,
                self._peak_tokens_per_second(stage),
                self.cursors,
                self.job.epoch_positions,
            )
            self.job.tracker.log_metrics(record)
            if self.job.progress is not None:
                self.job.progress.step(record)

    def _peak_tokens_per_second(self, stage: StagePlan) -> float | None:
        peak = self.job.peak_flops
        return None if peak is None else peak / self.job.flops_per_token[stage.seq_len]

    def _evaluate(self, stage: StagePlan) -> None:
        self.evaluated = True
        every = self.job.recipe.evaluation.every_steps
        due = self.step in (0, self.job.plan.total_steps) or (every is not None and self.step % every == 0)
        if self.job.evaluator is None or not due:
            return
        seq_lens = [stage.seq_len, self.job.recipe.data.max_seq_len]
        try:
            lines = self.job.evaluator.evaluate(self.engine, seq_lens, self._ask_to_stop)
        except EvaluationStopped:
            self.stopped, self.evaluated = True, False
            self._say(f"step {self.step}: the evaluation was broken off; it is done when the run goes on")
            return
        tokens = stage.tokens_before(self.step)
        if self.job.ranks.is_main:
            for line in lines:
                self.job.tracker.log_metrics({"step": self.step, "tokens": tokens, **line})
        gap = self.guarding.after_evaluation(self.step, stage, lines)
        self.event("evaluation", val_loss=lines[-1]["val_loss"], seq_len=lines[-1]["seq_len"], val_gap=gap)
        if self.job.progress is not None:
            losses = ", ".join(f"{line['val_loss']:.4f} at {line['seq_len']}" for line in lines)
            self.job.progress.message(f"step {self.step}: validation loss {losses}")
        # position embeddings that short stages do not train make the loss at full length a matter of the last stage
        if not self.job.learned_positions or stage.index == len(self.job.plan.stages) - 1:
            self.val_loss = full_length_loss(lines)
            self._follow_plateau(self.val_loss)

    def _follow_plateau(self, val_loss: float) -> None:
        if self.job.recipe.schedule.type != "plateau":
            return
        before = self.plateau.factor
        self.plateau = after_evaluation(self.plateau, val_loss, self.job.recipe.schedule)
        if self.plateau.factor < before:
            self.event("plateau", factor=self.plateau.factor, val_loss=val_loss)
            self._say(f"step {self.step}: plateau, learning rate x {self.plateau.factor:g}")

    def _state(self, stage: StagePlan) -> dict[str, Any]:
        return {
            "step": self.step,
            "tokens": stage.tokens_before(self.step),
            "cursor": cursor_before(self.job.plan.stages, self.step, self.history.skips),
            "stage": stage.index,
            "world_size": self.job.ranks.world_size,
            "corpus": self.job.corpus,
            "guard": asdict(self.guarding.state),
            "plateau": asdict(self.plateau),
            "recovery": self.history.to_json(),
            "val_loss": self.val_loss,
            "evaluated": self.evaluated,
            "recipe": self.recipe,
        }

    def _say(self, text: str) -> None:
        if self.job.progress is not None:
            self.job.progress.message(text)

    def event(self, name: str, **details: object) -> None:
        """Logs an event, of the present step unless told otherwise, on rank 0."""
        if self.job.ranks.is_main:
            tokens = self.job.plan.stage_at(self.step).tokens_before(self.step)
            self.job.tracker.log_event({"event": name, "step": self.step, "tokens": tokens, **details})
