"""Warmup: from the learning rate at which a stage is entered to the one it aims at, up or down. Numbers or arrays."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from typing import Literal

import numpy as np

from ds_pretrain.schedules.shapes import Values

WarmupShape = Literal["linear", "cosine", "inverse", "constant"]


def warmup_lr(shape: WarmupShape, entry: float, target: float, k: Values, warmup_steps: int) -> Values:
    """entry + (target - entry) x share, whose share ends at 1: no step is wasted at the entry rate.

    The share of step k of W is (k + 1) / W (``linear``), (1 - cos(pi (k + 1) / W)) / 2 (``cosine``),
    1 / sqrt(W / (k + 1)) (``inverse``: steep, then slow, the mirror of ``inverse_sqrt``), or 1 (``constant``: the
    target at once; what comes after the warmup waits for its end). The first three are continuous at both ends.
    The linear one is that of Goyal et al. (Accurate, large minibatch SGD, 2017), counted from k + 1.

    Args:
        shape: which share.
        entry: learning rate of the step before the warmup; 0 at the start of a run.
        target: learning rate of the warmup's last step.
        k: optimizer steps of the warmup done before this one, from 0 to warmup_steps - 1.
        warmup_steps: W, length of the warmup in optimizer steps.

    Returns:
        The learning rate of this step, in the unit of ``entry`` and ``target``.
    """
    if shape == "linear":
        return entry + (target - entry) * (k + 1) / warmup_steps
    done = (k + 1) / warmup_steps
    share: Values
    if shape == "cosine":
        share = 0.5 * (1.0 - np.cos(np.pi * done))
    elif shape == "inverse":
        share = np.sqrt(done)
    else:
        share = done * 0.0 + 1.0
    return entry + (target - entry) * share
