"""Every optimizer through real engines of one rank: by hand, and against the library's own on a plain model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
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
from ds_pretrain.engine.stage import apply_stage, learning_rates, set_learning_rate
from ds_pretrain.engine.step import Requests, train_batch
from ds_pretrain.errors import RecipeError
from ds_pretrain.model.build import Vocabulary, build_model, model_config
from ds_pretrain.model.groups import ParameterGroup, parameter_groups
from ds_pretrain.model.loss import CausalLmLoss

ROWS, LENGTH = 8, 16
Groups = list[ParameterGroup]


class Subject:
    """A tiny model and its engine, and a plain copy of the model."""

    def __init__(self, zero: int, precision: Precision = "fp32", **optimizer: Any) -> None:
        self.lr = float(optimizer["lr"])
        self.recipe = recipe(
            curriculum={"total_steps": 12, "batch_size": ROWS, "grad_clip": 1e9, "stages": None},
            data={"train": [{"path": "corpus"}], "max_seq_len": LENGTH},
            train={"micro_batch_size": ROWS},
            deepspeed={"zero_stage": zero},
            precision=precision,
            optimizer=optimizer,
        )
        self.stage = build_plan(self.recipe).stages[0]
        document = stage_json(self.recipe, self.stage, precision)
        self.plain = self._module(None)
        self.plain_groups = self._groups(self.plain)
        self.module = self._module(document if zero == 3 else None)
        self.groups = self._groups(self.module)
        self.engine: Engine = build_engine(self.module, self.groups, document, self.recipe.optimizer)

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
        batch = StepBatch(seed, 0, (MicroBatch(*rows(seed)),))
        train_batch(self.engine, batch, self.stage.tokens_per_step, self.lr, Requests())

    def plain_gradient(self, seed: int) -> None:
        self.plain.zero_grad()
        (self.plain(*rows(seed)) / (ROWS * LENGTH)).backward()


def rows(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids, targets = torch.randint(0, 50, (2, ROWS, LENGTH), generator=generator)
    return ids, targets


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_decoupled_decay_and_l2_by_hand(ranks: Ranks, zero: int) -> None:
    """With the first moment alone (beta2 0 keeps |g|), a first step of Adam is lr x sign(g + what is added to it)."""
    settings = {"lr": 0.5, "betas": (0.0, 0.0), "eps": 1e-12, "weight_decay": 0.25}
    name = "model.model.layers.0.mlp.up_proj.weight"
    steps = {}
    for kind in ("adamw", "adam"):
        subject = Subject(zero, type=kind, **settings)
        before = subject.weights()[name]
        if zero < 3:  # drawn alike
            subject.plain_gradient(0)
            gradient = dict(subject.plain.named_parameters())[name].grad
            added = gradient + 0.25 * before
            expected = 0.5 * gradient.sign() + 0.5 * 0.25 * before if kind == "adamw" else 0.5 * added.sign()
            sure = (gradient.abs() > 1e-6) & (added.abs() > 1e-6)
        subject.step(0)
        steps[kind] = before - subject.weights()[name]
        if zero < 3:
            torch.testing.assert_close(steps[kind][sure], expected[sure], atol=1e-5, rtol=0)
    # L2 disappears in the sign; decoupled decay is seen: 0.5 x (1 +- 0.25 w) against 0.5
    assert float((steps["adam"].abs() - 0.5).abs().max()) < 1e-3
    assert float((steps["adamw"].abs() - 0.5).abs().max()) > 1e-3


def plain_lion(groups: Any) -> torch.optim.Optimizer:
    from pytorch_optimizer import Lion

    return Lion(groups, betas=(0.9, 0.95))


def plain_lamb(groups: Any) -> torch.optim.Optimizer:
    from pytorch_optimizer import Lamb

    return Lamb(groups, betas=(0.9, 0.95), eps=1e-8, max_grad_norm=0.0)


def plain_adamw(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)


def plain_adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, betas=(0.9, 0.95), eps=1e-8)


def plain_sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=0.9)


def plain_muon(groups: Any) -> torch.optim.Optimizer:
    from deepspeed.runtime.zero.muon.original_muon import SingleDeviceMuonWithAuxAdam

    for group in groups:
        group["use_muon"] = group["name"] == "muon"
        group.update({"momentum": 0.9} if group["use_muon"] else {"betas": (0.9, 0.95), "eps": 1e-8})
        for key in ("name", "lr_multiplier", "since_stage"):
            del group[key]
    return SingleDeviceMuonWithAuxAdam(groups)


CASES: list[tuple[str, float, Callable[[Any], torch.optim.Optimizer], tuple[int, ...]]] = [
    ("adamw", 1e-2, plain_adamw, (0, 1, 2)),
    ("adam", 1e-2, plain_adam, (0, 1, 2)),
    ("sgd", 1e-1, plain_sgd, (0, 1, 2)),
    ("lion", 1e-3, plain_lion, (0, 1, 2)),
    ("lamb", 1e-2, plain_lamb, (0,)),
    ("muon", 2e-2, plain_muon, (0, 1, 2)),
]


@pytest.mark.parametrize(
    ("kind", "lr", "make", "zero"), [(kind, lr, make, zero) for kind, lr, make, stages in CASES for zero in stages]
)
def test_three_steps_equal_those_of_the_library(
    ranks: Ranks, kind: str, lr: float, make: Callable[[Any], torch.optim.Optimizer], zero: int
) -> None:
    subject = Subject(zero, type=kind, lr=lr)
    library = make([{**group, "lr": lr * group["lr_multiplier"]} for group in subject.plain_groups])
    for seed in range(3):
        subject.step(seed)
        subject.plain_gradient(seed)
        library.step()
    expected = dict(subject.plain.named_parameters())
    for name, weight in subject.weights().items():
        # Muon's orthogonalization runs in bf16, where the order of sums shows
        tolerance = 1e-6 if kind != "muon" else 2e-3
        torch.testing.assert_close(
            weight, expected[name], atol=tolerance, rtol=0, msg=lambda text, name=name: name + text
        )


def test_muon_trains_the_matrices_of_the_layers_alone(ranks: Ranks) -> None:
    subject = Subject(1, type="muon", lr=0.02)
    assert learning_rates(subject.engine).keys() == {"muon", "no_decay"}  # the tied embedding does not decay
    names = {id(parameter): name for name, parameter in subject.module.named_parameters()}
    (muon,) = [group for group in subject.groups if group["name"] == "muon"]
    found = {names[id(parameter)].split(".", 4)[-1] for parameter in muon["params"]}
    assert found == {f"self_attn.{part}_proj.weight" for part in "qkvo"} | {
        f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")
    }
    set_learning_rate(subject.engine, 0.02)
    assert learning_rates(subject.engine) == {"muon": 0.02, "no_decay": pytest.approx(1e-3)}


@pytest.mark.parametrize("kind", ["lion", "muon"])
@pytest.mark.parametrize(("zero", "precision"), [(1, "bf16"), (3, "fp32")])
def test_they_learn_under_other_engines(ranks: Ranks, kind: str, zero: int, precision: Precision) -> None:
    subject = Subject(zero, precision, type=kind, lr=1e-3 if kind == "lion" else 2e-2)

    def loss() -> float:
        with torch.no_grad():
            return float(subject.engine(*rows(0))) / (ROWS * LENGTH)

    before = loss()
    for _ in range(5):
        subject.step(0)
    assert loss() < before - 0.05


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"optimizer": {"type": "sgd", "lr": 1, "eps": 1e-6}},
            "optimizer.eps: does nothing for type sgd; allowed with",
        ),
        ({"optimizer": {"type": "lamb", "lr": 1}}, "deepspeed.zero_stage=0 precision=fp32, or another type"),
        ({"optimizer": {"type": "schedule_free_adamw", "lr": 1}}, "which is not built yet; allowed: adamw, adam, sgd"),
    ],
)
def test_what_does_not_fit_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(**sections)
    assert message in str(caught.value)
