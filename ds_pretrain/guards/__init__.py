"""Guards: from reduced values to what a step was and what is to be done. Pure, so that all ranks decide alike."""

from ds_pretrain.guards.history import Rollback, RollbackHistory
from ds_pretrain.guards.judge import Notice, StepFacts, Verdict, after_evaluation, after_step, is_bad_step
from ds_pretrain.guards.state import GuardState

__all__ = [
    "GuardState",
    "Notice",
    "Rollback",
    "RollbackHistory",
    "StepFacts",
    "Verdict",
    "after_evaluation",
    "after_step",
    "is_bad_step",
]
