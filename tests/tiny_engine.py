"""A tiny model on a real engine of one rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from support import recipe

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum import StagePlan, build_plan
from ds_pretrain.data.inputs import MicroBatch
from ds_pretrain.data.loader import StepBatch
from ds_pretrain.engine.build import Engine, build_engine
from ds_pretrain.engine.carry import collect_state, own_storage, put_state, release
from ds_pretrain.engine.deepspeed_json import Precision, stage_json
from ds_pretrain.engine.ranks import Ranks
from ds_pretrain.engine.stage import apply_stage, set_learning_rate
from ds_pretrain.engine.step import Requests, train_batch
from ds_pretrain.model.build import Vocabulary, build_model, model_config
from ds_pretrain.model.groups import ParameterGroup, parameter_groups
from ds_pretrain.model.loss import CausalLmLoss

LR = 1e-2


class Subject:
    """A tiny model on an engine that can be replaced."""

    def __init__(self, zero: int, precision: Precision, ranks: Ranks, **optimizer: object) -> None:
        self.ranks = ranks
        self.recipe: Recipe = recipe(
            curriculum={"total_steps": 12, "batch_size": 8},
            train={"micro_batch_size": 4},
            deepspeed={"zero_stage": zero},
            optimizer={"lr": LR, **optimizer},
        )
        self.stage: StagePlan = build_plan(self.recipe).stages[0]
        self.document = stage_json(self.recipe, self.stage, precision)
        torch.manual_seed(0)
        config = model_config(self.recipe.model, Vocabulary(50, 3), 64)
        model = build_model(self.recipe.model, config, zero3_config=self.document if zero == 3 else None)
        self.module = CausalLmLoss(model, 1 << 30)
        self.engine: Engine = build_engine(self.module, self.groups(), self.document)

    def groups(self) -> list[ParameterGroup]:
        return parameter_groups(self.module.model, self.recipe.optimizer, self.recipe.param_groups)

    def replace(self, frozen: Sequence[str] = ()) -> None:
        state = collect_state(self.engine, self.groups(), self.ranks)
        release(self.engine)
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(not any(part in name for part in frozen))
        own_storage(self.module)
        self.engine = build_engine(self.module, self.groups(), self.document)
        put_state(self.engine, self.groups(), state, self.ranks)

    def step(self, seed: int) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(seed)
        shape = (2, self.stage.batch_size, self.stage.seq_len)
        ids, targets = torch.randint(0, 50, shape, generator=generator).split(1)
        parts = [MicroBatch(ids[0, at : at + 4], targets[0, at : at + 4]) for at in range(0, self.stage.batch_size, 4)]
        apply_stage(self.engine, self.stage)
        set_learning_rate(self.engine, LR)
        batch = StepBatch(seed, 0, tuple(parts), self.stage.tokens_per_step)
        result = train_batch(self.engine, batch, self.stage.tokens_per_step, LR, Requests())
        return result.loss, result.grad_norm
