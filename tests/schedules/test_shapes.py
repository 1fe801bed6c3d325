from __future__ import annotations

import pytest
import torch

from ds_pretrain.schedules.shapes import SHAPES, between

STEPS = 2000


def reference(scheduler: type, **settings: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    steps = scheduler(optimizer, **settings)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        steps.step()
    return rates


@pytest.mark.parametrize(
    ("name", "scheduler", "settings"),
    [
        ("cosine", torch.optim.lr_scheduler.CosineAnnealingLR, {"T_max": STEPS, "eta_min": 0.1}),
        ("linear", torch.optim.lr_scheduler.LinearLR, {"start_factor": 1, "end_factor": 0.1, "total_iters": STEPS}),
        ("constant", torch.optim.lr_scheduler.ConstantLR, {"factor": 1.0}),
    ],
)
def test_shapes_equal_those_of_torch(name: str, scheduler: type, settings: dict[str, float]) -> None:
    ours = [between(SHAPES[name](step / STEPS), 1.0, 0.1) for step in range(STEPS)]
    assert ours == pytest.approx(reference(scheduler, **settings), abs=1e-12, rel=0)
