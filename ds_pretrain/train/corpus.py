"""The corpus of a run: token files, prepared first where the recipe names text, and the vocabulary they use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ds_pretrain.config import Recipe, Source
from ds_pretrain.data.cache import CachedCorpus, prepare_cached
from ds_pretrain.data.manifest import Manifest, open_corpus
from ds_pretrain.data.positions import known_positions
from ds_pretrain.data.prepare import Progress
from ds_pretrain.data.tokenizer import load_tokenizer
from ds_pretrain.errors import DataError
from ds_pretrain.model.build import Vocabulary


@dataclass(frozen=True)
class Corpus:
    """Where a run's tokens are.

    Args:
        train: prefix of the training token file.
        validation: name and prefix of every validation token file.
        tokenizer: the tokenizer's folder or name; None for a corpus that names none.
        vocabulary: size and special ids.
        fingerprint: what changes when the training tokens do: their checksum, or their number without a manifest.
    """

    train: Path
    validation: tuple[tuple[str, Path], ...]
    tokenizer: str | None
    vocabulary: Vocabulary
    fingerprint: str


def resolve_corpus(recipe: Recipe, progress: Progress | None = None) -> Corpus:
    """Finds the token files of a recipe, and prepares those that it names as text.

    Args:
        recipe: a checked recipe.
        progress: told how far a preparation is.

    Returns:
        Token files that exist and fit their vocabulary.

    Raises:
        DataError: a file is missing, damaged, or of another vocabulary; or no tokenizer is known.
    """
    prepared = _prepare(recipe, progress)
    train = prepared.train if prepared is not None else Path(str(recipe.data.train[0].path))
    validation = [(_name(source), Path(str(source.path))) for source in recipe.data.validation]
    if prepared is not None and prepared.validation is not None:
        validation.append(("validation", prepared.validation))
    tokens, manifest = open_corpus(train)
    tokenizer = _tokenizer_name(recipe, prepared, manifest, train)
    vocabulary = _vocabulary(tokenizer, manifest, train)
    for _, prefix in validation:
        _check_same_vocabulary(open_corpus(prefix)[1], vocabulary, prefix)
    fingerprint = manifest.bin_sha256 if manifest is not None else f"{tokens.num_tokens} tokens"
    return Corpus(train, tuple(validation), tokenizer, vocabulary, fingerprint)


def known_vocabulary(recipe: Recipe) -> Vocabulary | None:
    """The vocabulary of a recipe's training corpus; None where it is still to be prepared.

    Raises:
        DataError: the corpus is damaged, or no tokenizer is known.
    """
    if known_positions(recipe) is None:
        return None
    train = Path(str(recipe.data.train[0].path))
    manifest = open_corpus(train)[1]
    return _vocabulary(_tokenizer_name(recipe, None, manifest, train), manifest, train)


def _prepare(recipe: Recipe, progress: Progress | None) -> CachedCorpus | None:
    source = recipe.data.train[0]
    if source.text is None:
        return None
    assert recipe.tokenizer is not None
    training = recipe.tokenizer.train
    return prepare_cached(
        source.text,
        tokenizer_path=recipe.tokenizer.path,
        train_vocab_size=training.vocab_size if training else None,
        min_frequency=training.min_frequency if training else 2,
        validation_fraction=recipe.data.validation_fraction,
        cache_dir=Path(recipe.data.cache_dir),
        progress=progress,
    )


def _tokenizer_name(
    recipe: Recipe, prepared: CachedCorpus | None, manifest: Manifest | None, prefix: Path
) -> str | None:
    if prepared is not None:
        return str(prepared.tokenizer)
    if recipe.tokenizer is not None and recipe.tokenizer.path is not None:
        return recipe.tokenizer.path
    return manifest.tokenizer_path(prefix) if manifest is not None else None


def _vocabulary(tokenizer: str | None, manifest: Manifest | None, prefix: Path) -> Vocabulary:
    if manifest is not None:
        known = Vocabulary(manifest.vocab_size, manifest.eos_id)
    if tokenizer is not None:
        loaded = load_tokenizer(tokenizer)
        found = Vocabulary(len(loaded), loaded.eos_token_id, loaded.pad_token_id)
        if manifest is not None and found.size < known.size:
            raise DataError(
                f"{prefix}: made with a vocabulary of {known.size}, but tokenizer {tokenizer} has {found.size}; "
                "use the tokenizer that the corpus was made with"
            )
        return found
    if manifest is None:
        raise DataError(
            f"{prefix}: has no manifest that names a tokenizer; set tokenizer.path to the one it was made with"
        )
    return known


def _check_same_vocabulary(manifest: Manifest | None, vocabulary: Vocabulary, prefix: Path) -> None:
    if manifest is not None and manifest.vocab_size > vocabulary.size:
        raise DataError(
            f"{prefix}: made with a vocabulary of {manifest.vocab_size}, but the training corpus has "
            f"{vocabulary.size}; prepare both with the same tokenizer"
        )


def _name(source: Source) -> str:
    return Path(str(source.path)).name
