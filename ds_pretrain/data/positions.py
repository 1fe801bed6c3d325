"""How long an epoch is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum import build_plan, plan_problems
from ds_pretrain.data.indexed import TokenFile, idx_path
from ds_pretrain.errors import DataError, Problem
from ds_pretrain.schedules.curve import function_problems
from ds_pretrain.schedules.plan_warnings import rate_problems


def epoch_positions(prefix: Path, max_seq_len: int) -> int:
    """Positions of one epoch: those of the whole windows of a token file.

    Args:
        prefix: the token file.
        max_seq_len: positions of a window.

    Raises:
        DataError: it holds no whole window.
    """
    tokens = TokenFile.open(prefix).num_tokens
    windows = (tokens - 1) // max_seq_len
    if windows < 1:
        raise DataError(
            f"{prefix}: has {tokens} tokens, but one window needs {max_seq_len + 1}; "
            "use more text, or a smaller data.max_seq_len"
        )
    return windows * max_seq_len


def source_problems(recipe: Recipe) -> Sequence[Problem]:
    """What is wrong with the token files that a recipe names; text that is still to be prepared is not looked at."""
    problems = []
    for key in ("train", "validation"):
        for index, source in enumerate(getattr(recipe.data, key)):
            if source.path is None:
                continue
            try:
                epoch_positions(Path(source.path), recipe.data.max_seq_len)
            except DataError as error:
                problems.append(Problem(f"data.{key}.{index}.path", str(error)))
    return problems


def planning_problems(recipe: Recipe, world_size: int, unprepared: bool) -> Sequence[Problem]:
    """What keeps a recipe from being planned.

    Args:
        recipe: a checked recipe.
        world_size: ranks to plan for.
        unprepared: whether the corpus may be prepared later, so that an epoch need not have a length yet.
    """
    try:
        positions = known_positions(recipe)
    except DataError as error:
        return [Problem("data.train", str(error))]
    # any length of an epoch will do to check the batches
    stand_in = recipe.data.max_seq_len if unprepared else None
    problems = [*plan_problems(recipe, world_size, positions or stand_in), *function_problems(recipe.schedule)]
    return problems or rate_problems(recipe, build_plan(recipe, world_size, positions or stand_in))


def known_positions(recipe: Recipe) -> int | None:
    """Positions of one epoch of a recipe's training corpus: of one pass over each of its sources.

    Returns:
        None where a source is still to be prepared.
    """
    total = 0
    for source in recipe.data.train:
        if source.path is None or not idx_path(Path(source.path)).is_file():
            return None
        total += epoch_positions(Path(source.path), recipe.data.max_seq_len)
    return total
