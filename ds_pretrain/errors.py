"""Errors that reach a user. A command prints a ``UserError`` as one message and exits with code 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class UserError(ValueError):
    """Something the user can mend: the message names the place, the value, what is allowed and the remedy."""

    exit_code = 2


class DataError(UserError):
    """A corpus, token file or tokenizer that cannot be used as it is."""


class CheckpointError(UserError):
    """A checkpoint or run folder that cannot be continued as asked."""


class PortTakenError(UserError):
    """The port on which the ranks are to meet is in use; the same command may work a moment later."""

    exit_code = 75  # sysexits.h: a temporary failure


class SaveError(RuntimeError):
    """A checkpoint that could not be written: the older ones stand, and the run goes on."""


class TrainingError(RuntimeError):
    """A run that failed while training; commands exit with code 1."""

    exit_code = 1


class LostRankError(TrainingError):
    """Another rank has died or cannot be reached any more: nothing can be agreed on with it, not even to leave."""


class Stopped(Exception):
    """The run was asked to stop before it had trained anything that is not saved yet."""

    exit_code = 0


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong with a recipe.

    Args:
        path: dotted path of the key, list indices included, e.g. ``curriculum.stages.1.seq_len``.
        message: value found, what is allowed, and the remedy, as one sentence.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class RecipeError(UserError):
    """A recipe with one or more problems, all of them reported at once.

    Args:
        problems: every problem found, in the order in which they are to be shown.
        source: the files the recipe came from, for the heading.
    """

    def __init__(self, problems: Sequence[Problem], source: str = "recipe") -> None:
        self.problems = tuple(problems)
        self.source = source
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = [f"{source}: {count}", *(f"  {problem}" for problem in self.problems)]
        super().__init__("\n".join(lines))
