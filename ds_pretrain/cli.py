"""The ``ds-pretrain`` command."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import typer
from rich.console import Console

from ds_pretrain.arguments import ConfigOption, RecipeArguments, split_arguments
from ds_pretrain.cli_data import data_app, prepare
from ds_pretrain.config import Recipe, load_recipe
from ds_pretrain.curriculum import Plan, build_plan
from ds_pretrain.data.positions import known_positions, planning_problems, source_problems
from ds_pretrain.data.vocabulary import vocabulary_problems
from ds_pretrain.engine.deepspeed_json import Precision, extra_problems
from ds_pretrain.engine.plan_files import plan_document, write_plan_files
from ds_pretrain.errors import Problem, UserError
from ds_pretrain.observe.group_table import group_table
from ds_pretrain.observe.logs import quiet_imports
from ds_pretrain.observe.lr_curve import lr_curve
from ds_pretrain.observe.plan_plot import plot_plan
from ds_pretrain.observe.plan_table import plan_table
from ds_pretrain.observe.terminal import outlive_readers
from ds_pretrain.schedules import LearningRateSchedule

app = typer.Typer(
    help="Pretraining language models on DeepSpeed with sequence-length curricula.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(prepare)
app.add_typer(data_app, name="data")


@app.command()
def plan(
    arguments: RecipeArguments = [],
    config: ConfigOption = [],
    world_size: Annotated[int, typer.Option(min=1, help="Ranks to plan for.")] = 1,
    precision: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32, where the recipe says auto.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for plan.json and DeepSpeed's JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plan.json instead of the table.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="File for a picture: .png, .svg or .pdf; of every group with --groups.")
    ] = None,
    groups: Annotated[bool, typer.Option("--groups", help="Show the parameter groups too; loads torch.")] = False,
    lr_csv: Annotated[Path | None, typer.Option(help="File for the learning rate of every step.")] = None,
) -> None:
    """Show every stage of a recipe before anything is started."""
    recipe = _checked(arguments, config, world_size)
    resolved = build_plan(recipe, world_size, known_positions(recipe))
    chosen, assumed = _planned_precision(recipe, precision)
    document = plan_document(resolved, recipe, chosen, assumed)
    schedule = LearningRateSchedule(resolved, recipe.schedule)
    if groups:
        from ds_pretrain.train.planned_groups import planned_groups

        document["groups"], more_assumed = planned_groups(recipe, resolved)
        document["assumed"] |= more_assumed
    try:
        if out is not None:
            write_plan_files(document, out)
        if plot is not None:
            # one curve unless --groups has loaded the model
            plot_plan(resolved, schedule, document.get("groups", ()), recipe.run.name, plot)
        if lr_csv is not None:
            _write_lr_csv(resolved, schedule, lr_csv)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written ({error.strerror})") from error
    for warning in document["warnings"]:
        print(warning if warning.startswith("note: ") else f"warning: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        console = Console()
        console.print(plan_table(document, recipe.run.name))
        if console.encoding.startswith("utf"):
            print(lr_curve(resolved, schedule, console.width))
        if groups:
            console.print(group_table(document["groups"], document["assumed"].get("vocab_size")))


@app.command()
def launch(arguments: RecipeArguments = [], config: ConfigOption = []) -> None:
    """Check and plan a recipe, start deepspeed (its flags go behind --), and look after its processes."""
    from ds_pretrain.launcher import launch_run, world_size

    outlive_readers()
    flags = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    files, overrides = split_arguments(arguments[: len(arguments) - len(flags)])
    files = [*config, *files]
    ranks = world_size(flags)
    recipe = load_recipe(
        files, overrides, [partial(_plannable, world_size=ranks, unprepared=True), source_problems, vocabulary_problems]
    )
    resolved = build_plan(recipe, ranks, known_positions(recipe) or recipe.data.max_seq_len)
    if recipe.divides_parameters:
        from ds_pretrain.train.planned_groups import planned_groups

        planned_groups(recipe, resolved)  # refuses what the model cannot do
    Console().print(plan_table(plan_document(resolved, recipe, *_planned_precision(recipe, None)), recipe.run.name))
    sys.exit(launch_run(files, overrides, flags, recipe.checkpoint.grace_seconds))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    to: Annotated[Path, typer.Option(help="New folder for the model.")],
) -> None:
    """Write a run's newest checkpoint as a folder that transformers loads."""
    from ds_pretrain.train.export import export_run

    print(export_run(run, to))


@app.command()
def checkpoints(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """List a run's checkpoints and verify every file; exits with 1 where one is damaged."""
    from ds_pretrain.engine.checkpoint_list import checkpoint_entries
    from ds_pretrain.observe.checkpoint_table import checkpoint_document, checkpoint_table

    folder = run / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{run}: not a run's folder (it has no checkpoints); give <run.output_dir>/<run.name>")
    entries = checkpoint_entries(folder)
    if as_json:
        print(json.dumps(checkpoint_document(entries), indent=2))
    else:
        Console().print(checkpoint_table(entries))
        for problem in (problem for entry in entries for problem in entry.damage):
            print(problem)
    if any(entry.damage and entry.aside is None for entry in entries):
        sys.exit(1)


@app.command()
def sample(
    model: Annotated[Path, typer.Argument(help="Folder that export wrote.")],
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    tokens: Annotated[int, typer.Option(min=1, help="Length of the continuation.")] = 48,
) -> None:
    """Print how an exported model continues a text."""
    from ds_pretrain.train.export import continue_text

    print(continue_text(model, prompt, tokens))


def main() -> None:
    """Entry point: what the user can mend is one message and exit code 2."""
    quiet_imports()
    try:
        app()
    except UserError as error:
        print(f"ds-pretrain: {error}", file=sys.stderr)
        sys.exit(2)


def _checked(arguments: Sequence[str], config: Sequence[Path], world_size: int) -> Recipe:
    files, overrides = split_arguments(arguments)
    return load_recipe([*config, *files], overrides, [partial(_plannable, world_size=world_size)])


def _plannable(recipe: Recipe, world_size: int, unprepared: bool = False) -> Sequence[Problem]:
    problems = planning_problems(recipe, world_size, unprepared)
    if problems:
        return problems
    resolved = build_plan(recipe, world_size, known_positions(recipe) or recipe.data.max_seq_len)
    return extra_problems(recipe, resolved.stages[0], _planned_precision(recipe, None)[0])


def _planned_precision(recipe: Recipe, given: str | None) -> tuple[Precision, dict[str, str]]:
    """The precision to plan with, and why it had to be assumed."""
    if given is not None and given not in ("bf16", "fp16", "fp32"):
        raise UserError(f"--precision: found {given!r}; allowed: bf16, fp16, fp32")
    asked = given or recipe.precision
    if asked != "auto":
        return cast("Precision", asked), {}
    return "bf16", {"precision": "auto: bf16 where the device has it, else fp16; fp32 on a CPU"}


def _write_lr_csv(resolved: Plan, schedule: LearningRateSchedule, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "tokens", "stage", "lr"])
        for stage in resolved.stages:
            steps = np.arange(stage.start_step, stage.end_step)
            tokens = stage.start_tokens + (steps - stage.start_step) * stage.tokens_per_step
            # floats of Python's are written with every bit that they have
            writer.writerows(
                zip(steps.tolist(), tokens.tolist(), repeat(stage.index), schedule.rates(steps).tolist(), strict=False)
            )
