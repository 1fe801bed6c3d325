from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from ds_pretrain import __version__
from ds_pretrain.data.indexed import TokenFile, bin_path, idx_path
from ds_pretrain.data.manifest import (
    Manifest,
    describe,
    manifest_path,
    read_manifest,
    tokenizer_reference,
    verify,
    write_manifest,
)
from ds_pretrain.data.token_writer import TokenFileWriter
from ds_pretrain.errors import DataError


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    with TokenFileWriter(tmp_path / "corpus", "uint16") as writer:
        writer.append(np.array([1, 2, 0]))
        writer.append(np.array([3, 0]))
    return tmp_path / "corpus"


@pytest.fixture
def manifest(prefix: Path) -> Manifest:
    made = describe(prefix, sources=["texts/"], tokenizer="./corpus-tokenizer", vocab_size=300, eos_id=0)
    write_manifest(prefix, made)
    return made


def test_a_manifest_states_what_the_files_hold(prefix: Path, manifest: Manifest) -> None:
    assert json.loads(manifest_path(prefix).read_text()) == {
        "format_version": 1,
        "sources": ["texts/"],
        "documents": 2,
        "tokens": 5,
        "dtype": "uint16",
        "bin_sha256": hashlib.sha256(bin_path(prefix).read_bytes()).hexdigest(),
        "idx_sha256": hashlib.sha256(idx_path(prefix).read_bytes()).hexdigest(),
        "tokenizer": "./corpus-tokenizer",
        "vocab_size": 300,
        "eos_id": 0,
        "selection": {},
        "left_out": {},
        "ds_pretrain_version": __version__,
    }
    assert read_manifest(prefix) == manifest
    verify(TokenFile.open(prefix), manifest, checksum=True)


def test_writing_replaces_and_leaves_nothing_beside(prefix: Path, manifest: Manifest) -> None:
    write_manifest(prefix, manifest.model_copy(update={"eos_id": 7}))
    read = read_manifest(prefix)
    assert read is not None
    assert read.eos_id == 7
    assert {path.name for path in prefix.parent.iterdir()} == {"corpus.bin", "corpus.idx", "corpus.manifest.json"}


def test_a_corpus_without_a_manifest_has_none(prefix: Path) -> None:
    assert read_manifest(prefix) is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("documents", 3, r"corpus\.manifest\.json: states documents 3, but .*corpus\.bin and its \.idx have 2"),
        ("tokens", 6, "states tokens 6, but .* have 5"),
        ("dtype", "int32", "states dtype int32, but .* have uint16"),
        ("eos_id", 300, "states eos_id 300; allowed: below its vocab_size 300"),
    ],
)
def test_a_mismatch_is_named(prefix: Path, manifest: Manifest, key: str, value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        verify(TokenFile.open(prefix), manifest.model_copy(update={key: value}))


def test_changed_bytes_are_found_by_checksum_alone(prefix: Path, manifest: Manifest) -> None:
    with bin_path(prefix).open("r+b") as file:
        file.write(b"\x09")
    verify(TokenFile.open(prefix), manifest)
    with pytest.raises(DataError, match=r"states bin_sha256 .* damaged or of another corpus"):
        verify(TokenFile.open(prefix), manifest, checksum=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "written by a newer version: format_version"),
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"tokens": "many"}, "tokens: Input should be a valid integer"),
        ({"bin_sha256": "abc"}, "bin_sha256: String should match"),
    ],
)
def test_a_tampered_manifest_is_refused(
    prefix: Path, manifest: Manifest, change: dict[str, object], message: str
) -> None:
    manifest_path(prefix).write_text(json.dumps(manifest.model_dump() | change))
    with pytest.raises(DataError, match=rf"corpus\.manifest\.json: damaged, or .*{message}"):
        read_manifest(prefix)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff"])
def test_what_is_no_manifest_is_refused(prefix: Path, data: bytes) -> None:
    manifest_path(prefix).write_bytes(data)
    with pytest.raises(DataError, match=r"corpus\.manifest\.json: (damaged|cannot be read)"):
        read_manifest(prefix)


def test_tokenizers_inside_the_folder_move_with_it(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "here" / "tok").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    assert tokenizer_reference(str(tmp_path / "here" / "tok"), tmp_path / "here") == "./tok"
    assert tokenizer_reference(str(tmp_path / "outside"), tmp_path / "here") == str((tmp_path / "outside").resolve())
    assert tokenizer_reference("gpt2", tmp_path / "here") == "gpt2"
    assert manifest.tokenizer_path(Path("data/mine")) == "data/corpus-tokenizer"
    assert manifest.model_copy(update={"tokenizer": "gpt2"}).tokenizer_path(Path("data/mine")) == "gpt2"


@pytest.mark.parametrize("tokenizer", ["../../elsewhere", "./../elsewhere", "./a/../../elsewhere", "a\0b", "./a\nb"])
def test_a_tokenizer_outside_of_the_manifests_folder_is_refused(
    prefix: Path, manifest: Manifest, tokenizer: str
) -> None:
    document = json.loads(manifest_path(prefix).read_text()) | {"tokenizer": tokenizer}
    manifest_path(prefix).write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"tokenizer: .*not a folder beside this file, a full path, or a name"):
        read_manifest(prefix)


def test_a_tokenizer_behind_a_link_out_of_the_folder_is_refused(
    prefix: Path, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (prefix.parent / "corpus-tokenizer").symlink_to(elsewhere)
    with pytest.raises(DataError, match="is a link out of its folder"):
        manifest.tokenizer_path(prefix)
