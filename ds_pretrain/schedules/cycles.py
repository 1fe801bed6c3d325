"""Cyclical learning rates and the one-cycle policy, whose rise is their warmup: pure functions, of numbers or arrays.

Lengths are counted in tokens or in optimizer steps, as the time ``t`` since the start of the span is.
"""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ds_pretrain.schedules.shapes import Values

CycleKind = Literal["triangular", "triangular2", "exp_range"]


def cycle_share(t: Values, kind: CycleKind, step_size_up: float, step_size_down: float, gamma: float) -> Values:
    """Share of the way from floor to peak of a cyclical rate (Smith: Cyclical learning rates, WACV 2017).

    x / up in the rise, 1 - (x - up) / down in the fall, with x the time since the start of the cycle; times the height.

    Args:
        t: time since the start of the span.
        kind: ``triangular``: every cycle reaches the peak. ``triangular2``: cycle n reaches 0.5^(n - 1) of the way.
            ``exp_range``: the height is multiplied by gamma^t.
        step_size_up: time of the rise of a cycle.
        step_size_down: time of its fall.
        gamma: base of ``exp_range``.

    Returns:
        The share; 0 at the start of every cycle.
    """
    cycle = np.floor(1.0 + t / (step_size_up + step_size_down))
    x = 1.0 + t / (step_size_up + step_size_down) - cycle
    ratio = step_size_up / (step_size_up + step_size_down)
    height = np.where(x <= ratio, x / ratio, (x - 1.0) / (ratio - 1.0))
    if kind == "triangular2":
        height = height * 0.5 ** (cycle - 1.0)
    elif kind == "exp_range":
        height = height * gamma**t
    return height


@dataclass(frozen=True)
class OneCycle:
    """The one-cycle policy (Smith, Topin: Super-convergence, 2018), with torch's OneCycleLR's parameters.

    The rate goes from peak / div_factor to the peak and down to peak / (div_factor x final_div_factor), the momentum
    the other way. With three phases it first returns to where it started, mirrored, and then falls to its end.

    Args:
        length: length of the span.
        last: length of its last optimizer step, so that the last step is at the end of the cycle.
        pct_start: part of the span in which the rate rises.
        div_factor: peak over the first rate.
        final_div_factor: first rate over the last.
        three_phase: whether the fall has two phases.
        anneal_strategy: ``cos`` or ``linear``.
    """

    length: float
    last: float
    pct_start: float
    div_factor: float
    final_div_factor: float
    three_phase: bool
    anneal_strategy: Literal["cos", "linear"]

    def factor(self, t: Values) -> Values:
        """Factor on the peak.

        From a to b over a phase, q of which has passed: b + (a - b) (1 + cos(pi q)) / 2, or a + (b - a) q.

        Args:
            t: time since the start of the span, in the unit of ``length``.
        """
        first = 1.0 / self.div_factor
        return self._through(t, (first, 1.0, first, first / self.final_div_factor))

    def momentum(self, t: Values, base_momentum: float, max_momentum: float) -> Values:
        """Momentum, or Adam's first beta: lowest where the rate is highest.

        Args:
            t: time since the start of the span, in the unit of ``length``.
            base_momentum, max_momentum: the lowest, and the highest.
        """
        return self._through(t, (max_momentum, base_momentum, max_momentum, max_momentum))

    def _through(self, t: Values, corners: tuple[float, float, float, float]) -> Values:
        """Values at the start, the peak, the mirrored start and the end; two phases leave out the third."""
        rise = self.pct_start * self.length - self.last
        end = self.length - self.last
        edges, values = [0.0, rise, end], [corners[0], corners[1], corners[3]]
        if self.three_phase:
            edges, values = [0.0, rise, 2.0 * rise, end], list(corners)
        phases = list(zip(edges, edges[1:], values, values[1:], strict=False))
        result = self._anneal(t, *phases[-1])
        for start, stop, first, last in reversed(phases[:-1]):
            result = np.where(t <= stop, self._anneal(t, start, stop, first, last), result)
        return result

    def _anneal(self, t: Values, start: float, stop: float, first: float, last: float) -> Values:
        # a span of few steps leaves a phase no time, and the run may end a step after the cycle
        passed = np.minimum((t - start) / (stop - start), 1.0) if stop > start else t * 0.0 + 1.0
        if self.anneal_strategy == "linear":
            return first + (last - first) * passed
        return last + (first - last) / 2.0 * (1.0 + np.cos(np.pi * passed))
