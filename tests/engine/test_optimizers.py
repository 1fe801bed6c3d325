"""Every optimizer through real engines of one rank: by hand, and against the library's own on a plain model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optimizer_subjects import EVERY_CASE, LENGTH, ROWS, Subject, may_differ, rows, steps_of_both
from support import recipe

from ds_pretrain.engine.carry import partitions
from ds_pretrain.engine.deepspeed_json import Precision
from ds_pretrain.engine.ranks import Ranks
from ds_pretrain.engine.stage import applied_momentum, learning_rates, set_learning_rate, set_momentum
from ds_pretrain.errors import RecipeError


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_decoupled_decay_and_l2_by_hand(ranks: Ranks, zero: int) -> None:
    """With the first moment alone (beta2 0 keeps |g|), a first step of Adam is lr x sign(g + what is added to it)."""
    settings = {"lr": 0.5, "betas": (0.0, 0.0), "eps": 1e-12, "weight_decay": 0.25}
    name = "model.model.layers.0.mlp.up_proj.weight"
    steps = {}
    for kind in ("adamw", "adam"):
        subject = Subject(zero, ranks=ranks, type=kind, **settings)
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


@pytest.mark.parametrize(("kind", "zero"), EVERY_CASE)
def test_three_steps_equal_those_of_the_library(ranks: Ranks, kind: str, zero: int) -> None:
    far = steps_of_both(kind, zero, ranks)
    assert len(far) == 20
    assert sum(far.values()) <= may_differ(kind), far


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_momentum_that_is_set_is_what_muon_uses(ranks: Ranks, zero: int) -> None:
    """The buffer is (1 - beta) x gradient after a first step, and its own mean with the next: buffers tell the beta."""
    subject = Subject(zero, ranks=ranks, type="muon", lr=1e-9, momentum=0.9)
    (muon,) = [index for index, group in enumerate(subject.groups) if group["name"] == "muon"]
    buffers = []
    for momentum in (0.5, 0.75):
        set_momentum(subject.engine, momentum)
        assert applied_momentum(subject.engine) == momentum
        subject.step(0)
        flat = partitions(subject.engine, muon)[0]
        buffers.append(subject.engine.optimizer.optimizer.state[flat]["momentum_buffer"].clone())
    # the same rows and all but the same weights: 0.5 g, then 0.75 x 0.5 g + 0.25 g
    torch.testing.assert_close(buffers[1], 1.25 * buffers[0], rtol=1e-3, atol=1e-6)
    assert float(buffers[0].abs().max()) > 0


def test_muon_trains_the_matrices_of_the_layers_alone(ranks: Ranks) -> None:
    subject = Subject(1, ranks=ranks, type="muon", lr=0.02)
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
    subject = Subject(zero, precision, ranks=ranks, type=kind, lr=1e-3 if kind == "lion" else 2e-2)

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
        (
            {
                "optimizer": {"type": "lamb", "lr": 1},
                "deepspeed": {"zero_stage": 0},
                "precision": "fp32",
                "curriculum": {"stages": [{"step": 0, "trainable_layers": 1}]},
            },
            "found lamb, which needs ZeRO 0, where trainable_layers of a stage need ZeRO 1 or more",
        ),
        (
            {
                "optimizer": {"type": "muon", "lr": 1},
                "curriculum": {"stages": [{"step": 0, "trainable_layers": 1}]},
            },
            "found muon, whose momentum DeepSpeed keeps where it cannot be carried over",
        ),
        ({"optimizer": {"type": "schedule_free_adamw", "lr": 1}}, "which does not fit DeepSpeed: the averaged weights"),
    ],
)
def test_what_does_not_fit_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(**sections)
    assert message in str(caught.value)
