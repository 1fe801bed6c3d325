"""Whether corpora, tokenizer and model of a recipe fit together, as far as files tell: before a rank is started."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ds_pretrain.config import Recipe
from ds_pretrain.data.indexed import TokenFile
from ds_pretrain.data.manifest import manifest_of
from ds_pretrain.data.token_ids import check_ids
from ds_pretrain.errors import DataError, Problem

_TOKENS_LOOKED_AT = 1 << 28  # of a corpus without a manifest: about a second


def vocabulary_problems(recipe: Recipe) -> Sequence[Problem]:
    """What does not fit: a corpus that is not what its manifest says, or ids that a tokenizer or model does not have.

    Of a corpus without a manifest, the ids of 2²⁸ tokens spread over it are looked at. Names on the hub, and text that
    is still to be prepared, are not; the ranks check them.

    Args:
        recipe: a checked recipe.
    """
    limits = list(_limits(recipe))
    problems = []
    for key in ("train", "validation"):
        for index, source in enumerate(getattr(recipe.data, key)):
            if source.path is None:
                continue
            path = f"data.{key}.{index}.path"
            try:
                corpus = TokenFile.open(Path(source.path))
            except DataError:
                continue  # source_problems tells of it
            try:
                manifest = manifest_of(corpus)
            except DataError as error:
                problems.append(Problem(path, str(error)))
                continue
            if manifest is None and recipe.tokenizer is None:
                problems.append(
                    Problem(
                        path,
                        f"found {source.path}, which has no manifest that names a tokenizer; set tokenizer.path to the "
                        "one it was made with",
                    )
                )
            if manifest is None and limits:
                try:
                    check_ids(corpus, min(size for _, size, _ in limits), at_most=_TOKENS_LOOKED_AT)
                except DataError as error:
                    problems.append(Problem(path, str(error)))
            problems += [
                Problem(
                    path,
                    f"found {source.path}, made with a vocabulary of {manifest.vocab_size}, but {name} has {size} "
                    f"entries; {remedy}",
                )
                for name, size, remedy in limits
                if manifest is not None and size < manifest.vocab_size
            ]
    return problems


def _limits(recipe: Recipe) -> Iterator[tuple[str, int, str]]:
    """Name and size of what every token id has to be below, and the remedy."""
    name = recipe.tokenizer.path if recipe.tokenizer is not None else None
    if name is not None and (Path(name) / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        size = Tokenizer.from_file(str(Path(name) / "tokenizer.json")).get_vocab_size()
        yield f"tokenizer.path {name}", size, "use the tokenizer that the corpus was made with"
    stated = recipe.model.config.get("vocab_size")
    if isinstance(stated, int):
        yield "model.config.vocab_size", stated, "leave it out, and the model takes the corpus's"
    if recipe.model.pretrained is not None and (config := _pretrained_size(Path(recipe.model.pretrained))) is not None:
        yield f"model.pretrained {recipe.model.pretrained}", config, "prepare the corpus with the model's tokenizer"


def _pretrained_size(folder: Path) -> int | None:
    """Entries of the vocabulary that a model's folder states; None where it states none."""
    try:
        size = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vocab_size")
    except (OSError, ValueError, AttributeError):
        return None
    return size if isinstance(size, int) else None
