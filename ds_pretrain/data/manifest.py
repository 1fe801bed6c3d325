"""What a prepared corpus says of itself: ``<prefix>.manifest.json``, beside its ``.bin`` and ``.idx``."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ds_pretrain import __version__
from ds_pretrain.data.index_check import check_index
from ds_pretrain.data.indexed import TokenFile, bin_path, idx_path, sync_path
from ds_pretrain.errors import DataError

_INSIDE = "./"  # marks a tokenizer path as relative to the manifest, so that the two can be moved together
_READ_BYTES = 16 << 20


class Manifest(BaseModel):
    """One corpus: where it came from, what it holds, and the tokenizer it was made with."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, strict=True)

    format_version: Literal[1] = 1
    """Version of this file's own layout."""
    sources: list[str]
    """The inputs, as they were given."""
    documents: int = Field(ge=1)
    """Documents in the corpus."""
    tokens: int = Field(ge=1)
    """Tokens in the corpus, the end-of-document token of each document included."""
    dtype: str
    """Type of the stored token ids."""
    bin_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Checksum of the ``.bin`` file."""
    idx_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Checksum of the ``.idx`` file."""
    tokenizer: str
    """Tokenizer: a folder (relative to this file where it starts with ``./``) or a name."""
    vocab_size: int = Field(ge=1)
    """Entries of the tokenizer: every token id is smaller."""
    eos_id: int = Field(ge=0)
    """Token that ends every document."""
    selection: dict[str, float | int | str | bool | None] = {}
    """What was taken of the sources: the text field, the share held out, filters."""
    left_out: dict[str, int] = {}
    """Documents of the sources that were left out of both splits, by reason."""
    ds_pretrain_version: str = __version__
    """Version of this package that wrote the corpus."""

    @field_validator("tokenizer")
    @classmethod
    def _is_a_path_or_name(cls, value: str) -> str:
        if not value.isprintable() or ".." in value.split("/"):
            raise ValueError("not a folder beside this file, a full path, or a name")
        return value

    def tokenizer_path(self, prefix: Path) -> str:
        """What ``load_tokenizer`` takes: the tokenizer of the corpus at ``prefix``.

        Raises:
            DataError: a link leads out of the manifest's folder.
        """
        if not self.tokenizer.startswith(_INSIDE):
            return self.tokenizer
        path = prefix.parent / self.tokenizer.removeprefix(_INSIDE)
        if not path.resolve().is_relative_to(prefix.parent.resolve()):
            raise DataError(
                f"{manifest_path(prefix)}: tokenizer {self.tokenizer} is a link out of its folder; put the tokenizer "
                "there, or set tokenizer.path"
            )
        return str(path)


def manifest_path(prefix: Path) -> Path:
    """The manifest that belongs to ``prefix``."""
    return Path(f"{prefix}.manifest.json")


def tokenizer_reference(tokenizer: str, folder: Path) -> str:
    """How a manifest in ``folder`` names a tokenizer: folders inside it relative, others absolute, names as given."""
    path = Path(tokenizer)
    if not path.is_dir():
        return tokenizer
    try:
        return _INSIDE + path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return str(path.resolve())


def describe(
    prefix: Path,
    *,
    sources: Sequence[str],
    tokenizer: str,
    vocab_size: int,
    eos_id: int,
    selection: Mapping[str, float | int | str | bool | None] = {},
    left_out: Mapping[str, int] = {},
) -> Manifest:
    """The manifest of the corpus at ``prefix``, its index checked and its checksums computed from the files.

    Args:
        prefix: path without ``.bin`` and ``.idx``.
        sources: the inputs, as they were given.
        tokenizer: from ``tokenizer_reference``.
        vocab_size: entries of the tokenizer.
        eos_id: token that ends every document.
        selection: what was taken of the sources.
        left_out: documents left out, by reason.

    Raises:
        DataError: the files are damaged.
    """
    corpus = TokenFile.open(prefix)
    check_index(corpus)
    return Manifest(
        sources=list(sources),
        documents=corpus.num_documents,
        tokens=corpus.num_tokens,
        dtype=corpus.dtype.name,
        bin_sha256=_sha256(bin_path(prefix)),
        idx_sha256=_sha256(idx_path(prefix)),
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        eos_id=eos_id,
        selection=dict(selection),
        left_out=dict(left_out),
    )


def write_manifest(prefix: Path, manifest: Manifest) -> None:
    """Write ``<prefix>.manifest.json``; it appears whole or not at all.

    Raises:
        DataError: the disk cannot be written.
    """
    path = manifest_path(prefix)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        sync_path(partial)
        os.replace(partial, path)
        sync_path(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written: {error.strerror or error}; free space") from error


def read_manifest(prefix: Path) -> Manifest | None:
    """The manifest of the corpus at ``prefix``, or None where there is none (a corpus of other tools).

    Raises:
        DataError: the file is not a manifest of a known version.
    """
    path = manifest_path(prefix)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(
            f"{path}: damaged, or written by a newer version: {place}: {first['msg']}; prepare the corpus again"
        ) from None


def verify(corpus: TokenFile, manifest: Manifest, *, checksum: bool = False) -> None:
    """Check a corpus against its manifest: documents, tokens and dtype; on request every byte.

    Args:
        corpus: the files, opened.
        manifest: what they should hold.
        checksum: also compute the SHA-256 of both files, which reads all of them.

    Raises:
        DataError: they differ.
    """
    path = manifest_path(corpus.prefix)
    facts: list[tuple[str, object, object]] = [
        ("documents", manifest.documents, corpus.num_documents),
        ("tokens", manifest.tokens, corpus.num_tokens),
        ("dtype", manifest.dtype, corpus.dtype.name),
    ]
    if checksum:
        facts += [
            ("bin_sha256", manifest.bin_sha256, _sha256(bin_path(corpus.prefix))),
            ("idx_sha256", manifest.idx_sha256, _sha256(idx_path(corpus.prefix))),
        ]
    for name, stated, found in facts:
        if stated != found:
            raise DataError(
                f"{path}: states {name} {stated}, but {bin_path(corpus.prefix)} and its .idx have {found}; the files "
                "are damaged or of another corpus: copy or prepare them again"
            )
    if manifest.eos_id >= manifest.vocab_size:
        raise DataError(
            f"{path}: states eos_id {manifest.eos_id}; allowed: below its vocab_size {manifest.vocab_size}; "
            "prepare the corpus again"
        )


def open_corpus(prefix: Path) -> tuple[TokenFile, Manifest | None]:
    """Open a corpus, and its manifest where it has one (corpora of Megatron's own tools have none).

    Raises:
        DataError: the files are missing or damaged, or differ from the manifest.
    """
    corpus = TokenFile.open(prefix)
    return corpus, manifest_of(corpus)


def manifest_of(corpus: TokenFile) -> Manifest | None:
    """The manifest of an open corpus, checked against it; None where it has none.

    Raises:
        DataError: they differ.
    """
    manifest = read_manifest(corpus.prefix)
    if manifest is not None:
        verify(corpus, manifest)
    return manifest


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
