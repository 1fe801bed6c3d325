"""The DeepSpeed JSON of every stage: what a recipe and its plan mean in DeepSpeed's own words.

Pure: needs neither torch nor deepspeed, so that ``ds-pretrain plan`` can show and write it anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ds_pretrain.config import Offload, Optimizer, Recipe
from ds_pretrain.curriculum import StagePlan
from ds_pretrain.errors import Problem, RecipeError

Precision = Literal["bf16", "fp16", "fp32"]

# DeepSpeed 0.19 rejects the first three; the others would take over what the plan decides, or break it.
_FORBIDDEN_EXTRA = {
    "curriculum_learning": "curriculum.stages is where the curriculum is stated",
    "elasticity": "the batch sizes of the plan hold for the ranks that were started",
    "amp": "precision takes its place",
    "checkpoint": "the recipe's checkpoint section says how checkpoints are written",
    "datastates_ckpt": "the recipe's checkpoint section says how checkpoints are written",
    "scheduler": "the schedule section drives every learning rate",
    "managed_gradient_accumulation": "the plan decides where a step ends",
    "sequence_parallel_size": "sequence parallelism is not built yet",
    "tensor_parallel": "tensor parallelism is not built yet",
}

# what DeepSpeed 0.19.8 does at ZeRO stage 0: the scaled gradient is divided by the loss scale twice; bf16 weights
# are either updated without fp32 copies or refused
_WRONG_AT_STAGE_0: Mapping[Precision, str] = {
    "fp16": "mis-scales fp16 gradients at stage 0",
    "bf16": "cannot sum bf16 gradients in fp32 at stage 0",
}


def stage_json(recipe: Recipe, stage: StagePlan, precision: Precision) -> dict[str, Any]:
    """DeepSpeed's configuration for one stage.

    Args:
        recipe: a checked recipe.
        stage: the stage of the plan.
        precision: what ``precision: auto`` came to on the device.

    Returns:
        A JSON document that ``deepspeed.initialize`` takes.

    Raises:
        RecipeError: ``deepspeed.extra`` contradicts what recipe and plan say.
    """
    document = _generated(recipe, stage, precision)
    problems: list[Problem] = []
    _merge(document, recipe.deepspeed.extra, "deepspeed.extra", problems)
    if problems:
        raise RecipeError(problems)
    return document


def extra_problems(recipe: Recipe, stage: StagePlan, precision: Precision) -> Sequence[Problem]:
    """Where ``deepspeed.extra`` contradicts recipe and plan; empty where it does not."""
    problems: list[Problem] = []
    _merge(_generated(recipe, stage, precision), recipe.deepspeed.extra, "deepspeed.extra", problems)
    return problems


def effective_zero_stage(recipe: Recipe, precision: Precision) -> int:
    """ZeRO stage of a run: at least 1 where DeepSpeed gets stage 0 wrong, or where trained layers change."""
    return max(recipe.deepspeed.zero_stage, 1 if _raised_for(recipe, precision) else 0)


def zero_stage_warnings(recipe: Recipe, precision: Precision) -> Sequence[str]:
    """Says where the ZeRO stage is not the one asked for."""
    if effective_zero_stage(recipe, precision) == recipe.deepspeed.zero_stage:
        return ()
    return (f"deepspeed.zero_stage 0 is raised to 1: {_raised_for(recipe, precision)}",)


def _raised_for(recipe: Recipe, precision: Precision) -> str | None:
    if precision in _WRONG_AT_STAGE_0:
        return f"DeepSpeed 0.19.8 {_WRONG_AT_STAGE_0[precision]}"
    if any(stage.trainable_layers is not None for stage in recipe.curriculum.stages or ()):
        return "its state is carried over by parameter name where a stage's trainable_layers change"
    return None


def _generated(recipe: Recipe, stage: StagePlan, precision: Precision) -> dict[str, Any]:
    document: dict[str, Any] = {
        "train_batch_size": stage.rows_per_step,
        "train_micro_batch_size_per_gpu": stage.micro_batch_size,
        "gradient_accumulation_steps": stage.grad_accum_steps,
        "gradient_clipping": stage.grad_clip,
        "zero_optimization": _zero(recipe, precision),
        # stock torch optimizers are not on DeepSpeed's list of those tried with ZeRO
        "zero_allow_untested_optimizer": True,
        # stated even where off, so that ``extra`` cannot turn another precision on
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
    }
    if not is_client_optimizer(recipe.optimizer):
        document["optimizer"] = _optimizer(recipe.optimizer, stage.peak_lr, offloaded=_offloads_optimizer(recipe))
    if recipe.optimizer.type == "muon":
        # Muon needs the whole gradient of a matrix
        document["zero_optimization"]["reduce_scatter"] = False
    if precision == "bf16":
        # the default sums micro batches in bf16
        document["data_types"] = {"grad_accum_dtype": "fp32"}
    elif precision == "fp16":
        document["fp16"] |= recipe.deepspeed.fp16.model_dump()
    return document


def is_client_optimizer(optimizer: Optimizer) -> bool:
    """Whether the optimizer is built here and handed to DeepSpeed, instead of named in its JSON."""
    return optimizer.type in ("lion", "lamb", "muon")


def _offloads_optimizer(recipe: Recipe) -> bool:
    return recipe.deepspeed.offload_optimizer is not None


def _optimizer(optimizer: Optimizer, lr: float, offloaded: bool) -> dict[str, Any]:
    if optimizer.type == "sgd":
        return {
            "type": "SGD",
            "params": {"lr": lr, "momentum": optimizer.momentum, "weight_decay": optimizer.weight_decay},
        }
    params: dict[str, Any] = {
        "lr": lr,
        "betas": list(optimizer.betas),
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
    }
    if optimizer.type == "adam":
        # DeepSpeed takes the name Adam for AdamW unless told that decay is L2
        params["adam_w_mode"] = False
    if not offloaded:  # an offloaded optimizer is DeepSpeed's own CPUAdam
        params |= {"torch_adam": True, "fused": True}
    return {"type": "AdamW" if optimizer.type == "adamw" else "Adam", "params": params}


def _zero(recipe: Recipe, precision: Precision) -> dict[str, Any]:
    settings = recipe.deepspeed
    zero: dict[str, Any] = {"stage": effective_zero_stage(recipe, precision)}
    for key in ("overlap_comm", "reduce_bucket_size", "allgather_bucket_size"):
        value = getattr(settings, key)
        if value is not None:
            zero[key] = value
    for key, offload in (
        ("offload_optimizer", settings.offload_optimizer),
        ("offload_param", settings.offload_param),
    ):
        if offload is not None:
            zero[key] = _offload(offload)
    return zero


def _offload(offload: Offload) -> dict[str, Any]:
    return offload.model_dump(mode="json", exclude_none=True)


def _merge(base: dict[str, Any], extra: Mapping[str, Any], path: str, problems: list[Problem]) -> None:
    """Adds ``extra`` to ``base`` in place; a key that ``base`` already decides otherwise is a problem."""
    for key, value in extra.items():
        here = f"{path}.{key}"
        if path == "deepspeed.extra" and key in _FORBIDDEN_EXTRA:
            problems.append(Problem(here, f"is not allowed: {_FORBIDDEN_EXTRA[key]}; remove it"))
        elif key not in base:
            base[key] = value
        elif isinstance(base[key], dict) and isinstance(value, Mapping):
            _merge(base[key], value, here, problems)
        elif base[key] != value:
            problems.append(
                Problem(
                    here,
                    f"found {value!r}, but recipe and plan say {base[key]!r}; remove it, "
                    "or change the recipe's own key for it",
                )
            )
