"""Optimizer steps on the live engine at given learning rates, from the start of the run's data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ds_pretrain.curriculum import StagePlan
from ds_pretrain.data.inputs import MicroBatch
from ds_pretrain.data.loader import StepLoader
from ds_pretrain.engine.build import Engine
from ds_pretrain.engine.ranks import Ranks, gather_objects
from ds_pretrain.engine.stage import apply_stage, set_learning_rate
from ds_pretrain.engine.step import Requests, train_batch
from ds_pretrain.guards import is_bad_step
from ds_pretrain.schedules.lr_sweep import SweepPoint
from ds_pretrain.schedules.lr_trials import Baselines, Trial, last_steps, trial_rates
from ds_pretrain.train.evaluation import Evaluator, full_length_loss
from ds_pretrain.train.setup import Setup, open_loader


class SweepTrainer:
    """Trains as a stage does, with its length, batch and clip, over the first data of the run.

    Args:
        engine: the live engine, wherever it is.
        setup: the prepared run.
        ranks: this process among those of the run.
    """

    def __init__(self, engine: Engine, setup: Setup, ranks: Ranks) -> None:
        self.engine = engine
        self.setup = setup
        self.ranks = ranks
        validation = setup.corpus.validation
        vocab_size = setup.corpus.vocabulary.size
        self.evaluator = (
            Evaluator(validation, setup.recipe, ranks, setup.input_format, vocab_size) if validation else None
        )

    def train(
        self,
        stage: StagePlan,
        rates: Sequence[float],
        is_over: Callable[[Sequence[SweepPoint]], bool],
        skipped_steps: int = 0,
    ) -> list[SweepPoint]:
        """Takes a step at every rate; one that is too high ends nothing: its step is a point like any other.

        Args:
            stage: whose shape to train with.
            rates: learning rate of every step.
            is_over: asked after every step with the points so far, which are alike on every rank.
            skipped_steps: whose rows are passed over.

        Returns:
            A point for every step taken.
        """
        first = self._from_the_start(stage, skipped_steps + len(rates))
        apply_stage(self.engine, first)
        points: list[SweepPoint] = []
        with self._loader(first, skipped_steps) as loader:
            for lr, batch in zip(rates, loader, strict=False):
                set_learning_rate(self.engine, lr)
                result = train_batch(self.engine, batch, batch.target_tokens, lr, Requests())
                bad = is_bad_step(result.loss, result.skipped, result.loss_scale, self.setup.min_loss_scale)
                points.append(SweepPoint(lr, result.loss, bad))
                if is_over(points):
                    break
        return points

    def try_peak(
        self,
        stage: StagePlan,
        peak_lr: float,
        warmup_steps: int,
        show: Callable[[Sequence[SweepPoint]], None],
        repetition: int = 0,
    ) -> Trial:
        """A short training, which ends early only where numbers are not finite.

        Its loss is that of the validation text at the stage's length, where there is one, or of its last steps.

        Args:
            stage: whose shape to train with.
            peak_lr: rate at the end of the warmup.
            warmup_steps: of the trial's steps, the warmup.
            show: told the points so far after every step.
            repetition: how often the rate was tried before; each time sees other rows.
        """

        def is_over(points: Sequence[SweepPoint]) -> bool:
            show(points)
            return points[-1].bad

        steps = self.setup.recipe.lr_finder.trial_steps
        points = self.train(stage, trial_rates(peak_lr, steps, warmup_steps), is_over, repetition * steps)
        loss = math.inf
        if not points[-1].bad:
            last = points[-last_steps(steps) :]
            loss = self._validation_loss(stage, sum(point.loss for point in last) / len(last))
        return Trial(peak_lr, tuple(points), loss if math.isfinite(loss) else math.inf)

    def baselines(self, stage: StagePlan, first_loss: float) -> Baselines:
        """What a trial's loss is compared with, over the same text.

        Knowing how often each token occurs is to know its share among the targets of the whole trial, every token
        counted once more than it occurs.

        Args:
            stage: whose shape is trained with; the engine holds the weights that trials begin with.
            first_loss: loss of these weights on the first batch.

        Returns:
            The losses, alike on every rank.
        """
        steps = self.setup.recipe.lr_finder.trial_steps
        first = self._from_the_start(stage, steps)
        # of all steps, and of the last ones
        counts = np.zeros((2, self.setup.config.vocab_size), dtype=np.int64)
        with self._loader(first) as loader:
            for step, batch in zip(range(steps), loader, strict=False):
                found = _counted(batch.micro_batches, counts.shape[1])
                counts[0] += found
                counts[1] += found * (step >= steps - last_steps(steps))
        if self.evaluator is not None:
            counts[1] = _counted(self.evaluator.micro_batches(stage.seq_len), counts.shape[1])
        seen, told = np.sum(gather_objects(counts, self.ranks), axis=0)
        shares = (seen + 1) / (seen + 1).sum()
        frequencies = float(-(told * np.log(shares)).sum() / told.sum())
        return Baselines(self._validation_loss(stage, first_loss), frequencies)

    def _validation_loss(self, stage: StagePlan, otherwise: float) -> float:
        if self.evaluator is None:
            return otherwise
        return full_length_loss(self.evaluator.evaluate(self.engine, [stage.seq_len]))

    def _from_the_start(self, stage: StagePlan, steps: int) -> StagePlan:
        settings = self.setup.recipe.lr_finder
        # as many steps whatever the rates: rows are shuffled over the whole stage, and every course is to see the same
        steps = max(stage.num_steps, settings.steps + settings.trial_steps, steps)
        return replace(stage, index=0, start_step=0, end_step=steps, start_tokens=0, start_cursor=0)

    def _loader(self, stage: StagePlan, step: int = 0) -> StepLoader:
        return open_loader(self.setup, self.ranks, [stage], step)


def _counted(micro_batches: Iterable[MicroBatch], vocab_size: int) -> NDArray[np.int64]:
    """How often each token is a target."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for micro in micro_batches:
        targets = micro.targets.numpy().reshape(-1).astype(np.int64)
        counts += np.bincount(targets[targets >= 0], minlength=vocab_size)
    return counts
