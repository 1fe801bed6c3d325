"""What the guards remember between steps; saved in every checkpoint, and restored with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RunningAverage:
    """Mean and variance, a plain mean at first and then exponentially weighted.

    Args:
        mean, variance: of what it has learned.
        count: how many values that were.
    """

    mean: float = 0.0
    variance: float = 0.0
    count: int = 0

    def learn(self, value: float, window: int) -> RunningAverage:
        """The average with one more value.

        The weight of a value is that of a mean of ``window`` values, 2 / (window + 1). The variance follows by Finch,
        "Incremental calculation of weighted mean and variance" (2009).
        """
        weight = max(1.0 / (self.count + 1), 2.0 / (window + 1))
        change = value - self.mean
        variance = (1.0 - weight) * (self.variance + weight * change * change)
        return RunningAverage(self.mean + weight * change, variance, self.count + 1)

    @property
    def deviation(self) -> float:
        """Standard deviation."""
        return math.sqrt(self.variance)


@dataclass(frozen=True)
class Damping:
    """A factor on the learning rate that comes back to 1 in equal parts.

    Args:
        factor: what it was lowered to.
        step: steps done when it began to come back.
    """

    factor: float = 1.0
    step: int = 0

    def at(self, step: int, recovery_steps: int) -> float:
        """The factor for the step after ``step`` steps."""
        left = max(0.0, 1.0 - (step - self.step) / recovery_steps)
        return 1.0 - (1.0 - self.factor) * left


@dataclass(frozen=True)
class Incident:
    """A loss that left its running average; over when it has stayed back for ``spike_patience`` steps.

    Args:
        start: the first step of it.
        spikes: how often the loss left.
        away_since: the step at which it left; None while it is back.
        last_away: the last step at which it was away.
        back: the loss at which it is back, in nats.
    """

    start: int
    spikes: int
    away_since: int | None
    last_away: int
    back: float


@dataclass(frozen=True)
class BadRow:
    """Bad steps with few good ones between.

    Args:
        start: the first one.
        count: bad steps.
        good: good steps since the last one.
    """

    start: int
    count: int = 0
    good: int = 0


@dataclass(frozen=True)
class GuardState:
    """What the guards remember.

    Args:
        stage: stage that averages and lowest values belong to.
        lowest_loss: lowest finite loss of the stage, in nats; None before the first.
        average: of the loss; not taught by spikes.
        lowest_average: its lowest mean in the stage; None before the first.
        grad_norm: average of the gradient's norm.
        grad_norm_high: whether the last norm was far above it.
        drifting: whether the mean was found far above its lowest, and is still.
        sound_step: the last step after which nothing was wrong; a checkpoint is good if it is of this step or
            earlier, and nothing was wrong when it was saved.
        incident: a loss that left its average; None where there is none.
        bad_row: bad steps; None where there are none.
        damping: the factor on the learning rate.
    """

    stage: int = 0
    lowest_loss: float | None = None
    average: RunningAverage = field(default_factory=RunningAverage)
    lowest_average: float | None = None
    grad_norm: RunningAverage = field(default_factory=RunningAverage)
    grad_norm_high: bool = False
    drifting: bool = False
    sound_step: int = 0
    incident: Incident | None = None
    bad_row: BadRow | None = None
    damping: Damping = field(default_factory=Damping)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> GuardState:
        """The state that ``dataclasses.asdict`` made JSON of."""
        incident, bad_row = saved["incident"], saved["bad_row"]
        return cls(
            **{
                **saved,
                "average": RunningAverage(**saved["average"]),
                "grad_norm": RunningAverage(**saved["grad_norm"]),
                "incident": None if incident is None else Incident(**incident),
                "bad_row": None if bad_row is None else BadRow(**bad_row),
                "damping": Damping(**saved["damping"]),
            }
        )
