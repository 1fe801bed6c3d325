"""What several ranks have to show of engines alone, without a run around them.

``on_ranks.py RESULTS.json``, started on every rank. Every optimizer takes steps beside its
library's own, and layers are unfrozen; rank 0 writes what came of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from optimizer_subjects import EVERY_CASE, rows, steps_of_both
from support import recipe
from torch import Tensor

from ds_pretrain.curriculum import build_plan
from ds_pretrain.data.inputs import MicroBatch
from ds_pretrain.data.loader import StepBatch
from ds_pretrain.engine.build import Engine
from ds_pretrain.engine.carry import link_moments
from ds_pretrain.engine.deepspeed_json import stage_json
from ds_pretrain.engine.ranks import Ranks, start_ranks, stop_ranks
from ds_pretrain.engine.stage import apply_stage, set_learning_rate
from ds_pretrain.engine.step import Requests, train_batch
from ds_pretrain.model.build import Vocabulary, build_model, model_config
from ds_pretrain.model.loss import CausalLmLoss
from ds_pretrain.train.unfreezing import TrainedLayers

MOMENTS = ("exp_avg", "exp_avg_sq")
# the top layer, then both, then everything
STAGES = [{"step": 0, "trainable_layers": 1}, {"step": 3, "trainable_layers": 2}, {"step": 6}]
UNFREEZING = (1, 2, 3)


def remembered(engine: Engine) -> dict[str, dict[str, Tensor]]:
    """Master weight and moments of every parameter in training, put together from all ranks."""
    link_moments(engine)
    found: dict[str, dict[str, Tensor]] = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        values = {"weight": safe_get_full_fp32_param(parameter)}
        values |= {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        found[name] = {key: value.clone() for key, value in values.items()}
    return found


def unfrozen(zero: int, ranks: Ranks) -> list[dict[str, Any]]:
    """Trains through the stages; what became of the parameters that stay trained at each change."""
    made = recipe(
        curriculum={"total_steps": 9, "batch_size": 8, "stages": STAGES},
        data={"train": [{"path": "corpus"}], "max_seq_len": 16},
        train={"micro_batch_size": 4},
        deepspeed={"zero_stage": zero},
        optimizer={"lr": 1e-2},
    )
    plan = build_plan(made, ranks.world_size)
    torch.manual_seed(0)
    document = stage_json(made, plan.stages[0], "fp32")
    config = model_config(made.model, Vocabulary(50, 3), 16)
    model = build_model(made.model, config, zero3_config=document if zero == 3 else None)
    layers = TrainedLayers(made, plan, "fp32", CausalLmLoss(model, 1 << 30), ranks)
    engine, trained = layers.build(plan.stages[0]), plan.stages[0]
    changes = []
    for step in range(9):
        stage = plan.stage_at(step)
        if stage is not trained:
            before = remembered(engine)
            engine = layers.change(engine, trained, stage)
            trained = stage
            after = remembered_if_known(engine, set(before))
            pairs = [(before[name][key], after[name][key]) for name in before for key in before[name]]
            changes.append(
                {
                    "stay": sorted(before),
                    "to_the_bit": all(torch.equal(old, new) for old, new in pairs),
                    "not_zero": all(bool(old.any()) for old, _ in pairs),
                    "groups": [group["name"] for group in engine.basic_optimizer.param_groups],
                }
            )
        apply_stage(engine, stage)
        set_learning_rate(engine, 1e-2)
        mine = slice(ranks.rank * 4, ranks.rank * 4 + 4)
        batch = StepBatch(step, stage.index, (MicroBatch(*(part[mine] for part in rows(step))),), stage.tokens_per_step)
        train_batch(engine, batch, stage.tokens_per_step, 1e-2, Requests())
    return changes


def remembered_if_known(engine: Engine, names: set[str]) -> dict[str, dict[str, Tensor]]:
    """As ``remembered``, of some parameters: those just unfrozen have no moments yet."""
    fresh = [parameter for name, parameter in engine.module.named_parameters() if name not in names]
    asked = [parameter for parameter in fresh if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    found = remembered(engine)
    for parameter in asked:
        parameter.requires_grad_(True)
    return found


def main() -> None:
    ranks = start_ranks(120.0)
    torch.set_num_threads(1)
    results: dict[str, Any] = {"library": {}, "unfreezing": {}}
    for kind, zero in EVERY_CASE:
        results["library"][f"{kind}-{zero}"] = steps_of_both(kind, zero, ranks)
    for zero in UNFREEZING:
        results["unfreezing"][str(zero)] = unfrozen(zero, ranks)
    if ranks.is_main:
        Path(sys.argv[-1]).write_text(json.dumps(results), encoding="utf-8")
    stop_ranks()


if __name__ == "__main__":
    main()
