"""A hand-written DeepSpeed loop over batches that are ready in memory: what ``throughput.py`` compares with.

Started by it on every rank: bare_loop.py --recipe FILE --recipe FILE --seconds FILE. Rank 0 writes the seconds of every
step, a line each. The model, its loss, the parameter groups and DeepSpeed's JSON are those of the recipes' first stage.
"""

from __future__ import annotations

import argparse
import time
from itertools import cycle
from pathlib import Path

import deepspeed
import torch

from ds_pretrain.config import load_recipe
from ds_pretrain.curriculum import build_plan
from ds_pretrain.data.loader import step_batch
from ds_pretrain.data.manifest import open_corpus
from ds_pretrain.data.stream import TokenStream
from ds_pretrain.engine.deepspeed_json import stage_json
from ds_pretrain.engine.ranks import device_precision, seed_rank, start_ranks
from ds_pretrain.model.build import build_model, model_config
from ds_pretrain.model.groups import parameter_groups
from ds_pretrain.model.loss import CausalLmLoss
from ds_pretrain.observe.logs import quiet_libraries
from ds_pretrain.train.corpus import resolve_corpus

READY_BATCHES = 32


def main() -> None:
    """Trains for ever, until it is ended from outside."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", type=Path, action="append", required=True)
    parser.add_argument("--seconds", type=Path, required=True)
    parser.add_argument("--local_rank", type=int, default=0)
    arguments = parser.parse_args()

    recipe = load_recipe(arguments.recipe)
    ranks = start_ranks(recipe.deepspeed.communication_timeout_seconds)
    quiet_libraries(None)
    corpus = resolve_corpus(recipe)
    stage = build_plan(recipe, ranks.world_size).stages[0]
    seed_rank(recipe, 0)
    model = build_model(recipe.model, model_config(recipe.model, corpus.vocabulary, recipe.data.max_seq_len))
    module = CausalLmLoss(model, recipe.model.max_logits_bytes)
    groups = parameter_groups(model, recipe.optimizer, recipe.param_groups)
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=groups,
        config=stage_json(recipe, stage, device_precision(recipe.precision)),
    )
    stream = TokenStream(open_corpus(corpus.train[0][1])[0].tokens, recipe.data.max_seq_len, recipe.run.seed)
    steps = [
        step_batch(
            stream, [stage], step, seed=recipe.run.seed, rank=ranks.rank, data_parallel_size=ranks.world_size
        ).micro_batches
        for step in range(READY_BATCHES)
    ]
    moved = [[part.to(engine.device) for part in step] for step in steps]
    ready = [[(part.input_ids, part.targets) for part in step] for step in moved]

    with arguments.seconds.open("w", buffering=1, encoding="utf-8") as seconds:
        for micro_batches in cycle(ready):
            began = time.monotonic()
            total = torch.zeros((), device=engine.device)
            for input_ids, targets in micro_batches:
                loss = engine(input_ids, targets) / input_ids.numel()
                engine.backward(loss)
                engine.step()
                total += loss.detach()
            total.item()
            if ranks.is_main:
                seconds.write(f"{time.monotonic() - began}\n")


if __name__ == "__main__":
    main()
