"""Shapes of a learning rate after its warmup: pure functions from progress to a share of the peak.

``progress`` is the part of the shape that has passed, 0 at the end of the warmup and 1 at the end of the stage or
run; the share is 1 at the peak and 0 at the floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

Shape = Callable[[float], float]


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def linear(progress: float) -> float:
    """1 - progress."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """(1 + cos(pi x progress)) / 2, half a period (Loshchilov, Hutter: SGDR, ICLR 2017, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


SHAPES: Mapping[str, Shape] = MappingProxyType({"constant": constant, "linear": linear, "cosine": cosine})


def between(share: float, peak: float, floor: float) -> float:
    """The learning rate at a share of the way from ``floor`` (0) to ``peak`` (1)."""
    return peak * share + floor * (1.0 - share)  # exact at both ends
