"""Variance over batches of the gradient at 64 tokens: our rows, rows drawn at random, and neighbours kept together.

    python benchmarks/gradient_variance.py

On the quickstart's model, corpus and first stage (64 rows of 64 tokens). Three layouts of a batch:

- ours: the rows that the loader gives for a step;
- random: rows drawn uniformly from the whole corpus, the reference;
- neighbours: the shuffled windows cut in order, so that the eight rows of one window travel together.

Every batch is independent of the others: seed and step are drawn anew. The variance is the trace of the gradient's
covariance, sum |g - mean|^2 / (batches - 1), relative to that of random rows; its standard error is the jackknife's.
It is measured with the weights as initialised, and after some steps of plain AdamW on our rows.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from small_run import QUICKSTART, ROOT

from ds_pretrain.config import load_recipe
from ds_pretrain.curriculum import build_plan
from ds_pretrain.curriculum.plan import StagePlan
from ds_pretrain.data.loader import step_batch
from ds_pretrain.data.manifest import open_corpus
from ds_pretrain.data.stream import TokenStream
from ds_pretrain.model.build import build_model, model_config
from ds_pretrain.model.loss import CausalLmLoss
from ds_pretrain.train.corpus import resolve_corpus

Rows = tuple[torch.Tensor, torch.Tensor]
SEED = 1


class Layouts:
    """Batches of the stage's shape in three layouts.

    Args:
        tokens: the corpus.
        max_seq_len: positions of a window.
        stage: the stage that says length, batch and steps.
    """

    def __init__(self, tokens: NDArray[np.generic], max_seq_len: int, stage: StagePlan) -> None:
        self.tokens, self.max_seq_len, self.stage = tokens, max_seq_len, stage
        self.random = np.random.default_rng(SEED)

    def ours(self) -> Rows:
        """A step of the stage in a run of some seed."""
        seed, step = int(self.random.integers(1 << 31)), int(self.random.integers(self.stage.num_steps))
        batch = step_batch(self._stream(seed), [self.stage], step, seed=seed)
        parts = batch.micro_batches
        return torch.cat([part.input_ids for part in parts]).long(), torch.cat([part.targets for part in parts]).long()

    def uniform(self) -> Rows:
        """Rows from anywhere in the corpus."""
        stream = self._stream(0)
        rows = self.random.choice(
            stream.positions_per_epoch // self.stage.seq_len, self.stage.batch_size, replace=False
        )
        return self._read(stream, rows * self.stage.seq_len)

    def neighbours(self) -> Rows:
        """A step's positions cut in order."""
        seed, step = int(self.random.integers(1 << 31)), int(self.random.integers(self.stage.num_steps))
        rows = np.arange(self.stage.batch_size) * self.stage.seq_len
        return self._read(self._stream(seed), self.stage.cursor_before(self.stage.start_step + step) + rows)

    def _stream(self, seed: int) -> TokenStream:
        return TokenStream(self.tokens, self.max_seq_len, seed)

    def _read(self, stream: TokenStream, starts: NDArray[np.int64]) -> Rows:
        inputs, targets = stream.read(starts, self.stage.seq_len)
        return torch.from_numpy(inputs).long(), torch.from_numpy(targets).long()


def gradient(module: CausalLmLoss, rows: Rows) -> torch.Tensor:
    """Gradient of the mean loss, shape [parameters]."""
    module.zero_grad()
    (module(*rows) / rows[1].numel()).backward()
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None])


def variance(gradients: torch.Tensor) -> tuple[float, float]:
    """Trace of the covariance and its standard error; gradients [batches, parameters]."""
    count = len(gradients)
    centred = gradients - gradients.mean(dim=0)
    squares = centred.square().sum(dim=1).double()
    total = squares.sum()
    # without batch i: total - |d_i|^2 n / (n - 1), over n - 2 degrees of freedom
    without = (total - squares * count / (count - 1)) / (count - 2)
    error = ((count - 1) / count * (without - without.mean()).square().sum()).sqrt()
    return float(total / (count - 1)), float(error)


def measure(module: CausalLmLoss, layouts: Sequence[tuple[str, Callable[[], Rows]]], batches: int, when: str) -> None:
    """Prints the lines of one set of weights."""
    reference = 0.0
    for name, draw in layouts:
        gradients = torch.stack([gradient(module, draw()) for _ in range(batches)])
        value, error = variance(gradients)
        reference = reference or value
        print(
            f"{when:>10}{name:>12}{float(gradients.mean(dim=0).norm()):11.4f}{value:13.5f} +- {error:.5f}"
            f"{value / reference:10.3f}",
            flush=True,
        )


def main() -> None:
    """Measures at both sets of weights and prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    recipe = load_recipe([QUICKSTART])
    corpus = resolve_corpus(recipe)
    stage = build_plan(recipe).stages[0]
    model = build_model(recipe.model, model_config(recipe.model, corpus.vocabulary, recipe.data.max_seq_len))
    module = CausalLmLoss(model, recipe.model.max_logits_bytes)
    layouts = Layouts(open_corpus(corpus.train[0][1])[0].tokens, recipe.data.max_seq_len, stage)
    table = [("random", layouts.uniform), ("ours", layouts.ours), ("neighbours", layouts.neighbours)]
    print(
        f"{stage.batch_size} rows of {stage.seq_len}, a stage of {stage.num_steps} steps, {arguments.batches} batches"
    )
    print(f"{'after':>10}{'rows':>12}{'|mean|':>11}{'variance':>13}{'':12}{'over random':>11}")
    measure(module, table, arguments.batches, "0 steps")
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.optimizer.lr, betas=recipe.optimizer.betas)
    for _ in range(arguments.steps):
        gradient(module, layouts.ours())
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    measure(module, table, arguments.batches, f"{arguments.steps} steps")


if __name__ == "__main__":
    main()
