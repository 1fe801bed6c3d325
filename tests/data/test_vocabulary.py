from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from config.test_parse import recipe_data

from ds_pretrain.config import Recipe, parse_recipe
from ds_pretrain.data.manifest import describe, write_manifest
from ds_pretrain.data.token_writer import TokenFileWriter
from ds_pretrain.data.tokenizer import save_tokenizer
from ds_pretrain.data.train_tokenizer import TokenizerTraining, train_tokenizer
from ds_pretrain.data.vocabulary import vocabulary_problems


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus that says it was made with 1,000 entries."""
    prefix = tmp_path / "corpus"
    with TokenFileWriter(prefix, np.uint16) as writer:
        writer.append(np.arange(100, dtype=np.uint16))
    write_manifest(prefix, describe(prefix, sources=["x"], tokenizer="t", vocab_size=1000, eos_id=0))
    return prefix


def problems(corpus: Path, **sections: Any) -> list[tuple[str, str]]:
    data = recipe_data()
    data["data"] |= {"train": [{"path": str(corpus)}]}
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section}
    recipe = parse_recipe(data)
    assert isinstance(recipe, Recipe)
    return [(problem.path, problem.message) for problem in vocabulary_problems(recipe)]


def test_a_corpus_that_fits_is_accepted(corpus: Path) -> None:
    assert problems(corpus) == []
    assert problems(corpus, model={"config": {"vocab_size": 1000}}) == []


def test_a_model_without_the_entries_is_refused(corpus: Path, tmp_path: Path) -> None:
    ((path, message),) = problems(corpus, model={"config": {"vocab_size": 999}})
    assert path == "data.train.0.path"
    assert "made with a vocabulary of 1000, but model.config.vocab_size has 999 entries; leave it out" in message
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"vocab_size": 512}))
    pretrained = {"architecture": None, "pretrained": str(tmp_path / "model"), "config": {}}
    ((_, message),) = problems(corpus, model=pretrained)
    assert f"model.pretrained {tmp_path / 'model'} has 512 entries; prepare the corpus with the model's" in message


def test_another_tokenizer_is_refused_for_every_corpus(corpus: Path, tmp_path: Path) -> None:
    save_tokenizer(train_tokenizer([("ab", 1.0)], TokenizerTraining(258)), tmp_path / "bytes")
    found = problems(
        corpus,
        tokenizer={"path": str(tmp_path / "bytes")},
        data={"train": [{"path": str(corpus)}], "validation": [{"path": str(corpus)}]},
    )
    assert [path for path, _ in found] == ["data.train.0.path", "data.validation.0.path"]
    assert all("bytes has 258 entries; use the tokenizer that the corpus was made with" in text for _, text in found)


def test_a_corpus_that_is_not_what_its_manifest_says_is_refused(corpus: Path) -> None:
    with TokenFileWriter(corpus, np.uint16) as writer:
        writer.append(np.arange(99, dtype=np.uint16))
    ((path, message),) = problems(corpus)
    assert path == "data.train.0.path"
    assert "states tokens 100" in message


def test_a_corpus_without_a_manifest_needs_a_tokenizer(corpus: Path) -> None:
    Path(f"{corpus}.manifest.json").unlink()
    ((path, message),) = problems(corpus)
    assert path == "data.train.0.path"
    assert "no manifest that names a tokenizer; set tokenizer.path" in message
    assert problems(corpus, tokenizer={"path": "gpt2"}) == []


def test_an_id_beyond_the_vocabulary_is_found_in_a_corpus_without_a_manifest(corpus: Path) -> None:
    Path(f"{corpus}.manifest.json").unlink()
    model = {"config": {"vocab_size": 90}}
    ((path, message),) = problems(corpus, tokenizer={"path": "gpt2"}, model=model)
    assert path == "data.train.0.path"
    assert "corpus.bin: token 90, in document 0: found id 90; allowed: 0 to 89" in message
