"""The corpus of a run: token files, prepared first where the recipe names text, and the vocabulary they use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_pretrain.config import Recipe
from ds_pretrain.data.cache import CachedCorpus, prepare_cached
from ds_pretrain.data.index_check import check_index
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
        train: name and prefix of every training token file.
        validation: name and prefix of every validation token file.
        tokenizer: the tokenizer's folder or name; None for a corpus that names none.
        vocabulary: size and special ids.
        fingerprint: what changes when the training tokens do: their checksum, or their number without a manifest.
    """

    train: tuple[tuple[str, Path], ...]
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
    train, validation = [], [(source.label, Path(str(source.path))) for source in recipe.data.validation]
    for source, cached in zip(recipe.data.train, prepared, strict=True):
        train.append((source.label, Path(str(source.path)) if cached is None else cached.train))
        if cached is not None and cached.validation is not None:
            alone = sum(cached is not None for cached in prepared) == 1
            validation.append(("validation" if alone else source.label, cached.validation))
    prefixes = [prefix for _, prefix in train]
    corpora = [open_corpus(prefix) for prefix in prefixes]
    described = next((number for number, (_, manifest) in enumerate(corpora) if manifest is not None), 0)
    prefix, manifest = prefixes[described], corpora[described][1]
    made = next((cached for cached in prepared if cached is not None), None)
    tokenizer = made.tokenizer if made is not None else _tokenizer_name(recipe, manifest, prefix)
    vocabulary = _vocabulary(tokenizer, manifest, prefix)
    for other, (_, found) in zip(prefixes, corpora, strict=True):
        _check_same_tokenizer(manifest, prefix, found, other)
    for other in (*prefixes, *(prefix for _, prefix in validation)):
        _check_same_vocabulary(open_corpus(other)[1], vocabulary, other)
    fingerprints = [
        found.bin_sha256 if found is not None else f"{tokens.num_tokens} tokens" for tokens, found in corpora
    ]
    return Corpus(tuple(train), tuple(validation), tokenizer, vocabulary, _joined(fingerprints))


def check_foreign(corpus: Corpus) -> None:
    """Reads the whole index of every token file without a manifest; the others' were read when they were written.

    Raises:
        DataError: an index is damaged.
    """
    for _, prefix in (*corpus.train, *corpus.validation):
        tokens, manifest = open_corpus(prefix)
        if manifest is None:
            print(f"corpus: {prefix} has no manifest: its whole index is checked", flush=True)
            check_index(tokens)


def known_vocabulary(recipe: Recipe) -> Vocabulary | None:
    """The vocabulary of a recipe's training corpus; None where it is still to be prepared.

    Raises:
        DataError: the corpus is damaged, or no tokenizer is known.
    """
    if known_positions(recipe) is None:
        return None
    train = Path(str(recipe.data.train[0].path))
    manifest = open_corpus(train)[1]
    return _vocabulary(_tokenizer_name(recipe, manifest, train), manifest, train)


def _prepare(recipe: Recipe, progress: Progress | None) -> list[CachedCorpus | None]:
    """Prepares every text source; a tokenizer that is to be trained is trained on the first, and serves the others."""
    prepared: list[CachedCorpus | None] = []
    trained: str | None = None
    for source in recipe.data.train:
        if source.text is None:
            prepared.append(None)
            continue
        assert recipe.tokenizer is not None
        training = recipe.tokenizer.train if trained is None else None
        cached = prepare_cached(
            source.text,
            tokenizer_path=trained or recipe.tokenizer.path,
            train_vocab_size=training.vocab_size if training else None,
            min_frequency=training.min_frequency if training else 2,
            validation_fraction=recipe.data.validation_fraction,
            cache_dir=Path(recipe.data.cache_dir),
            progress=progress,
        )
        if recipe.tokenizer.train is not None:
            trained = str(cached.tokenizer)
        prepared.append(cached)
    return prepared


def _tokenizer_name(recipe: Recipe, manifest: Manifest | None, prefix: Path) -> str | None:
    if recipe.tokenizer is not None and recipe.tokenizer.path is not None:
        return recipe.tokenizer.path
    return manifest.tokenizer_path(prefix) if manifest is not None else None


def _joined(fingerprints: Sequence[str]) -> str:
    """One for all sources, in their order; a single source's is its own."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()


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


def _check_same_tokenizer(one: Manifest | None, prefix: Path, other: Manifest | None, other_prefix: Path) -> None:
    if one is None or other is None or one is other:
        return
    vocabularies = [_token_ids(one, prefix), _token_ids(other, other_prefix)]
    if one.vocab_size != other.vocab_size or (None not in vocabularies and vocabularies[0] != vocabularies[1]):
        raise DataError(
            f"{other_prefix}: made with another tokenizer than {prefix} ({other.tokenizer}, {other.vocab_size} ids, "
            f"and {one.tokenizer}, {one.vocab_size}); sources of one mixture need one: prepare both with the same"
        )


def _token_ids(manifest: Manifest, prefix: Path) -> object:
    """What a tokenizer's file says of its token ids; None where there is no such file here."""
    file = Path(manifest.tokenizer_path(prefix), "tokenizer.json")
    return json.loads(file.read_text(encoding="utf-8"))["model"].get("vocab") if file.is_file() else None


def _check_same_vocabulary(manifest: Manifest | None, vocabulary: Vocabulary, prefix: Path) -> None:
    if manifest is not None and manifest.vocab_size > vocabulary.size:
        raise DataError(
            f"{prefix}: made with a vocabulary of {manifest.vocab_size}, but the training corpus has "
            f"{vocabulary.size}; prepare both with the same tokenizer"
        )
