"""A tiny model on an engine beside a plain copy of it that a library's own optimizer trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param
from support import recipe
from torch import Tensor

from ds_pretrain.curriculum import build_plan
from ds_pretrain.data.inputs import MicroBatch
from ds_pretrain.data.loader import StepBatch
from ds_pretrain.engine.build import Engine, build_engine
from ds_pretrain.engine.deepspeed_json import Precision, stage_json
from ds_pretrain.engine.ranks import Ranks
from ds_pretrain.engine.stage import apply_stage, set_learning_rate
from ds_pretrain.engine.step import Requests, train_batch
from ds_pretrain.model.build import Vocabulary, build_model, model_config
from ds_pretrain.model.groups import ParameterGroup, parameter_groups
from ds_pretrain.model.loss import CausalLmLoss

ROWS, LENGTH = 8, 16
# large, so that the order of sums, which differs between engines, does not decide steps of tiny gradients
EPS = 1e-4
Groups = list[ParameterGroup]


class Subject:
    """A tiny model and its engine, and a plain copy of the model."""

    def __init__(self, zero: int, precision: Precision = "fp32", *, ranks: Ranks, **optimizer: Any) -> None:
        self.lr = float(optimizer["lr"])
        self.ranks = ranks
        self.recipe = recipe(
            curriculum={"total_steps": 12, "batch_size": ROWS, "grad_clip": 1e9, "stages": None},
            data={"train": [{"path": "corpus"}], "max_seq_len": LENGTH},
            train={"micro_batch_size": ROWS // ranks.world_size},
            deepspeed={"zero_stage": zero},
            precision=precision,
            optimizer=optimizer,
        )
        self.stage = build_plan(self.recipe, ranks.world_size).stages[0]
        document = stage_json(self.recipe, self.stage, precision)
        self.plain = self._module(None)
        self.plain_groups = self._groups(self.plain)
        self.module = self._module(document if zero == 3 else None)
        self.groups = self._groups(self.module)
        self.engine: Engine = build_engine(self.module, self.groups, document, self.recipe.optimizer)
        # ZeRO 3 draws its weights partition by partition
        self.plain.load_state_dict(self.weights(), strict=False)

    def _module(self, zero3_config: dict[str, Any] | None) -> CausalLmLoss:
        torch.manual_seed(0)
        config = model_config(self.recipe.model, Vocabulary(50, 3), LENGTH)
        return CausalLmLoss(build_model(self.recipe.model, config, zero3_config=zero3_config), 1 << 30)

    def _groups(self, module: CausalLmLoss) -> Groups:
        return parameter_groups(module.model, self.recipe.optimizer, self.recipe.param_groups)

    def weights(self) -> dict[str, Tensor]:
        sharded = self.engine.zero_optimization()
        return {
            name: (safe_get_full_fp32_param(parameter) if sharded else parameter).detach().clone()
            for name, parameter in self.module.named_parameters()
        }

    def step(self, seed: int) -> None:
        apply_stage(self.engine, self.stage)
        set_learning_rate(self.engine, self.lr)
        share = ROWS // self.ranks.world_size
        mine = slice(self.ranks.rank * share, (self.ranks.rank + 1) * share)
        batch = StepBatch(seed, 0, (MicroBatch(*(part[mine] for part in rows(seed))),), self.stage.tokens_per_step)
        train_batch(self.engine, batch, self.stage.tokens_per_step, self.lr, Requests())

    def plain_gradient(self, seed: int) -> None:
        self.plain.zero_grad()
        (self.plain(*rows(seed)) / (ROWS * LENGTH)).backward()


def rows(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids, targets = torch.randint(0, 50, (2, ROWS, LENGTH), generator=generator)
    return ids, targets


def plain_lion(groups: Any) -> torch.optim.Optimizer:
    from pytorch_optimizer import Lion

    return Lion(groups, betas=(0.9, 0.95))


def plain_lamb(groups: Any) -> torch.optim.Optimizer:
    from pytorch_optimizer import Lamb

    return Lamb(groups, betas=(0.9, 0.95), eps=EPS, max_grad_norm=0.0)


def plain_adamw(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=EPS)


def plain_adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, betas=(0.9, 0.95), eps=EPS)


def plain_sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=0.9)


def plain_muon(groups: Any) -> torch.optim.Optimizer:
    from deepspeed.runtime.zero.muon.original_muon import SingleDeviceMuonWithAuxAdam

    for group in groups:
        group["use_muon"] = group["name"] == "muon"
        group.update({"momentum": 0.9} if group["use_muon"] else {"betas": (0.9, 0.95), "eps": EPS})
        for key in ("name", "lr_multiplier", "since_stage"):
            del group[key]
    return SingleDeviceMuonWithAuxAdam(groups)


# learning rate, the library's own, ZeRO stages
CASES: dict[str, tuple[float, Callable[[Any], torch.optim.Optimizer], tuple[int, ...]]] = {
    "adamw": (1e-2, plain_adamw, (0, 1, 2, 3)),
    "adam": (1e-2, plain_adam, (0, 1, 2, 3)),
    "sgd": (1e-1, plain_sgd, (0, 1, 2, 3)),
    "lion": (1e-3, plain_lion, (0, 1, 2, 3)),
    "lamb": (1e-2, plain_lamb, (0,)),
    "muon": (2e-2, plain_muon, (0, 1, 2, 3)),
}
EVERY_CASE = [(kind, zero) for kind, (_, _, stages) in CASES.items() for zero in stages]


def steps_of_both(kind: str, zero: int, ranks: Ranks) -> dict[str, int]:
    """Takes three steps on the engine and by the library.

    Returns:
        For every parameter, how many of its numbers are further from the library's than rounding takes them.
    """
    lr, make, _ = CASES[kind]
    eps = {} if kind in ("sgd", "lion") else {"eps": EPS}
    subject = Subject(zero, ranks=ranks, type=kind, lr=lr, **eps)
    library = make([{**group, "lr": lr * group["lr_multiplier"]} for group in subject.plain_groups])
    before = {name: weight.clone() for name, weight in subject.plain.state_dict().items()}
    for seed in range(3):
        subject.step(seed)
        subject.plain_gradient(seed)
        library.step()
    expected = dict(subject.plain.named_parameters())
    assert all(bool((expected[name] != before[name]).any()) for name in expected)
    # Muon's orthogonalization may run in bf16, where the order of sums shows
    near = 2e-3 if kind == "muon" else 2e-6
    return {name: int(((weight - expected[name]).abs() > near).sum()) for name, weight in subject.weights().items()}


def may_differ(kind: str) -> int:
    """How many of all numbers may: Lion steps by a sign, which rounding may turn where it is of almost nothing."""
    return 5 if kind == "lion" else 0
