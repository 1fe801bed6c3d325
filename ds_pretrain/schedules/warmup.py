"""Warmup: from the learning rate at which a stage is entered to the one it aims at, up or down."""

from __future__ import annotations


def linear_warmup(entry: float, target: float, k: int, warmup_steps: int) -> float:
    """entry + (target - entry) x (k + 1) / warmup_steps: no step is wasted at the entry rate.

    Args:
        entry: learning rate of the step before the warmup; 0 at the start of a run.
        target: learning rate of the warmup's last step.
        k: steps of the warmup done before this one, from 0 to warmup_steps - 1.
        warmup_steps: length of the warmup in optimizer steps.

    Returns:
        The learning rate of this step.
    """
    return entry + (target - entry) * (k + 1) / warmup_steps
