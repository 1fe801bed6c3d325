"""Token files in which the text of chosen steps is garbage."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ds_pretrain.curriculum import StagePlan
from ds_pretrain.data.indexed import bin_path
from ds_pretrain.data.manifest import open_corpus
from ds_pretrain.data.order import RowOrder
from ds_pretrain.data.stream import TokenStream


def poison(corpus: Path, to: Path, stages: Sequence[StagePlan], steps: Iterable[int], seed: int, window: int) -> None:
    """Copies a corpus and overwrites the rows of some steps with rare tokens at random.

    They are of so many kinds that a model that learns them, all alike, stays at 5.5 nats.

    Args:
        corpus: prefix of a token file.
        to: prefix of the copy.
        stages: the plan's.
        steps: steps of the run, from 0, whose rows are overwritten.
        seed: the run's.
        window: its max_seq_len.
    """
    for path in corpus.parent.glob(f"{corpus.name}.*"):
        shutil.copy(path, to.parent / (to.name + path.name.removeprefix(corpus.name)))
    for folder in corpus.parent.glob(f"{corpus.name}-tokenizer"):
        shutil.copytree(folder, to.parent / folder.name, dirs_exist_ok=True)
    tokens, _ = open_corpus(corpus)
    stream, order = TokenStream(tokens.tokens, window, seed), RowOrder(stages, seed)
    poisoned = np.memmap(bin_path(to), dtype=tokens.tokens.dtype, mode="r+")
    rare = np.bincount(np.asarray(tokens.tokens, dtype=np.int64)).argsort()[:250]
    generator = np.random.default_rng(seed)
    for step in steps:
        stage = next(stage for stage in stages if step < stage.end_step)
        _, starts = order.rows(range(step, step + 1), np.arange(stage.rows_per_step))
        for at in stream.locate(starts, stage.seq_len).at:
            poisoned[at : at + stage.seq_len + 1] = generator.choice(rare, stage.seq_len + 1)
    poisoned.flush()
