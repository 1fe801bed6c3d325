"""One optimizer step on real engines of one rank: it learns the gradient of one large batch, whatever the stage.

Plain SGD at rate 1 without a clip turns a step into the gradient itself: weights before minus weights after.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import safe_get_full_fp32_param
from support import recipe
from torch import Tensor

from ds_pretrain.curriculum import Plan, StagePlan, build_plan
from ds_pretrain.data.inputs import InputFormat, MicroBatch
from ds_pretrain.data.loader import StepBatch
from ds_pretrain.engine.build import Engine, build_engine, try_shapes
from ds_pretrain.engine.deepspeed_json import Precision, effective_zero_stage, stage_json
from ds_pretrain.engine.ranks import Ranks
from ds_pretrain.engine.stage import applied_clip, apply_stage, assert_learning_rate, learning_rates, set_learning_rate
from ds_pretrain.engine.step import Requests, StepResult, train_batch
from ds_pretrain.errors import TrainingError
from ds_pretrain.model.build import Vocabulary, build_model, model_config
from ds_pretrain.model.groups import parameter_groups
from ds_pretrain.model.layers import layer_depths
from ds_pretrain.model.loss import CausalLmLoss
from ds_pretrain.model.size import parameter_count

NO_CLIP = 1e9
WHOLE_LOGITS = 1 << 30
SGD = {"type": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}
# length, batch, micro batch and so accumulation (1, 4, 1, 6, 2) all change
STAGES = [
    {"step": 0, "seq_len": 16, "batch_size": 8, "micro_batch_size": 8, "grad_clip": NO_CLIP},
    {"step": 2, "seq_len": 8, "batch_size": 12, "micro_batch_size": 3, "grad_clip": NO_CLIP},
    {"step": 4, "seq_len": 32, "batch_size": 4, "micro_batch_size": 4, "grad_clip": NO_CLIP},
    {"step": 6, "seq_len": 8, "batch_size": 6, "micro_batch_size": 1, "grad_clip": NO_CLIP},
    {"step": 8, "seq_len": 16, "batch_size": 8, "micro_batch_size": 4, "grad_clip": NO_CLIP},
]
ENGINES: list[tuple[int, Precision]] = [
    (0, "fp32"),
    *((zero, precision) for zero in (1, 2, 3) for precision in ("fp32", "bf16")),
]

# of decay 0.5 on two layers, by what a parameter's name contains
MULTIPLIERS = {"embed": 0.125, "layers.0.": 0.25, "layers.1.": 0.5, "model.norm": 1.0}

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """An engine under test, and how its model is built again without DeepSpeed."""

    engine: Engine
    plan: Plan
    plain: Callable[[], CausalLmLoss]

    def weights(self) -> dict[str, Tensor]:
        """Whole weights as the optimizer has them, in fp32."""
        sharded = self.engine.zero_optimization() or self.engine.bfloat16_enabled()
        weights = {}
        for name, parameter in self.engine.module.named_parameters():
            # the optimizer does not have what is frozen; ZeRO 3 has it in parts all the same
            with GatheredParameters([parameter], enabled=not parameter.requires_grad):
                whole = safe_get_full_fp32_param(parameter) if sharded and parameter.requires_grad else parameter
                weights[name] = whole.detach().float().clone()
        return weights

    def step(self, stage: StagePlan, batch: StepBatch, lr: float = 1.0) -> StepResult:
        apply_stage(self.engine, stage)
        set_learning_rate(self.engine, lr)
        return train_batch(self.engine, batch, counted(batch.micro_batches), lr, Requests())

    def gradient(self, weights: Weights, micro_batches: Sequence[MicroBatch]) -> tuple[float, dict[str, Tensor]]:
        """Mean loss and its gradient at ``weights``, by torch alone: pass by pass, summed in fp64."""
        module = self.plain()
        module.load_state_dict(dict(weights), strict=False)
        # as DeepSpeed cast it: parameters, but not every buffer
        dtypes = {
            name: part.dtype
            for name, part in (*self.engine.module.named_parameters(), *self.engine.module.named_buffers())
        }
        for name, part in (*module.named_parameters(), *module.named_buffers()):
            part.data = part.data.to(dtypes[name])
        loss, share = 0.0, 1 / counted(micro_batches)
        sums = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in module.named_parameters()}
        for micro in micro_batches:
            module.zero_grad()
            part = module(micro.input_ids, micro.targets) * share
            part.backward()
            loss += part.item()
            for name, parameter in module.named_parameters():
                sums[name] += parameter.grad.double()
        return loss, sums


def counted(micro_batches: Sequence[MicroBatch]) -> int:
    return sum(int((micro.targets >= 0).sum()) for micro in micro_batches)


def random_batch(stage: StagePlan, seed: int = 0) -> StepBatch:
    """Rows of chance; the first ones have half their targets uncounted, so that micro batches weigh differently."""
    generator = torch.Generator().manual_seed(seed)
    ids, targets = torch.randint(0, 50, (2, stage.batch_size, stage.seq_len), generator=generator)
    targets[: stage.micro_batch_size, ::2] = -100
    size = stage.micro_batch_size
    parts = tuple(
        MicroBatch(ids[first : first + size], targets[first : first + size]) for first in range(0, len(ids), size)
    )
    assert len(parts) == stage.grad_accum_steps
    return StepBatch(stage.start_step, stage.index, parts, counted(parts))


def one_large(batch: StepBatch) -> list[MicroBatch]:
    micro = batch.micro_batches
    return [MicroBatch(torch.cat([part.input_ids for part in micro]), torch.cat([part.targets for part in micro]))]


def difference(before: Weights, after: Weights) -> dict[str, Tensor]:
    return {name: before[name].double() - after[name].double() for name in before}


def norm(gradient: Weights) -> float:
    return torch.cat([part.double().flatten() for part in gradient.values()]).norm().item()


def relative_distance(found: Weights, expected: Weights) -> float:
    assert found.keys() == expected.keys()
    return norm(difference(found, expected)) / norm(expected)


Make = Callable[..., Subject]


@pytest.fixture
def make(ranks: Ranks) -> Iterator[Make]:
    assert ranks.world_size == 1
    made: list[Engine] = []

    def build(
        zero: int = 1,
        precision: Precision = "fp32",
        *,
        stages: Sequence[Mapping[str, Any]] = STAGES,
        optimizer: Mapping[str, Any] = SGD,
        param_groups: Mapping[str, Any] = {},
        dropout: float = 0.0,
        deepspeed: Mapping[str, Any] = {},
    ) -> Subject:
        settings = recipe(
            data={"max_seq_len": 32},
            curriculum={"stages": stages},
            optimizer=optimizer,
            param_groups=param_groups,
            precision=precision,
            deepspeed={"zero_stage": zero, **deepspeed},
        )
        plan = build_plan(settings)
        document = stage_json(settings, plan.stages[0], precision)
        changes = {"config": {**settings.model.config, "attention_dropout": dropout}}
        section = settings.model.model_copy(update=changes)
        config = model_config(section, Vocabulary(50, 3), 32)
        partitioned = effective_zero_stage(settings, precision) == 3
        torch.manual_seed(0)
        module = CausalLmLoss(
            build_model(section, config, zero3_config=document if partitioned else None), WHOLE_LOGITS
        )
        groups = parameter_groups(module.model, settings.optimizer, settings.param_groups)
        engine = build_engine(module, groups, document)
        made.append(engine)
        return Subject(engine, plan, lambda: CausalLmLoss(build_model(section, config), WHOLE_LOGITS))

    # every engine has garbage collected many times, and the libraries are much to look through
    gc.freeze()
    yield build
    for engine in made:
        engine.destroy()
    gc.unfreeze()


@pytest.mark.parametrize("zero", range(4))
def test_a_step_is_the_gradient_of_one_large_batch_in_every_stage(make: Make, zero: int) -> None:
    subject = make(zero)
    assert [stage.grad_accum_steps for stage in subject.plan.stages] == [1, 4, 1, 6, 2]
    before = subject.weights()
    for step in range(10):
        stage = subject.plan.stage_at(step)
        batch = random_batch(stage, seed=step)
        result = subject.step(stage, batch)
        after = subject.weights()
        loss, expected = subject.gradient(before, one_large(batch))
        assert relative_distance(difference(before, after), expected) <= 1e-5
        assert result.loss == pytest.approx(loss, rel=1e-5)
        assert result.grad_norm == pytest.approx(norm(expected), rel=1e-5)
        assert (result.skipped, result.loss_scale, result.requests) == (False, 1.0, Requests())
        before = after


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_bf16_gradients_are_summed_in_fp32(make: Make, zero: int) -> None:
    # what travels between ranks is rounded to bf16, once, unless told otherwise; that is another matter
    subject = make(zero, "bf16", deepspeed={"extra": {"communication_data_type": "fp32"}})
    before = subject.weights()
    for stage in subject.plan.stages:
        batch = random_batch(stage, seed=stage.index)
        subject.step(stage, batch)
        after = subject.weights()
        # each pass is in bf16 here and there; sums in bf16 would be off by a part in 500
        _, expected = subject.gradient(before, batch.micro_batches)
        assert relative_distance(difference(before, after), expected) <= 1e-5
        before = after


@pytest.mark.parametrize(("zero", "precision"), ENGINES)
def test_every_stages_clip_is_the_one_applied(make: Make, zero: int, precision: Precision) -> None:
    clips = [0.5, 0.01, NO_CLIP, 0.02]
    stages = [
        {"step": index, "seq_len": 8, "batch_size": 8, "micro_batch_size": 8 >> index, "grad_clip": clip}
        for index, clip in enumerate(clips)
    ]
    subject = make(zero, precision, stages=stages)
    for stage, clip in zip(subject.plan.stages, clips, strict=True):
        before = subject.weights()
        result = subject.step(stage, random_batch(stage))
        assert applied_clip(subject.engine) == clip
        # the norm that is told is the one before the clip
        assert result.grad_norm > 0.1
        assert norm(difference(before, subject.weights())) == pytest.approx(min(clip, result.grad_norm), rel=1e-3)


@pytest.mark.parametrize(("zero", "precision"), ENGINES)
def test_a_stage_reaches_every_place_where_deepspeed_keeps_it(make: Make, zero: int, precision: Precision) -> None:
    stages = [{**stage, "grad_clip": 0.5 + index} for index, stage in enumerate(STAGES)]
    subject = make(zero, precision, stages=stages)
    engine = subject.engine
    for stage in (*subject.plan.stages, subject.plan.stages[0]):
        apply_stage(engine, stage)
        assert engine.train_batch_size() == engine.tput_timer.batch_size == stage.batch_size
        assert engine.train_micro_batch_size_per_gpu() == stage.micro_batch_size
        assert engine.gradient_accumulation_steps() == stage.grad_accum_steps
        assert engine.gradient_clipping() == applied_clip(engine) == stage.grad_clip
        for name, value in (("clip_grad", stage.grad_clip), ("gradient_accumulation_steps", stage.grad_accum_steps)):
            assert getattr(engine.optimizer, name, value) == value


def _poisoned_loss(module: Any, inputs: Any, output: Tensor) -> Tensor:
    return output * float("nan")


def _infinite_loss(module: Any, inputs: Any, output: Tensor) -> Tensor:
    return output + float("inf")  # its gradient is finite


def _poisoned_gradient(module: Any, inputs: Any, output: Tensor) -> Tensor:
    output.register_hook(lambda gradient: gradient * float("inf"))
    return output


@pytest.mark.parametrize("poison", [_poisoned_loss, _infinite_loss, _poisoned_gradient])
@pytest.mark.parametrize(("zero", "precision"), ENGINES)
def test_a_gradient_that_is_not_finite_is_never_applied(
    make: Make, zero: int, precision: Precision, poison: Callable[..., Tensor]
) -> None:
    extra = {"communication_data_type": "fp32"}
    subject = make(zero, precision, optimizer={**SGD, "momentum": 0.9}, deepspeed={"extra": extra})
    stage = subject.plan.stages[1]
    assert stage.grad_accum_steps == 4
    batch = random_batch(stage)
    before = subject.weights()
    hook = subject.engine.module.register_forward_hook(poison)
    result = subject.step(stage, batch)
    hook.remove()
    assert result.skipped
    assert not subject.engine.was_step_applied()
    assert result.grad_norm == float("inf") or result.grad_norm != result.grad_norm
    assert math.isfinite(result.loss) == (poison is _poisoned_gradient)
    assert norm(difference(before, subject.weights())) == 0
    # nothing of it is left: the next step is the gradient alone, without a momentum
    good = subject.step(stage, batch)
    assert not good.skipped
    assert subject.engine.was_step_applied()
    _, expected = subject.gradient(before, batch.micro_batches)
    assert relative_distance(difference(before, subject.weights()), expected) <= 1e-5
    assert (subject.engine.skipped_steps, subject.engine.global_steps) == (1, 2)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_an_overflow_at_the_lowest_loss_scale_is_left_out_too(
    make: Make, zero: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # DeepSpeed refuses the processor's fp16 as too slow
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    scaling = {"initial_scale_power": 1, "hysteresis": 1, "min_loss_scale": 1.0}
    subject = make(zero, "fp16", deepspeed={"fp16": scaling})
    stage = subject.plan.stages[0]
    before = subject.weights()
    hook = subject.engine.module.register_forward_hook(_poisoned_gradient)
    results = [subject.step(stage, random_batch(stage)) for _ in range(3)]
    hook.remove()
    assert [result.loss_scale for result in results] == [2.0, 1.0, 1.0]
    assert all(result.skipped for result in results)
    assert norm(difference(before, subject.weights())) == 0
    assert not subject.step(stage, random_batch(stage)).skipped
    assert norm(difference(before, subject.weights())) > 0


@pytest.mark.parametrize(("zero", "precision"), ENGINES)
def test_trying_the_shapes_leaves_no_trace(make: Make, zero: int, precision: Precision) -> None:
    results = []
    for tried in (False, True):
        # dropout, so that the generators matter
        subject = make(zero, precision, dropout=0.2, optimizer={"type": "adamw", "lr": 1.0})
        torch.manual_seed(5)
        first, state = subject.weights(), torch.get_rng_state()
        if tried:
            try_shapes(subject.engine, subject.plan.stages, InputFormat(32))
        assert torch.equal(torch.get_rng_state(), state)
        assert norm(difference(first, subject.weights())) == 0
        losses = [subject.step(stage, random_batch(stage), lr=1e-2) for stage in subject.plan.stages[:2]]
        results.append((losses, subject.weights()))
    (plain_losses, plain), (tried_losses, tried_weights) = results
    assert plain_losses == tried_losses
    assert all(torch.equal(plain[name], tried_weights[name]) for name in plain)


def test_every_shape_is_tried_the_largest_first(make: Make) -> None:
    subject = make()
    seen: list[tuple[int, ...]] = []
    hook = subject.engine.module.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    try_shapes(subject.engine, subject.plan.stages, InputFormat(32))
    hook.remove()
    # as micro batch x length
    assert seen == [(4, 32), (8, 16), (4, 16), (3, 8), (1, 8)]


def test_a_shape_that_does_not_fit_is_named(make: Make) -> None:
    subject = make()

    def run_out(module: Any, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].shape == (8, 16):
            raise torch.OutOfMemoryError("out of memory")

    subject.engine.module.register_forward_pre_hook(run_out)
    with pytest.raises(TrainingError, match="micro_batch_size 8 x seq_len 16 does not fit into the device's memory"):
        try_shapes(subject.engine, subject.plan.stages, InputFormat(32))


@pytest.mark.parametrize(("zero", "precision"), ENGINES)
def test_every_group_moves_by_its_own_learning_rate(make: Make, zero: int, precision: Precision) -> None:
    subject = make(zero, precision, param_groups={"kind": "layerwise", "decay": 0.5})
    stage = subject.plan.stages[0]
    before = subject.weights()
    batch = random_batch(stage)
    subject.step(stage, batch, lr=0.5)
    assert learning_rates(subject.engine) == {
        "head.no_decay": 0.5,
        "layer_1.decay": 0.25,
        "layer_1.no_decay": 0.25,
        "layer_0.decay": 0.125,
        "layer_0.no_decay": 0.125,
        "embeddings.no_decay": 0.0625,
    }
    _, gradient = subject.gradient(before, batch.micro_batches)
    change = difference(before, subject.weights())
    for name, part in gradient.items():
        multiplier = next(value for text, value in MULTIPLIERS.items() if text in name)
        assert relative_distance({name: change[name]}, {name: 0.5 * multiplier * part}) <= 0.01


@pytest.mark.parametrize(("zero", "precision"), ENGINES)
def test_a_group_with_factor_zero_stays_as_it_is_and_costs_no_optimizer(
    make: Make, zero: int, precision: Precision
) -> None:
    frozen = {"*.layers.0.*": 0.0, "*embed*": 0.0}
    optimizer = {**SGD, "momentum": 0.9}
    subject = make(zero, precision, optimizer=optimizer, param_groups={"kind": "patterns", "table": frozen})
    assert list(learning_rates(subject.engine)) == ["x1.decay", "x1.no_decay"]
    before = subject.weights()
    batch = random_batch(subject.plan.stages[1])
    result = subject.step(subject.plan.stages[1], batch)
    change = difference(before, subject.weights())
    still = {name for name in change if "layers.0." in name or "embed" in name}
    assert all(not change[name].any() for name in still)
    _, gradient = subject.gradient(before, batch.micro_batches)
    trained = {name: part for name, part in gradient.items() if name not in still}
    assert relative_distance({name: change[name] for name in trained}, trained) <= 0.01
    assert result.grad_norm == pytest.approx(norm(trained), rel=1e-2)
    states = subject.engine.basic_optimizer.state.values()
    held = sum(state["momentum_buffer"].numel() for state in states)
    # ZeRO pads what it partitions by less than a hundred
    assert 0 <= held - sum(part.numel() for part in trained.values()) < 100


@pytest.mark.parametrize("zero", [0, 3])
def test_layers_are_found_in_a_partitioned_model(make: Make, zero: int) -> None:
    subject = make(zero)
    assert layer_depths(subject.engine.module.model) == layer_depths(subject.plain().model)


@pytest.mark.parametrize("zero", range(4))
def test_a_learning_rate_that_was_not_planned_stops_the_step(make: Make, zero: int) -> None:
    subject = make(zero)
    stage, before = subject.plan.stages[0], subject.weights()
    apply_stage(subject.engine, stage)
    set_learning_rate(subject.engine, 0.5)
    assert_learning_rate(subject.engine, 0.5)
    subject.engine.optimizer.param_groups[1]["lr"] = 0.4
    with pytest.raises(AssertionError, match=r"group no_decay: lr 0\.4, planned 0\.5"):
        train_batch(subject.engine, random_batch(stage), 128, 0.5, Requests())
    assert norm(difference(before, subject.weights())) == 0


@pytest.mark.parametrize("zero", [0, 3])
def test_partitioned_parameters_are_counted_whole(make: Make, zero: int) -> None:
    subject = make(zero)
    assert parameter_count(subject.engine.module) == 56 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32


def test_what_this_rank_asks_for_comes_back(make: Make) -> None:
    subject = make()
    stage = subject.plan.stages[0]
    apply_stage(subject.engine, stage)
    set_learning_rate(subject.engine, 1.0)
    for requests in (Requests(stop=True), Requests(save=True), Requests(stop=True, save=True)):
        assert train_batch(subject.engine, random_batch(stage), 128, 1.0, requests).requests == requests
