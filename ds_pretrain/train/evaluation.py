"""Validation: the same text at any sequence length, whatever the ranks, so that curves can be compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ds_pretrain.config import Recipe
from ds_pretrain.data.inputs import InputFormat, MicroBatch
from ds_pretrain.data.manifest import open_corpus
from ds_pretrain.data.token_ids import IdLimit
from ds_pretrain.engine.build import Engine
from ds_pretrain.engine.evaluate import mean_loss
from ds_pretrain.engine.ranks import Ranks
from ds_pretrain.errors import DataError
from ds_pretrain.model.loss import IGNORED_TARGET

# keeps what evaluation draws apart from what training does; the draws are the same at every evaluation
_EVALUATION = 1
# exp() of more overflows a float; no model is that surprised
_MAX_EXPONENT = 700.0


# asks something of all ranks at once; what it returns waits for the answer
Question = Callable[[], Callable[[], bool]]


class EvaluationStopped(Exception):
    """An evaluation was given up between two micro batches, on every rank alike."""


class Evaluator:
    """Evaluates on the validation token files of a run.

    Args:
        sources: name and prefix of every token file.
        recipe: the run's recipe: max_seq_len, number of batches, tokens per micro batch.
        ranks: this process among those of the run.
        input_format: what the model is fed.
        vocab_size: what token ids must be below, where no manifest vouches for them.

    Raises:
        DataError: a file holds no window, or a token id beyond the vocabulary among what is evaluated.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, Path]],
        recipe: Recipe,
        ranks: Ranks,
        input_format: InputFormat,
        vocab_size: int,
    ) -> None:
        self._max_seq_len = recipe.data.max_seq_len
        self._micro_tokens = recipe.train.max_tokens_per_micro_batch
        self._ranks = ranks
        self._format = input_format
        self._seed = recipe.run.seed
        self._in_blocks = recipe.data.sequence_mode == "mask"
        per_batch = max(1, self._micro_tokens // self._max_seq_len)
        windows = recipe.evaluation.batches * per_batch
        self._sources = [(name, *_spread(prefix, self._max_seq_len, windows, vocab_size)) for name, prefix in sources]

    def evaluate(
        self, engine: Engine, seq_lens: Sequence[int], give_up: Question = lambda: lambda: False
    ) -> list[dict[str, object]]:
        """Validation lines for metrics, in the order of ``seq_lens``, each length once. Every rank takes part.

        Args:
            engine: the live engine.
            seq_lens: lengths in tokens: the stage's first, the full one last.
            give_up: asked before every micro batch, and its answer read one micro batch later; the answers must be
                alike on every rank.

        Returns:
            seq_len, val_loss (nats per token), val_perplexity and source of every length and source.

        Raises:
            EvaluationStopped: ``give_up`` said so; the engine is as it was.
        """
        lines: list[dict[str, object]] = []
        for seq_len in dict.fromkeys(seq_lens):
            for name, tokens, starts in self._sources:
                loss = mean_loss(engine, _until(give_up, self._micro_batches(tokens, starts, seq_len)))
                lines.append(
                    {
                        "seq_len": seq_len,
                        "val_loss": loss,
                        "val_perplexity": math.exp(min(loss, _MAX_EXPONENT)),
                        "source": name,
                    }
                )
        return lines

    def micro_batches(self, seq_len: int) -> Iterator[MicroBatch]:
        """This rank's share of all that is evaluated at a length."""
        for _, tokens, starts in self._sources:
            yield from self._micro_batches(tokens, starts, seq_len)

    def _micro_batches(
        self, tokens: NDArray[np.generic], windows: NDArray[np.int64], seq_len: int
    ) -> Iterator[MicroBatch]:
        """This rank's rows: every window cut into whole rows, dealt out to the ranks one by one."""
        # as in training, blocks share a row
        row_len = self._max_seq_len if self._in_blocks else seq_len
        offsets = np.arange(0, self._max_seq_len - row_len + 1, row_len)
        rows = (windows[:, None] + offsets).reshape(-1)
        missing = -len(rows) % self._ranks.world_size
        # ZeRO 3 needs equally many passes on every rank: rows are repeated, and not counted
        padded = np.concatenate([rows, np.repeat(rows[:1], missing)])
        mine = slice(self._ranks.rank, None, self._ranks.world_size)
        starts, counted = padded[mine], (np.arange(len(padded)) < len(rows))[mine]
        places = np.arange(len(padded))[mine]
        texts = np.lib.stride_tricks.sliding_window_view(tokens, row_len + 1)
        micro = max(1, self._micro_tokens // row_len)
        for first in range(0, len(starts), micro):
            part = slice(first, first + micro)
            text = texts[starts[part]].astype(np.int64)
            (batch,) = self._format.micro_batches(
                text[:, :-1],
                text[:, 1:],
                np.zeros(len(text), dtype=np.int64),  # rows lie inside windows
                seq_len=seq_len,
                micro_batch_size=len(text),
                places=places[part],
                key=(self._seed, _EVALUATION),
            )
            repeated = torch.from_numpy(np.repeat(~counted[part], row_len // seq_len))
            yield replace(batch, targets=batch.targets.masked_fill(repeated[:, None], IGNORED_TARGET))


def _until(give_up: Question, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatch]:
    """The micro batches up to a yes; before each the answer to the question before it is read, so nothing waits."""
    asked = give_up()
    for micro in micro_batches:
        before, asked = asked, give_up()
        if before():
            asked()
            raise EvaluationStopped
        yield micro
    asked()  # a reduction under way is never left behind


def full_length_loss(lines: Sequence[Mapping[str, Any]]) -> float:
    """The validation loss that decisions follow: at the longest length evaluated, the mean over its sources, in nats.

    Args:
        lines: what ``Evaluator.evaluate`` returned.
    """
    longest = max(line["seq_len"] for line in lines)
    losses = [line["val_loss"] for line in lines if line["seq_len"] == longest]
    return float(sum(losses) / len(losses))


def _spread(
    prefix: Path, max_seq_len: int, windows: int, vocab_size: int
) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """Tokens, and the first positions of up to ``windows`` windows that lie evenly over them."""
    corpus, manifest = open_corpus(prefix)
    available = (corpus.num_tokens - 1) // max_seq_len
    if available < 1:
        raise DataError(
            f"{prefix}: has {corpus.num_tokens} tokens, but one window needs {max_seq_len + 1}; "
            "use more validation text, or a smaller data.max_seq_len"
        )
    count = min(windows, available)
    tokens, starts = np.asarray(corpus.tokens), np.arange(count, dtype=np.int64) * available // count * max_seq_len
    if manifest is None:
        limit = IdLimit(vocab_size, [corpus])
        place = limit.first_beyond(np.lib.stride_tricks.sliding_window_view(tokens, max_seq_len + 1)[starts])
        if place is not None:
            raise limit.error(0, int(starts[place[0]]) + place[1])
    return tokens, starts
