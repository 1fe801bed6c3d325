from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from support import recipe

from ds_pretrain.config import Schedule
from ds_pretrain.errors import RecipeError
from ds_pretrain.schedules.plateau import PlateauState, after_evaluation


def losses(seed: int) -> list[float]:
    chance = random.Random(seed)
    return [4.0 * math.exp(-step / 400) + 0.3 * chance.random() for step in range(2000)]


@pytest.mark.parametrize(
    "settings",
    [
        {"factor": 0.5, "patience": 5},
        {"factor": 0.9, "patience": 0, "threshold": 0.01, "threshold_mode": "abs"},
        {"factor": 0.3, "patience": 3, "cooldown": 7, "threshold": 1e-3},
        {"factor": 0.1, "patience": 10, "min_lr": 0.02},
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_torch(settings: dict[str, Any], seed: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **settings)
    ours = {key: value for key, value in settings.items() if key != "min_lr"}
    schedule = Schedule(type="plateau", min_lr_ratio=settings.get("min_lr", 0.0), **ours)
    state, found, expected = PlateauState(), [], []
    for loss in losses(seed):
        theirs.step(loss)
        state = after_evaluation(state, loss, schedule)
        expected.append(optimizer.param_groups[0]["lr"])
        found.append(state.factor)
    assert found == pytest.approx(expected, abs=1e-12, rel=0)
    assert found[-1] < 1.0


def test_a_loss_that_is_no_number_is_a_bad_evaluation() -> None:
    schedule = Schedule(type="plateau", patience=0, min_lr_ratio=0.0)
    state = after_evaluation(after_evaluation(PlateauState(), 2.0, schedule), math.nan, schedule)
    assert (state.factor, state.best) == (0.5, 2.0)


def test_it_needs_a_validation_loss() -> None:
    with pytest.raises(RecipeError, match=r"found plateau, which follows the validation loss; give data\.validation"):
        recipe(schedule={"type": "plateau"})
