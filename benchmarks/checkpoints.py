"""How long the loop is held up by a checkpoint, asynchronous against synchronous, paired in one run.

    python benchmarks/checkpoints.py [--hidden 384] [--layers 6] [--saves 8] [--steps 3]

A Llama on one rank's real DeepSpeed engine; the two kinds of saves take turns, so that both meet the same disk and the
same neighbours. A synchronous save holds the loop for as long as it takes. An asynchronous one holds it while the state
is copied, and again while it is made visible; both are counted, and so is what the steps lose that are taken while it
is written, against the steps that are taken while nothing is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from ds_pretrain.config import parse_recipe
from ds_pretrain.curriculum import build_plan
from ds_pretrain.data.inputs import MicroBatch
from ds_pretrain.data.loader import StepBatch
from ds_pretrain.engine.build import Engine, build_engine
from ds_pretrain.engine.checkpoint_files import delete_checkpoint
from ds_pretrain.engine.checkpoint_writer import CheckpointWriter
from ds_pretrain.engine.deepspeed_json import stage_json
from ds_pretrain.engine.ranks import Ranks, start_ranks, stop_ranks
from ds_pretrain.engine.stage import apply_stage, set_learning_rate
from ds_pretrain.engine.step import Requests, train_batch
from ds_pretrain.model.build import Vocabulary, build_model, model_config
from ds_pretrain.model.groups import parameter_groups
from ds_pretrain.model.loss import CausalLmLoss

LR = 1e-3
ROWS, LENGTH, VOCABULARY = 4, 64, 8192


class Subject:
    """A model on a real engine, and a step to take with it."""

    def __init__(self, hidden: int, layers: int) -> None:
        config = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers,
                  "num_attention_heads": 8, "num_key_value_heads": 8}  # fmt: skip
        recipe = parse_recipe(
            {
                "model": {"architecture": "llama", "config": config},
                "data": {"train": "none", "max_seq_len": LENGTH},
                "curriculum": {"total_steps": 1000, "batch_size": ROWS},
                "optimizer": {"lr": LR},
                "precision": "fp32",
            }
        )
        self.stage = build_plan(recipe).stages[0]
        model = build_model(recipe.model, model_config(recipe.model, Vocabulary(VOCABULARY, 0), LENGTH))
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        module = CausalLmLoss(model, recipe.model.max_logits_bytes)
        groups = parameter_groups(model, recipe.optimizer, recipe.param_groups)
        self.engine: Engine = build_engine(module, groups, stage_json(recipe, self.stage, "fp32"))
        ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
        size = self.stage.micro_batch_size
        self.batch = StepBatch(0, 0, tuple(MicroBatch(part, part) for part in torch.split(ids, size)), ids.numel())

    def step(self) -> float:
        """Seconds of a step."""
        began = time.perf_counter()
        apply_stage(self.engine, self.stage)
        set_learning_rate(self.engine, LR)
        train_batch(self.engine, self.batch, self.stage.tokens_per_step, LR, Requests())
        return time.perf_counter() - began


def measure(subject: Subject, ranks: Ranks, saves: int, steps: int, folder: Path) -> None:
    """Takes turns and prints what came out."""
    writers = {
        name: CheckpointWriter(folder, ranks, name == "asynchronous") for name in ("synchronous", "asynchronous")
    }
    held: dict[str, list[float]] = {name: [] for name in writers}
    alone: list[float] = []
    meanwhile: list[float] = []
    written: list[float] = []
    for turn in range(saves + 1):
        for name, writer in writers.items():
            alone += [subject.step() for _ in range(steps)]
            began = time.perf_counter()
            writer.start(subject.engine, {"step": 1 + turn})
            hold = time.perf_counter() - began
            beside = []
            while writer.writing:
                beside.append(subject.step())
            until = time.perf_counter() - began
            finishing = time.perf_counter()
            saved = writer.finish()
            hold += time.perf_counter() - finishing
            size = sum(path.stat().st_size for path in saved.rglob("*"))
            delete_checkpoint(saved)
            if turn == 0:
                print(f"the first {name} save, whose memory is new: held up for {hold:.2f} s", flush=True)
                continue
            held[name].append(hold)
            if name == "asynchronous":
                meanwhile += beside
                written.append(until)
    pairs = [a / s for a, s in zip(held["asynchronous"], held["synchronous"], strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4)
    print(f"{subject.parameters / 1e6:.1f} M parameters, {size / 1e6:.0f} MB a checkpoint, {saves} pairs")
    for name, seconds in held.items():
        print(f"{name}: held up for {statistics.median(seconds):.3f} s (median)")
    print(f"asynchronous over synchronous: {middle:.3f} ({low:.3f} to {high:.3f})")
    slow = statistics.median(meanwhile) / statistics.median(alone)
    print(
        f"written in {statistics.median(written):.2f} s; a step takes {1e3 * statistics.median(alone):.0f} ms alone, "
        f"{1e3 * statistics.median(meanwhile):.0f} ms meanwhile ({slow:.2f} times)"
    )


def main() -> None:
    """Builds the engine on one rank and measures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--saves", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to save; a temporary folder unless given")
    arguments = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", "0")  # one rank, without a launcher
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ranks = start_ranks(600.0)
    subject = Subject(arguments.hidden, arguments.layers)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        measure(subject, ranks, arguments.saves, arguments.steps, Path(name))
    stop_ranks()


if __name__ == "__main__":
    main()
