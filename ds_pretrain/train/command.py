"""The command lines of ``launch/pretrain.py`` and ``launch/find_lr.py``."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ds_pretrain.arguments import ConfigOption, RecipeArguments, split_arguments
from ds_pretrain.observe.logs import quiet_imports
from ds_pretrain.observe.terminal import outlive_readers

LocalRank = Annotated[int, typer.Option("--local_rank", hidden=True, help="Set by the launcher.")]


OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder for the results; lr_finder in the run's folder unless given.")
]


def _pretrain(arguments: RecipeArguments = [], config: ConfigOption = [], local_rank: LocalRank = 0) -> None:
    """Train a recipe, or continue its run."""
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    # imported late: a mistyped option is answered before torch is loaded
    from ds_pretrain.train.run import pretrain

    files, overrides = split_arguments(arguments)
    _leave(pretrain([*config, *files], overrides))


def _find_lr(
    arguments: RecipeArguments = [], config: ConfigOption = [], out: OutOption = None, local_rank: LocalRank = 0
) -> None:
    """Find the learning rate of every sequence length of a recipe."""
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    from ds_pretrain.train.lr_finder import find_learning_rates

    files, overrides = split_arguments(arguments)
    _leave(find_learning_rates([*config, *files], overrides, out))


def _leave(code: int) -> None:
    # all is saved and closed: on the interpreter's way out, threads of libraries have aborted ranks that ended well
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(command: Callable[..., None]) -> None:
    # OpenMP's threads spin while they wait, which on a machine that others use too costs several times the step
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # until there is something to save, Ctrl-C ends this process as SIGTERM does: at once, without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    outlive_readers()
    quiet_imports()
    typer.run(command)


def main() -> None:
    """Trains; entry point on every rank."""
    _run(_pretrain)


def find_lr() -> None:
    """Finds learning rates; entry point on every rank."""
    _run(_find_lr)


if __name__ == "__main__":
    main()
