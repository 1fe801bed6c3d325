"""What is not built yet is refused, one message each; its defaults are not."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from ds_pretrain.config import parse_recipe
from ds_pretrain.errors import RecipeError

REFUSED = [
    "model.compile=true",
    "tracking.tensorboard=true",
]
ACCEPTED = [
    "model.objective=causal_lm",
    "model.objective=masked_lm",
    "data.sequence_mode=truncate",
    "data.sequence_mode=mask",
    "data.document_mask=true",
    "param_groups.kind=layerwise",
    "schedule.type=linear",
    "optimizer.type=sgd",
    "safety.max_consecutive_bad_steps=3",
    "safety.spike_sigma=3",
    "safety.max_rollbacks=3",
    "lr_finder.steps=50",
    "curriculum.stages.0.trainable_layers=null",
    "checkpoint.asynchronous=true",
]


def data_with(change: str) -> dict[str, Any]:
    config = OmegaConf.create(
        {
            "model": {"architecture": "gpt2"},
            "data": {"train": "x"},
            "curriculum": {"total_steps": 9, "stages": [{"step": 0}]},
            "optimizer": {"lr": 1},
        }
    )
    config.merge_with_dotlist([change])
    data: dict[str, Any] = OmegaConf.to_container(config)
    return data


@pytest.mark.parametrize("change", REFUSED)
def test_refused(change: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(data_with(change))
    (problem,) = caught.value.problems
    assert problem.path == change.partition("=")[0]
    assert "not built yet" in problem.message


@pytest.mark.parametrize("change", ACCEPTED)
def test_accepted(change: str) -> None:
    parse_recipe(data_with(change))
