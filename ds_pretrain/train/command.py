"""The command line of ``launch/pretrain.py``."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from ds_pretrain.arguments import ConfigOption, RecipeArguments, split_arguments
from ds_pretrain.observe.logs import quiet_imports

LocalRank = Annotated[int, typer.Option("--local_rank", hidden=True, help="Set by the launcher.")]


def _command(arguments: RecipeArguments = [], config: ConfigOption = [], local_rank: LocalRank = 0) -> None:
    """Train a recipe, or continue its run."""
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    # imported late: a mistyped option is answered before torch is loaded
    from ds_pretrain.train.run import pretrain

    files, overrides = split_arguments(arguments)
    code = pretrain([*config, *files], overrides)
    # all is saved and closed: on the interpreter's way out, threads of libraries have aborted ranks that ended well
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Entry point on every rank."""
    # OpenMP's threads spin while they wait, which on a machine that others use too costs several times the step
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    quiet_imports()
    typer.run(_command)


if __name__ == "__main__":
    main()
