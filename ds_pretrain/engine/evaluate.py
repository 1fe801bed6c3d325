"""The engine's loss over rows of tokens, without learning from them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine

from ds_pretrain.data.inputs import MicroBatch


def mean_loss(engine: DeepSpeedEngine, micro_batches: Iterable[MicroBatch]) -> float:
    """Mean cross entropy over all targets of all ranks.

    Args:
        engine: the live engine; every rank must bring equally many micro batches.
        micro_batches: this rank's; targets of -100 are not counted.

    Returns:
        Nats per token, alike on every rank.
    """
    device = engine.device
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    engine.eval()
    try:
        with torch.no_grad():
            for micro in micro_batches:
                part = micro.to(device)
                loss = engine(part.input_ids, part.targets, **part.options)
                sums += torch.stack([loss.to(sums.dtype), (part.targets >= 0).sum().to(sums.dtype)])
    finally:  # it may be given up between two micro batches
        engine.train()
    dist.all_reduce(sums)
    total, count = sums.tolist()
    return float(total / count)
