"""How every command takes recipes: as arguments, as ``--config``, several of them, with overrides among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

RecipeArguments = Annotated[
    list[str], typer.Argument(help="Recipe files and key.path=value overrides, in any order.", show_default=False)
]
ConfigOption = Annotated[
    list[Path], typer.Option("--config", help="Recipe file; later ones over earlier ones.", show_default=False)
]


def split_arguments(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Tells recipe files from overrides: what holds an equals sign is an override.

    Args:
        arguments: positional arguments.

    Returns:
        Files and overrides, each in order.
    """
    files = [Path(argument) for argument in arguments if "=" not in argument]
    return files, [argument for argument in arguments if "=" in argument]
