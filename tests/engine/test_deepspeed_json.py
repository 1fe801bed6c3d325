"""Every generated JSON is one that DeepSpeed itself takes, and says there what the recipe said."""

from __future__ import annotations

import json
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from launches import ROOT
from support import PUBLISHED, recipe

from ds_pretrain.config import Recipe, load_recipe
from ds_pretrain.curriculum import build_plan
from ds_pretrain.engine.build import check_accepted
from ds_pretrain.engine.deepspeed_json import (
    Precision,
    effective_zero_stage,
    extra_problems,
    stage_json,
    zero_stage_warnings,
)
from ds_pretrain.engine.ranks import Ranks
from ds_pretrain.errors import RecipeError

PRECISIONS: tuple[Precision, ...] = ("bf16", "fp16", "fp32")
OPTIMIZERS = ("adamw", "adam", "sgd")
NVME = {"device": "nvme", "nvme_path": "/fast", "pin_memory": True, "buffer_count": 4}
OFFLOADS: list[dict[str, Any]] = [
    {"zero_stage": 0},
    *({"zero_stage": stage} for stage in (1, 2, 3)),
    *({"zero_stage": stage, "offload_optimizer": {"device": "cpu"}} for stage in (1, 2, 3)),
    {"zero_stage": 3, "offload_param": {"device": "cpu", "pin_memory": True}},
    {"zero_stage": 3, "offload_param": NVME, "offload_optimizer": NVME},
]
CASES = [
    (precision, settings, optimizer)
    for precision, settings, optimizer in product(PRECISIONS, OFFLOADS, OPTIMIZERS)
    if not (optimizer == "sgd" and "offload_optimizer" in settings)
]


class SeveralRanks:
    """Tells DeepSpeed's configuration a number of ranks, as a user's model-parallel unit does."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size

    def get_data_parallel_world_size(self) -> int:
        return self.world_size


def accepted(document: dict[str, Any], world_size: int = 1) -> DeepSpeedConfig:
    """What DeepSpeed reads in it, as it would be written to a file."""
    return DeepSpeedConfig(json.loads(json.dumps(document)), mpu=SeveralRanks(world_size))


def document_of(subject: Recipe, precision: Precision = "fp32") -> dict[str, Any]:
    return stage_json(subject, build_plan(subject).stages[0], precision)


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize(("precision", "settings", "optimizer"), CASES)
def test_deepspeed_accepts_every_combination(precision: Precision, settings: dict[str, Any], optimizer: str) -> None:
    subject = recipe(precision=precision, deepspeed=settings, optimizer={"type": optimizer})
    config = accepted(document_of(subject, precision))
    assert config.zero_config.stage == max(settings["zero_stage"], precision != "fp32")
    assert (config.bfloat16_config.enabled, config.float16_config.enabled) == (precision == "bf16", precision == "fp16")
    assert config.grad_accum_dtype == ("fp32" if precision == "bf16" else None)
    for key in ("offload_optimizer", "offload_param"):
        found, asked = getattr(config.zero_config, key), settings.get(key)
        assert (found is None) == (asked is None)
        for name, value in (asked or {}).items():
            assert str(getattr(found, name)) == str(value)
    assert config.zero_allow_untested_optimizer


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_batch_and_clip_of_every_stage_hold_for_the_ranks(world_size: int, precision: Precision) -> None:
    subject = recipe(PUBLISHED, train={"max_tokens_per_micro_batch": 2048})
    plan = build_plan(subject, world_size)
    assert len({stage.grad_accum_steps for stage in plan.stages}) == 1
    for stage in plan.stages:
        config = accepted(stage_json(subject, stage, precision), world_size)
        assert config.train_batch_size == stage.batch_size
        assert config.train_micro_batch_size_per_gpu == stage.micro_batch_size == 2048 // stage.seq_len
        assert config.gradient_accumulation_steps == stage.grad_accum_steps == 8 // world_size
        assert config.gradient_clipping == stage.grad_clip
        assert config.optimizer_params["lr"] == stage.peak_lr
    with pytest.raises(AssertionError, match="train_batch_size is not equal"):
        accepted(stage_json(subject, plan.stages[0], precision), world_size * 2)


@pytest.mark.parametrize("offload", [None, {"device": "cpu"}])
@pytest.mark.parametrize(("kind", "name"), [("adamw", "AdamW"), ("adam", "Adam")])
def test_adam_and_adamw(kind: str, name: str, offload: dict[str, str] | None) -> None:
    optimizer = {"type": kind, "lr": 0.5, "betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.3}
    found = document_of(recipe(optimizer=optimizer, deepspeed={"offload_optimizer": offload}))["optimizer"]
    assert found["type"] == name
    params = {"lr": 0.5, "betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.3}
    # DeepSpeed's own processor Adam works on what is offloaded; elsewhere torch's needs no compiler
    params |= {} if offload else {"torch_adam": True, "fused": True}
    # DeepSpeed reads Adam as AdamW unless told otherwise
    params |= {"adam_w_mode": False} if kind == "adam" else {}
    assert found["params"] == params


def test_sgd() -> None:
    optimizer = {"type": "sgd", "lr": 0.5, "momentum": 0.8, "weight_decay": 0.3}
    assert document_of(recipe(optimizer=optimizer))["optimizer"] == {
        "type": "SGD",
        "params": {"lr": 0.5, "momentum": 0.8, "weight_decay": 0.3},
    }


@pytest.mark.usefixtures("ranks")
def test_every_loss_scaling_setting_passes_through() -> None:
    settings = {
        "loss_scale": 0.0,
        "initial_scale_power": 11,
        "loss_scale_window": 77,
        "hysteresis": 5,
        "consecutive_hysteresis": True,
        "min_loss_scale": 4.0,
    }
    found = accepted(document_of(recipe(precision="fp16", deepspeed={"fp16": settings}), "fp16")).float16_config
    assert {key: getattr(found, key) for key in settings} == settings
    fixed = recipe(precision="fp16", deepspeed={"fp16": {"loss_scale": 128}})
    assert accepted(document_of(fixed, "fp16")).float16_config.loss_scale == 128


@pytest.mark.parametrize(
    ("precision", "reason"),
    [
        ("fp16", "mis-scales fp16 gradients at stage 0"),
        ("bf16", "cannot sum bf16 gradients in fp32 at stage 0"),
    ],
)
def test_half_precisions_raise_zero_stage_0_and_say_so(precision: Precision, reason: str) -> None:
    plain = recipe(deepspeed={"zero_stage": 0})
    assert effective_zero_stage(plain, precision) == 1
    assert document_of(plain, precision)["zero_optimization"] == {"stage": 1}
    assert zero_stage_warnings(plain, precision) == (
        f"deepspeed.zero_stage 0 is raised to 1: DeepSpeed 0.19.8 {reason}",
    )


@pytest.mark.parametrize(("zero_stage", "precision"), [(0, "fp32"), *product((1, 2, 3), PRECISIONS)])
def test_other_zero_stages_are_left_alone(zero_stage: int, precision: Precision) -> None:
    subject = recipe(deepspeed={"zero_stage": zero_stage})
    assert effective_zero_stage(subject, precision) == zero_stage
    assert zero_stage_warnings(subject, precision) == ()


@pytest.mark.usefixtures("ranks")
def test_communication_settings_are_stated_only_where_given() -> None:
    settings = {"zero_stage": 2, "overlap_comm": False, "reduce_bucket_size": 1000, "allgather_bucket_size": 2000}
    assert document_of(recipe(deepspeed=settings))["zero_optimization"] == {
        "stage": 2, "overlap_comm": False, "reduce_bucket_size": 1000, "allgather_bucket_size": 2000,
    }  # fmt: skip
    assert accepted(document_of(recipe(deepspeed=settings))).zero_config.reduce_bucket_size == 1000
    assert document_of(recipe(deepspeed={"zero_stage": 2}))["zero_optimization"] == {"stage": 2}


@pytest.mark.usefixtures("ranks")
def test_extra_is_merged_at_any_depth() -> None:
    extra = {
        "wall_clock_breakdown": True,
        "steps_per_print": 50,
        "zero_optimization": {"stage": 1, "round_robin_gradients": True},
        "optimizer": {"params": {"foreach": False}},
        "comms_logger": {"enabled": True},
    }
    plain, merged = document_of(recipe()), document_of(recipe(deepspeed={"extra": extra}))
    expected = deepcopy(plain)
    expected["wall_clock_breakdown"] = True
    expected["steps_per_print"] = 50
    expected["zero_optimization"]["round_robin_gradients"] = True
    expected["optimizer"]["params"]["foreach"] = False
    expected["comms_logger"] = {"enabled": True}
    assert merged == expected
    config = accepted(merged)
    assert config.zero_config.round_robin_gradients
    assert config.comms_config.comms_logger_enabled


def test_merging_leaves_the_recipe_alone() -> None:
    subject = recipe(deepspeed={"extra": {"comms_logger": {"enabled": True}, "zero_optimization": {"stage": 1}}})
    before = deepcopy(subject.deepspeed.extra)
    document_of(subject)["zero_optimization"]["stage"] = 3
    document_of(subject, "fp16")
    assert subject.deepspeed.extra == before


AGAINST = [
    ({"train_batch_size": 9}, "train_batch_size: found 9, but recipe and plan say 8"),
    ({"gradient_clipping": 0.5}, "gradient_clipping: found 0.5, but recipe and plan say 1.0"),
    ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage: found 2, but recipe and plan say 1"),
    ({"zero_optimization": 2}, "zero_optimization: found 2, but recipe and plan say {'stage': 1}"),
    ({"optimizer": {"type": "Lion"}}, "optimizer.type: found 'Lion', but recipe and plan say 'AdamW'"),
    ({"optimizer": {"params": {"lr": 1}}}, "optimizer.params.lr: found 1, but recipe and plan say 0.01"),
    ({"fp16": {"enabled": True}}, "fp16.enabled: found True, but recipe and plan say False"),
    ({"bf16": {"enabled": True}}, "bf16.enabled: found True, but recipe and plan say False"),
]
FORBIDDEN = [
    ("curriculum_learning", "curriculum.stages is where the curriculum is stated"),
    ("elasticity", "the batch sizes of the plan hold for the ranks that were started"),
    ("amp", "precision takes its place"),
    ("scheduler", "the schedule section drives every learning rate"),
    ("managed_gradient_accumulation", "the plan decides where a step ends"),
    ("sequence_parallel_size", "sequence parallelism is not built yet"),
    ("tensor_parallel", "tensor parallelism is not built yet"),
]


def contradictions(extra: dict[str, Any]) -> list[str]:
    subject = recipe(deepspeed={"extra": extra})
    stage = build_plan(subject).stages[0]
    with pytest.raises(RecipeError) as caught:
        stage_json(subject, stage, "fp32")
    assert list(caught.value.problems) == list(extra_problems(subject, stage, "fp32"))
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(("extra", "message"), AGAINST)
def test_a_contradiction_is_named(extra: dict[str, Any], message: str) -> None:
    assert contradictions(extra) == [f"deepspeed.extra.{message}; remove it, or change the recipe's own key for it"]


@pytest.mark.parametrize(("key", "reason"), FORBIDDEN)
def test_what_would_take_over_the_plan_is_forbidden(key: str, reason: str) -> None:
    assert contradictions({key: {}}) == [f"deepspeed.extra.{key}: is not allowed: {reason}; remove it"]


def test_all_contradictions_are_named_at_once() -> None:
    found = contradictions({"amp": {}, "gradient_clipping": 2, "zero_optimization": {"stage": 3, "sub_group_size": 5}})
    assert [problem.split(":")[0] for problem in found] == [
        "deepspeed.extra.amp", "deepspeed.extra.gradient_clipping", "deepspeed.extra.zero_optimization.stage",
    ]  # fmt: skip


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"zero_optimization": {"nonsense": 1}}, "nonsense Extra inputs are not permitted"),
        ({"nebula": {}}, "Nebula checkpointing has been removed"),
        ({"data_types": 5}, "'int' object has no attribute 'get'"),
    ],
)
def test_what_deepspeed_refuses_is_one_message(extra: dict[str, Any], words: str) -> None:
    check_accepted(document_of(recipe()))
    with pytest.raises(RecipeError) as caught:
        check_accepted(document_of(recipe(deepspeed={"extra": extra})))
    (problem,) = caught.value.problems
    assert (problem.path, problem.message.count("\n")) == ("deepspeed.extra", 0)
    assert problem.message.startswith("DeepSpeed refuses it: ")
    assert words in problem.message


SHIPPED = sorted((ROOT / "ds_configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_plan_for_any_usual_machine(path: Path, ranks: Ranks) -> None:
    assert ranks.world_size == 1
    subject = load_recipe([path])
    for world_size, precision in product((1, 2, 4, 8), PRECISIONS):
        for stage in build_plan(subject, world_size).stages:
            config = accepted(stage_json(subject, stage, precision), world_size)
            assert config.train_batch_size == stage.batch_size
    assert {path.stem for path in SHIPPED} >= {"quickstart", "my_data"}
