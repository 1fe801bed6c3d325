"""Shapes of a learning rate after its warmup: pure functions, of numbers or numpy arrays alike.

Two kinds. A *share* tells how far the rate is from its floor (0) to its peak (1), by the progress of the span, 0 at
the end of the warmup and 1 at the end of the stage or run. A *factor* is multiplied with the peak, by the time ``t``
since the end of the warmup, counted in tokens or in optimizer steps as every other length that it is given.
"""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# a number or an array of them; numpy gives what it gets
Values = float | NDArray[Any]


def constant(t: Values) -> Values:
    """Factor 1 throughout.

    Args:
        t: time since the end of the warmup, in tokens or optimizer steps.
    """
    return t * 0.0 + 1.0


def linear(progress: Values) -> Values:
    """Share 1 - progress (torch's LinearLR).

    Args:
        progress: part of the span that has passed, from 0 to 1.
    """
    return 1.0 - progress


def polynomial(progress: Values, power: float) -> Values:
    """Share (1 - progress)^power (torch's PolynomialLR).

    Args:
        progress: part of the span that has passed, from 0 to 1.
        power: exponent; above 1 most of the fall comes early.
    """
    return (1.0 - progress) ** power


def cosine(progress: Values) -> Values:
    """Share (1 + cos(pi x progress)) / 2, half a period (Loshchilov, Hutter: SGDR, ICLR 2017, without restarts).

    Args:
        progress: part of the span that has passed, from 0 to 1.
    """
    return 0.5 * (1.0 + np.cos(np.pi * progress))


def cosine_restarts(t: Values, t_0: float, t_mult: float) -> Values:
    """Share (1 + cos(pi x p)) / 2, p the part of the present cycle that has passed (SGDR, ICLR 2017).

    The first cycle lasts t_0, the next t_0 x t_mult, and so on.

    Args:
        t: time since the end of the warmup.
        t_0: length of the first cycle, in the unit of ``t``.
        t_mult: factor from a cycle's length to the next one's; at least 1.

    Returns:
        The share; 1 at every restart.
    """
    if t_mult == 1.0:
        return cosine(t % t_0 / t_0)
    # cycle n starts at t_0 x (t_mult^n - 1) / (t_mult - 1); a rounding error must not land in the cycle before
    cycle = np.floor(np.log1p(t / t_0 * (t_mult - 1.0)) / np.log(t_mult) + 1e-12)
    start = t_0 * (t_mult**cycle - 1.0) / (t_mult - 1.0)
    return cosine((t - start) / (t_0 * t_mult**cycle))


def step(t: Values, step_size: float, gamma: float) -> Values:
    """Factor gamma^floor(t / step_size) (torch's StepLR).

    Args:
        t: time since the end of the warmup.
        step_size: time between two falls, in the unit of ``t``.
        gamma: factor of one fall.
    """
    return gamma ** np.floor(t / step_size)


def multistep(t: Values, milestones: Sequence[float], gamma: float) -> Values:
    """Factor gamma^(milestones that t has reached) (torch's MultiStepLR).

    Args:
        t: time since the end of the warmup.
        milestones: when the rate falls, in the unit of ``t``, in any order.
        gamma: factor of one fall.
    """
    return gamma ** np.searchsorted(np.sort(np.asarray(milestones, dtype=float)), t, side="right")


def exponential(t: Values, gamma: float, decay_every: float) -> Values:
    """Factor gamma^(t / decay_every) (torch's ExponentialLR at decay_every 1).

    Args:
        t: time since the end of the warmup.
        gamma: factor of the fall in ``decay_every``.
        decay_every: time, in the unit of ``t``.
    """
    return gamma ** (t / decay_every)


def exponential_rate(t: Values, k: float) -> Values:
    """Factor e^(-k t), with the half-life ln(2) / k.

    Args:
        t: time since the end of the warmup.
        k: rate of the fall, per unit of ``t``.
    """
    return np.exp(-k * t)


def inverse_sqrt(t: Values, timescale: float) -> Values:
    """Factor sqrt(timescale / (timescale + t)) (transformers' inverse_sqrt, whose time counts the warmup too).

    Args:
        t: time since the end of the warmup.
        timescale: when the factor has fallen to sqrt(1/2), in the unit of ``t``.
    """
    return np.sqrt(timescale / (timescale + t))


def noam(step_number: Values, d_model: float, warmup: float) -> Values:
    """Factor d_model^-0.5 x min(s^-0.5, s x warmup^-1.5) (Vaswani et al.: Attention is all you need, 2017, eq. 3).

    Args:
        step_number: s, optimizer steps from 1.
        d_model: the paper's model width.
        warmup: steps at which the factor is largest.
    """
    return d_model**-0.5 * np.minimum(step_number**-0.5, step_number * warmup**-1.5)


def wsd(progress: Values, decay_fraction: float, decay_shape: str) -> Values:
    """Share of warmup, stable, decay: 1, and over the last part of the span down to 0 (Hu et al.: MiniCPM, 2024).

    With q the part of the decay that has passed: 1 - q, (1 + cos(pi q)) / 2, or 1 - sqrt(q).

    Args:
        progress: part of the span that has passed, from 0 to 1.
        decay_fraction: last part of the span in which the rate falls.
        decay_shape: ``linear``, ``cosine``, or ``1-sqrt``, which is 1 - sqrt(progress of the decay)
            (Haegele et al.: Scaling laws and compute-optimal training beyond fixed training durations, 2024).
    """
    # two subtractions that meet 0 exactly where the decay starts
    fallen = np.clip((progress - (1.0 - decay_fraction)) / decay_fraction, 0.0, 1.0)
    if decay_shape == "linear":
        return 1.0 - fallen
    if decay_shape == "cosine":
        return cosine(fallen)
    return 1.0 - np.sqrt(fallen)


def between(share: Values, peak: float, floor: float) -> Values:
    """floor + share x (peak - floor), exact at both ends.

    Args:
        share: of the way from floor (0) to peak (1).
        peak, floor: learning rates, or factors on one.
    """
    return peak * share + floor * (1.0 - share)
