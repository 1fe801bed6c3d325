"""Warmup: from the learning rate at which a stage is entered to the one it aims at, up or down."""

from __future__ import annotations

import math
from typing import Literal

WarmupShape = Literal["linear", "cosine", "inverse", "constant"]


def warmup_lr(shape: WarmupShape, entry: float, target: float, k: int, warmup_steps: int) -> float:
    """entry + (target - entry) x share, whose share ends at 1: no step is wasted at the entry rate.

    The share of step k of W is (k + 1) / W (``linear``), (1 - cos(pi (k + 1) / W)) / 2 (``cosine``),
    1 / sqrt(W / (k + 1)) (``inverse``: steep, then slow, the mirror of ``inverse_sqrt``), or 1 (``constant``: the
    target at once; what comes after the warmup waits for its end). The first three are continuous at both ends.

    Args:
        shape: which share.
        entry: learning rate of the step before the warmup; 0 at the start of a run.
        target: learning rate of the warmup's last step.
        k: steps of the warmup done before this one, from 0 to warmup_steps - 1.
        warmup_steps: W, length of the warmup in optimizer steps.

    Returns:
        The learning rate of this step.
    """
    if shape == "linear":
        return entry + (target - entry) * (k + 1) / warmup_steps
    share = {
        "cosine": 0.5 * (1.0 - math.cos(math.pi * (k + 1) / warmup_steps)),
        "inverse": math.sqrt((k + 1) / warmup_steps),
        "constant": 1.0,
    }[shape]
    return entry + (target - entry) * share
