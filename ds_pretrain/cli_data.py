"""``ds-pretrain prepare`` and ``ds-pretrain data``: making a corpus and looking at one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ds_pretrain.arguments import ConfigOption, RecipeArguments, split_arguments

if TYPE_CHECKING:
    from ds_pretrain.data.documents import LeftOut
    from ds_pretrain.data.publish import PrepareReport

data_app = typer.Typer(help="Look at a corpus, or put its shards together.", no_args_is_help=True)

_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier prepare wrote.")]


def prepare(
    sources: Annotated[
        list[str],
        typer.Option("--input", help="File, folder, glob, hf:DATASET or python-stdlib; may be repeated."),
    ],
    output: Annotated[Path, typer.Option(help="Prefix of the .bin/.idx pair.")],
    tokenizer: Annotated[
        str, typer.Option(help="A transformers tokenizer, train:VOCAB_SIZE or train:VOCAB_SIZE:unigram.")
    ],
    validation: Annotated[float, typer.Option(min=0.0, max=0.5, help="Share of documents held out.")] = 0.0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; all cores unless given.")] = None,
    text_field: Annotated[str, typer.Option(help="Key or column of a record that holds the text.")] = "text",
    split: Annotated[str | None, typer.Option(help="Split of a data set.")] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a data set.")] = None,
    streaming: Annotated[bool, typer.Option("--streaming", help="Read a data set as it arrives.")] = False,
    deduplicate: Annotated[bool, typer.Option("--deduplicate", help="Leave out documents seen before.")] = False,
    min_characters: Annotated[int, typer.Option(min=1, help="Leave out shorter documents.")] = 1,
    max_characters: Annotated[int | None, typer.Option(min=1, help="Leave out longer documents.")] = None,
    shard: Annotated[
        str | None, typer.Option(help="INDEX/COUNT, the index from 0: do this part only; see data merge.")
    ] = None,
    overwrite: _Overwrite = False,
) -> None:
    """Turn text into token files; started again, go on where it stopped."""
    from ds_pretrain.data.prepare import Options, prepare_shard
    from ds_pretrain.data.prepare import prepare as prepare_corpus
    from ds_pretrain.data.sources import parse_shard
    from ds_pretrain.observe.prepare_progress import prepare_progress

    with prepare_progress() as progress:
        options = Options(
            tokenizer=tokenizer,
            validation=validation,
            workers=workers,
            text_field=text_field,
            split=split,
            subset=subset,
            streaming=streaming,
            deduplicate=deduplicate,
            min_characters=min_characters,
            max_characters=max_characters,
            overwrite=overwrite,
            progress=progress,
        )
        if shard is not None:
            done = prepare_shard(sources, output, parse_shard(shard), **options)
        else:
            report = prepare_corpus(sources, output, **options)
    if shard is None:
        _tell(report)
        return
    print(f"shard {shard}: {sum(done.documents):,} documents, {sum(done.tokens):,} tokens")
    _tell_left_out(done.left_out)
    print(f"once every shard is done: ds-pretrain data merge {output}")


@data_app.command()
def merge(
    output: Annotated[Path, typer.Argument(help="What prepare --shard was given as --output.")],
    overwrite: _Overwrite = False,
) -> None:
    """Make one corpus of the shards of prepare --shard."""
    from ds_pretrain.data.publish import publish

    _tell(publish(output, overwrite=overwrite))


@data_app.command()
def inspect(
    prefix: Annotated[Path, typer.Argument(help="Path of a corpus, without .bin and .idx.")],
    samples: Annotated[int, typer.Option(min=0, help="Documents to show the beginning of.")] = 3,
    tokenizer: Annotated[str | None, typer.Option(help="To decode with; the manifest's unless given.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every token: checksums, and ids beyond the vocabulary.")
    ] = False,
) -> None:
    """Show what a corpus holds: documents, tokens, lengths, a few texts."""
    from rich.console import Console

    from ds_pretrain.data.inspect import inspect_corpus
    from ds_pretrain.observe.corpus_table import corpus_table

    found = inspect_corpus(prefix, samples=samples, tokenizer=tokenizer, verify_all=verify)
    console = Console()
    for part in corpus_table(prefix, found):
        console.print(part, markup=False, highlight=False, soft_wrap=True)


@data_app.command()
def sample(
    step: Annotated[int, typer.Option(min=1, help="Step, as metrics.jsonl counts them.")],
    arguments: RecipeArguments = [],
    config: ConfigOption = [],
    rank: Annotated[int | None, typer.Option(min=0, help="One rank alone.")] = None,
    world_size: Annotated[
        int | None, typer.Option(min=1, help="Ranks of the run; as its folder says, else 1, unless given.")
    ] = None,
) -> None:
    """Show the very text that a run trains on at a step, rank by rank."""
    from functools import partial

    from ds_pretrain.config import load_recipe
    from ds_pretrain.data.positions import planning_problems
    from ds_pretrain.train.data_sample import sample_step

    files, overrides = split_arguments(arguments)
    plannable = partial(planning_problems, world_size=world_size or 1, unprepared=True)
    recipe = load_recipe([*config, *files], overrides, [plannable] if world_size else [])
    for row in sample_step(recipe, step, rank, world_size):
        print(
            f"--- rank {row.rank}, row {row.row}: stage {row.stage}, {row.source}, "
            f"document {row.document:,}, token {row.token:,}"
        )
        print(row.text)


def _tell(report: PrepareReport) -> None:
    for prefix, manifest in ((report.train_prefix, report.train), (report.validation_prefix, report.validation)):
        if manifest is not None:
            print(f"{prefix}: {manifest.documents:,} documents, {manifest.tokens:,} tokens")
    print(f"tokenizer: {report.tokenizer}")
    _tell_left_out(report.left_out)


def _tell_left_out(left_out: LeftOut) -> None:
    reasons = [f"{number:,} {name.replace('_', ' ')}" for name, number in asdict(left_out).items() if number]
    if reasons:
        print(f"documents left out: {', '.join(reasons)}")
