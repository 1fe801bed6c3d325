"""The very text that a run trains on at a step, so that a spike can be traced to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum import build_plan
from ds_pretrain.data.indexed import TokenFile
from ds_pretrain.data.loader import BatchReader
from ds_pretrain.data.positions import epoch_positions
from ds_pretrain.data.stream import TokenStream
from ds_pretrain.data.tokenizer import load_tokenizer
from ds_pretrain.errors import UserError
from ds_pretrain.train.corpus import resolve_corpus
from ds_pretrain.train.history import read_history
from ds_pretrain.train.run_folder import run_folder


@dataclass(frozen=True)
class SampledRow:
    """One row of a batch.

    Args:
        rank: whose it is.
        row: its number among the rank's rows of the step, micro batch after micro batch.
        stage: index of the step's stage.
        source: name of its source.
        document: number of the document in which it begins, from 0.
        token: number of its first token in the source's file, from 0.
        text: its inputs, decoded.
    """

    rank: int
    row: int
    stage: int
    source: str
    document: int
    token: int
    text: str


def sample_step(recipe: Recipe, step: int, rank: int | None = None, world_size: int | None = None) -> list[SampledRow]:
    """The rows of one step, as the run of the recipe reads them; its rollbacks so far are taken into account.

    Args:
        recipe: a checked recipe.
        step: as metrics count it, from 1.
        rank: the one to show; all unless given.
        world_size: ranks of the run; as many as the run's folder says, else 1, unless given.

    Returns:
        Rank after rank, in the order in which they are trained on.

    Raises:
        UserError: the run has no such step or rank, files of its folder are damaged, or it has no tokenizer to decode
            with.
    """
    folder = run_folder(recipe)
    ranks = world_size or _ranks_of(folder)
    corpus = resolve_corpus(recipe)
    lengths = [epoch_positions(prefix, recipe.data.max_seq_len) for _, prefix in corpus.train]
    plan = build_plan(recipe, ranks, sum(lengths))
    if not 1 <= step <= plan.total_steps:
        raise UserError(f"--step: found {step}; allowed: 1 to {plan.total_steps}, as metrics.jsonl counts them")
    if rank is not None and not 0 <= rank < ranks:
        raise UserError(f"--rank: found {rank}; allowed: 0 to {ranks - 1}, or another --world-size")
    if corpus.tokenizer is None:
        raise UserError("the corpus names no tokenizer to decode its text with; set tokenizer.path")
    tokenizer = load_tokenizer(corpus.tokenizer)
    files = [TokenFile.open(prefix) for _, prefix in corpus.train]
    streams = [TokenStream(file.tokens, recipe.data.max_seq_len, recipe.run.seed) for file in files]
    skips = read_history(folder).skips
    stage = plan.stage_at(step - 1)

    def rows(of: int) -> Iterator[SampledRow]:
        reader = BatchReader(
            streams, plan.stages, seed=recipe.run.seed, rank=of, data_parallel_size=plan.data_parallel_size, skips=skips
        )
        for row, (source, start) in enumerate(zip(*reader.find(range(step - 1, step)), strict=True)):
            places = streams[source].locate(start[None], stage.seq_len * stage.blocks_per_row)
            inputs, _ = streams[source].read_places(places, stage.seq_len * stage.blocks_per_row)
            token = int(places.at[0])
            text = tokenizer.decode(inputs[0].tolist())
            name = corpus.train[source][0]
            yield SampledRow(of, row, stage.index, name, files[source].document_at(token), token, text)

    return [row for of in ([rank] if rank is not None else range(ranks)) for row in rows(of)]


def _ranks_of(folder: Path) -> int:
    """As the plan in the run's folder says; 1 where there is none."""
    path = folder / "plan.json"
    if not path.is_file():
        return 1
    try:
        ranks = json.loads(path.read_text(encoding="utf-8"))["world_size"]
        if not isinstance(ranks, int) or ranks < 1:
            raise ValueError(f"world_size is {ranks!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: does not say the number of ranks ({error}); give --world-size") from error
    return ranks
