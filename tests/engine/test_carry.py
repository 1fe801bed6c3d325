"""An engine's state outlives the engine: another one on the same module goes on as if nothing had happened."""

from __future__ import annotations

import gc

import pytest
from tiny_engine import Subject

from ds_pretrain.engine.deepspeed_json import Precision
from ds_pretrain.engine.ranks import Ranks

ENGINES: list[tuple[int, Precision]] = [(1, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32"), (3, "bf16")]


@pytest.mark.parametrize(("zero", "precision"), ENGINES)
def test_another_engine_goes_on_to_the_bit(ranks: Ranks, zero: int, precision: Precision) -> None:
    subject = Subject(zero, precision, ranks)
    unbroken = [subject.step(seed) for seed in range(6)]
    subject = Subject(zero, precision, ranks)
    replaced = [subject.step(seed) for seed in range(3)]
    subject.replace()
    replaced += [subject.step(seed) for seed in range(3, 6)]
    assert replaced == unbroken
    assert subject.engine.global_steps == 6
    gc.collect()


def test_momentum_is_carried_too(ranks: Ranks) -> None:
    settings = {"type": "sgd", "momentum": 0.9}
    subject = Subject(2, "fp32", ranks, **settings)
    unbroken = [subject.step(seed) for seed in range(4)]
    subject = Subject(2, "fp32", ranks, **settings)
    first = [subject.step(seed) for seed in range(2)]
    subject.replace()
    assert first + [subject.step(seed) for seed in (2, 3)] == unbroken


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_what_is_frozen_costs_no_optimizer_memory(ranks: Ranks, zero: int) -> None:
    subject = Subject(zero, "fp32", ranks)
    subject.step(0)
    subject.replace(frozen=["embed_tokens", "layers.0"])
    subject.step(1)
    trained = sum(
        getattr(parameter, "ds_numel", parameter.numel())
        for parameter in subject.module.parameters()
        if parameter.requires_grad
    )
    state = subject.engine.optimizer.optimizer.state
    moments = sum(value["exp_avg"].numel() for value in state.values() if value)
    assert trained <= moments < 1.05 * trained + 64  # partitions are padded
    frozen = [parameter for parameter in subject.module.parameters() if not parameter.requires_grad]
    assert frozen
    for parameter in frozen:
        storage = getattr(parameter, "ds_tensor", parameter).untyped_storage()
        assert storage.nbytes() <= 4 * getattr(parameter, "ds_numel", parameter.numel()) + 64


@pytest.mark.parametrize("zero", [1, 3])
def test_the_end_of_the_old_engine_leaves_the_new_one_alone(ranks: Ranks, zero: int) -> None:
    subject = Subject(zero, "fp32", ranks)
    unbroken = [subject.step(seed) for seed in range(4)]
    subject = Subject(zero, "fp32", ranks)
    replaced = [subject.step(seed) for seed in range(2)]
    old = subject.engine
    subject.replace()
    old.__del__()  # whenever the garbage collector happens to come
    replaced.append(subject.step(2))
    subject.replace()
    replaced.append(subject.step(3))
    assert replaced == unbroken
