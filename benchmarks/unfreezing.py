"""What frozen layers save: optimizer memory and backward time, by the number of layers that are trained.

    python benchmarks/unfreezing.py [--zero 1] [--seq-len 256] [--rounds 5]

The quickstart's model on one rank. One run changes its trained layers again and again, as it does between stages, and
takes some steps with each number in turn, so that whatever else the machine does falls on all alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict

import torch
from small_run import QUICKSTART, ROOT

from ds_pretrain.config import load_recipe
from ds_pretrain.curriculum import StagePlan, build_plan
from ds_pretrain.engine.build import Engine
from ds_pretrain.engine.carry import partitions
from ds_pretrain.engine.deepspeed_json import stage_json
from ds_pretrain.engine.ranks import device_precision, start_ranks
from ds_pretrain.engine.stage import apply_stage, set_learning_rate
from ds_pretrain.model.build import Vocabulary, build_model, model_config
from ds_pretrain.model.loss import CausalLmLoss
from ds_pretrain.train.unfreezing import TrainedLayers

LAYERS = (0, 1, 2, 3, None)
WARM_STEPS, STEPS = 2, 5


def timed_step(engine: Engine, stage: StagePlan, ids: torch.Tensor) -> tuple[float, float, float]:
    """Seconds of forward, backward and update of one micro batch."""
    apply_stage(engine, stage)
    set_learning_rate(engine, 1e-4)
    engine.set_gradient_accumulation_boundary(True)
    began = time.perf_counter()
    loss = engine(ids, ids) / ids.numel()
    middle = time.perf_counter()
    engine.backward(loss, scale_wrt_gas=False)
    late = time.perf_counter()
    engine.step()
    return middle - began, late - middle, time.perf_counter() - late


def optimizer_bytes(engine: Engine) -> int:
    """Master weights and optimizer state."""
    optimizer = engine.basic_optimizer
    masters = [part for index in range(len(optimizer.param_groups)) for part in partitions(engine, index)]
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(part.numel() * part.element_size() for part in (*masters, *states))


def main() -> None:
    """Measures and prints a table, a line for every number of trained layers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--zero", type=int, choices=(1, 2, 3), default=1)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    for name in ("LOCAL_RANK", "MASTER_PORT"):  # as a launcher would; port 0 is any free one
        os.environ.setdefault(name, "0")
    stages = [
        {"step": step, "seq_len": arguments.seq_len, "batch_size": 8, "micro_batch_size": 8, "trainable_layers": layers}
        for step, layers in enumerate(LAYERS * arguments.rounds)
    ]
    overrides = [
        f"curriculum.total_steps={len(stages)}",
        "schedule.warmup={steps: 0}",
        f"curriculum.stages={stages}",
        f"deepspeed.zero_stage={arguments.zero}",
    ]
    recipe = load_recipe([QUICKSTART], [text.replace("None", "null") for text in overrides])
    ranks = start_ranks(60.0)
    plan = build_plan(recipe)
    vocabulary = Vocabulary(4096)
    precision = device_precision(recipe.precision)
    config = model_config(recipe.model, vocabulary, recipe.data.max_seq_len)
    partitioned = stage_json(recipe, plan.stages[0], precision) if arguments.zero == 3 else None
    module = CausalLmLoss(build_model(recipe.model, config, zero3_config=partitioned), recipe.model.max_logits_bytes)
    layers = TrainedLayers(recipe, plan, precision, module, ranks)
    engine = layers.build(plan.stages[0])
    ids = torch.randint(0, vocabulary.size, (8, arguments.seq_len))
    seconds: dict[int | None, list[tuple[float, float, float]]] = defaultdict(list)
    memory: dict[int | None, int] = {}
    changes = []
    for before, stage in zip((plan.stages[0], *plan.stages), plan.stages, strict=False):
        began = time.perf_counter()
        engine = layers.change(engine, before, stage)
        changes.append(time.perf_counter() - began)
        found = [timed_step(engine, stage, ids) for _ in range(WARM_STEPS + STEPS)]
        seconds[stage.trainable_layers] += found[WARM_STEPS:]
        memory[stage.trainable_layers] = optimizer_bytes(engine)
    whole = [statistics.median(values) for values in zip(*seconds[None], strict=True)]
    change = statistics.median(changes[1:]) * 1e3
    print(f"ZeRO {arguments.zero}, 8 x {arguments.seq_len} tokens a step; a change of layers took {change:.0f} ms")
    print("trained layers  optimizer MB  of all  forward  backward  update  step (of all)")
    for number in LAYERS:
        medians = [statistics.median(values) for values in zip(*seconds[number], strict=True)]
        shares = [own / other for own, other in zip(medians, whole, strict=True)]
        name = "all" if number is None else str(number)
        print(
            f"{name:>14}{memory[number] / 1e6:14.1f}{memory[number] / memory[None]:8.2f}"
            + "".join(f"{share:9.2f}" for share in shares)
            + f"{sum(medians) / sum(whole):9.2f}"
        )


if __name__ == "__main__":
    main()
