"""The curve of one span: a recipe's ``schedule`` section turned into a function of the time since the span's start."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np

from ds_pretrain.config import Schedule
from ds_pretrain.errors import Problem, RecipeError
from ds_pretrain.schedules import shapes
from ds_pretrain.schedules.cycles import OneCycle, cycle_share
from ds_pretrain.schedules.shapes import Values

_CHECKED_POINTS = 1001


@dataclass(frozen=True)
class Span:
    """Where a curve lives.

    Args:
        length: from its start to its end, in tokens or in optimizer steps.
        last: length of its last optimizer step, in the same unit.
        warmup: length of the warmup before it, in the same unit.
    """

    length: float
    last: float
    warmup: float


Curve = Callable[[Values], Values]


def curve(schedule: Schedule, span: Span) -> Curve:
    """The factor on the peak, as a function of the time since the span's start, a number or an array of them.

    It never falls below ``schedule.floor``. ``constant`` and ``plateau`` stay at the peak, and so does every type on
    a span without length, as a warmup that fills it leaves. Lengths that a recipe leaves out are parts of the span.

    Args:
        schedule: the recipe's section.
        span: where the curve lives; its unit, tokens or optimizer steps, is that of the curve's argument.

    Returns:
        A pure function from the time in [0, ``span.length``] to the factor, of the shape of its argument.

    Raises:
        RecipeError: the function of type ``custom`` cannot be used.
    """
    floor = schedule.floor
    factor = shapes.constant if span.length <= 0 else _factor(schedule, span)
    if factor is not None:
        return lambda t: np.maximum(factor(t), floor)
    share = _share(schedule, span)
    return lambda t: shapes.between(share(t), 1.0, floor)


def one_cycle(schedule: Schedule, span: Span) -> OneCycle:
    """The one-cycle policy of a recipe over a span."""
    return OneCycle(
        span.length,
        span.last,
        schedule.pct_start,
        schedule.div_factor,
        schedule.final_div_factor,
        schedule.three_phase,
        schedule.anneal_strategy,
    )


def function_problems(schedule: Schedule) -> Sequence[Problem]:
    """What is wrong with the function of type ``custom``, which is imported and tried; empty for other types."""
    if schedule.type != "custom" or schedule.function is None or "." not in schedule.function:
        return ()  # the recipe's own check says what is missing
    try:
        _imported(schedule.function)
    except RecipeError as error:
        return error.problems
    return ()


def _factor(schedule: Schedule, span: Span) -> Curve | None:
    gamma = (0.1 if schedule.type == "exponential" else 0.1**0.5) if schedule.gamma is None else schedule.gamma
    match schedule.type:
        case "constant" | "plateau":
            return shapes.constant
        case "step":
            size = schedule.step_size or span.length / 3
            return lambda t: shapes.step(t, size, gamma)
        case "multistep":
            milestones = schedule.milestones or (0.8 * span.length, 0.9 * span.length)
            return lambda t: shapes.multistep(t, milestones, gamma)
        case "exponential" if schedule.k is not None:
            k = schedule.k
            return lambda t: shapes.exponential_rate(t, k)
        case "exponential":
            every = schedule.decay_every or span.length
            return lambda t: shapes.exponential(t, gamma, every)
        case "inverse_sqrt":
            timescale = schedule.timescale or span.warmup or 10_000 * span.last
            return lambda t: shapes.inverse_sqrt(t, timescale)
        case "noam":
            # its peak is the stage's, which Schedule.peak_factor has brought down to the formula's
            d_model, warmup, peak = schedule.d_model, schedule.noam_warmup, schedule.peak_factor
            return lambda t: shapes.noam(t / span.last + 1.0, d_model, warmup) / peak
        case "one_cycle":
            return one_cycle(schedule, span).factor
    return None


def _share(schedule: Schedule, span: Span) -> Curve:
    def by_progress(shape: Curve) -> Curve:
        return lambda t: shape(t / span.length)

    match schedule.type:
        case "linear":
            return by_progress(shapes.linear)
        case "polynomial":
            return by_progress(lambda progress: shapes.polynomial(progress, schedule.power))
        case "wsd":
            return by_progress(lambda progress: shapes.wsd(progress, schedule.decay_fraction, schedule.decay_shape))
        case "cosine_restarts":
            t_0 = schedule.t_0 or span.length / 3
            return lambda t: shapes.cosine_restarts(t, t_0, schedule.t_mult)
        case "triangular" | "triangular2" | "exp_range" as kind:
            up = schedule.step_size_up or span.length / 8
            down = schedule.step_size_down or up
            # unless stated, the height of exp_range has fallen to a tenth at the end
            gamma = 0.1 ** (1.0 / span.length) if schedule.gamma is None else schedule.gamma
            return lambda t: cycle_share(t, kind, up, down, gamma)
        case "custom":
            return by_progress(_imported(schedule.function or ""))
    return by_progress(shapes.cosine)


def _imported(path: str) -> Curve:
    """A user's own shape, tried over its whole range before it is trusted."""
    module, _, name = path.rpartition(".")
    try:
        with redirect_stdout(sys.stderr):  # standard output may be a document
            shape = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # whatever the user's code happens to raise, exit() included
        raise _unusable(path, f"cannot be imported: {type(error).__name__}: {error}") from error

    def checked(progress: float) -> float:
        try:
            share = float(shape(progress))
        except (Exception, SystemExit) as error:
            raise _unusable(path, f"cannot be used at {progress:g}: {type(error).__name__}: {error}") from error
        if not 0.0 <= share <= 1.0:  # nor is nan
            raise _unusable(path, f"returned {share:g} at {progress:g}")
        return share

    def shares(progress: Values) -> Values:
        # a user's function is one of numbers
        if not isinstance(progress, np.ndarray):
            return checked(float(progress))
        return np.array([checked(value) for value in progress.ravel().tolist()]).reshape(progress.shape)

    with redirect_stdout(sys.stderr):
        shares(np.linspace(0.0, 1.0, _CHECKED_POINTS))
    return shares


def _unusable(path: str, reason: str) -> RecipeError:
    return RecipeError(
        [
            Problem(
                "schedule.function",
                f"found {path!r}, which {reason}; allowed: package.module.function that takes the progress of the "
                "span, from 0 to 1, and returns the share of the way from floor to peak, from 0 to 1; "
                "the folder of a module that is not installed has to be on PYTHONPATH",
            )
        ]
    )
