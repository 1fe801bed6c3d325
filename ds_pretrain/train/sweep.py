"""Optimizer steps on the live engine at given learning rates, from the start of the run's data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ds_pretrain.curriculum import StagePlan
from ds_pretrain.data.loader import StepLoader
from ds_pretrain.engine.build import Engine
from ds_pretrain.engine.ranks import Ranks, gather_objects
from ds_pretrain.engine.stage import apply_stage, set_learning_rate
from ds_pretrain.engine.step import Requests, train_batch
from ds_pretrain.guards import is_bad_step
from ds_pretrain.schedules.lr_sweep import SweepPoint
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

    def train(
        self, stage: StagePlan, rates: Sequence[float], is_over: Callable[[Sequence[SweepPoint]], bool]
    ) -> list[SweepPoint]:
        """Takes a step at every rate; one that is too high ends nothing: its step is a point like any other.

        Args:
            stage: whose shape to train with.
            rates: learning rate of every step.
            is_over: asked after every step with the points so far, which are alike on every rank.

        Returns:
            A point for every step taken.
        """
        first = self._from_the_start(stage, len(rates))
        apply_stage(self.engine, first)
        points: list[SweepPoint] = []
        with self._loader(first) as loader:
            for lr, batch in zip(rates, loader, strict=False):
                set_learning_rate(self.engine, lr)
                result = train_batch(self.engine, batch, first.tokens_per_step, lr, Requests())
                bad = is_bad_step(result.loss, result.skipped, result.loss_scale, self.setup.min_loss_scale)
                points.append(SweepPoint(lr, result.loss, bad))
                if is_over(points):
                    break
        return points

    def frequency_loss(self, stage: StagePlan, steps: int) -> float:
        """What a model would lose that knows how often each token occurs, and nothing else.

        That is the entropy of the tokens' shares among the targets of the first ``steps`` steps, over all ranks.

        Args:
            stage: whose data to count.
            steps: how many of them.

        Returns:
            Nats per token, alike on every rank.
        """
        counts = np.zeros(self.setup.config.vocab_size, dtype=np.int64)
        with self._loader(self._from_the_start(stage, steps)) as loader:
            for _, batch in zip(range(steps), loader, strict=False):
                for micro in batch.micro_batches:
                    targets = micro.targets.numpy().reshape(-1)
                    counts += np.bincount(targets[targets >= 0], minlength=len(counts))
        total = np.sum(gather_objects(counts, self.ranks), axis=0)
        shares = total[total > 0] / total.sum()
        return float(-(shares * np.log(shares)).sum())

    def _from_the_start(self, stage: StagePlan, steps: int) -> StagePlan:
        settings = self.setup.recipe.lr_finder
        # as many steps whatever the rates: rows are shuffled over the whole stage, and every course is to see the same
        steps = max(stage.num_steps, settings.steps + settings.trial_steps, steps)
        return replace(stage, index=0, start_step=0, end_step=steps, start_tokens=0, start_cursor=0)

    def _loader(self, stage: StagePlan) -> StepLoader:
        return open_loader(self.setup, self.ranks, [stage], 0)
