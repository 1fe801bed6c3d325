"""What a run remembers of its rollbacks; kept apart from checkpoints, since whoever goes back must not forget it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ds_pretrain.curriculum.skips import Skip


@dataclass(frozen=True)
class Rollback:
    """One rollback.

    Args:
        from_step: steps done when the run went back.
        target_step: steps done in the checkpoint that it went back to; the data from there to ``from_step`` is skipped.
        lr_factor: what it lowers all learning rates by.
        reason: why, as a clause.
    """

    from_step: int
    target_step: int
    lr_factor: float
    reason: str

    def __str__(self) -> str:
        return (
            f"went back from step {self.from_step} to step {self.target_step}: {self.reason}; data of the "
            f"steps between is left out, learning rate x {self.lr_factor:g}"
        )


@dataclass(frozen=True)
class RollbackHistory:
    """All rollbacks of a run, in order."""

    rollbacks: tuple[Rollback, ...] = ()

    @property
    def count(self) -> int:
        """How many there were."""
        return len(self.rollbacks)

    @property
    def lr_factor(self) -> float:
        """Factor on every learning rate from now on."""
        return math.prod(rollback.lr_factor for rollback in self.rollbacks)

    @property
    def skips(self) -> tuple[Skip, ...]:
        """The data that is left out, as the loader takes it."""
        return tuple(Skip(one.target_step, one.from_step - one.target_step) for one in self.rollbacks)

    def then(self, rollback: Rollback) -> RollbackHistory:
        """The history with one more."""
        return RollbackHistory((*self.rollbacks, rollback))

    def rejects(self, step: int, known: int) -> bool:
        """Whether a checkpoint was left behind by a rollback.

        Args:
            step: steps done in the checkpoint.
            known: how many rollbacks the run had behind it when it was saved.
        """
        return any(step > rollback.target_step for rollback in self.rollbacks[known:])

    def to_json(self) -> dict[str, Any]:
        """Plain values, as ``recovery.json`` holds them."""
        return {"count": self.count, "rollbacks": [asdict(rollback) for rollback in self.rollbacks]}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> RollbackHistory:
        """What ``to_json`` made.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        return cls(tuple(_checked(Rollback(**rollback)) for rollback in saved["rollbacks"]))


def _checked(rollback: Rollback) -> Rollback:
    """The same, if it is one that a run could have had; a file may have been written by anybody."""
    steps = (rollback.target_step, rollback.from_step)
    if not all(type(step) is int for step in steps) or not 0 <= steps[0] < steps[1]:
        raise ValueError(f"found target_step {steps[0]!r} and from_step {steps[1]!r}, not a step and a later one")
    if type(rollback.lr_factor) not in (int, float) or not 0 < rollback.lr_factor <= 1:
        raise ValueError(f"found lr_factor {rollback.lr_factor!r}, not a number above 0 and up to 1")
    if not isinstance(rollback.reason, str):
        raise TypeError(f"found reason {rollback.reason!r}, not a sentence")
    return rollback
