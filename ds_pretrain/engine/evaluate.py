"""The engine's loss over rows of tokens, without learning from them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from torch import Tensor


def mean_loss(engine: DeepSpeedEngine, micro_batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Mean cross entropy over all targets of all ranks.

    Args:
        engine: the live engine; every rank must bring equally many micro batches.
        micro_batches: this rank's inputs and targets, int64 [rows, seq_len]; targets of -100 are not counted.

    Returns:
        Nats per token, alike on every rank.
    """
    device = engine.device
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    engine.eval()
    with torch.no_grad():
        for inputs, targets in micro_batches:
            wanted = targets.to(device, non_blocking=True)
            loss = engine(inputs.to(device, non_blocking=True), wanted)
            sums += torch.stack([loss.to(sums.dtype), (wanted >= 0).sum().to(sums.dtype)])
    engine.train()
    dist.all_reduce(sums)
    total, count = sums.tolist()
    return float(total / count)
