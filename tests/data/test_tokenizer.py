from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from ds_pretrain.data.tokenizer import EOS_TOKEN, end_of_document_id, load_tokenizer, save_tokenizer
from ds_pretrain.data.train_tokenizer import TokenizerTraining, parse_training, train_tokenizer
from ds_pretrain.errors import DataError, UserError

TEXTS = ["the cat sat on the mat\n", "the dog sat on the log\n", "ünïcödé — 漢字 🙂\n"] * 4


def train(texts: list[str], vocab_size: int, max_bytes: int = 10**6, **more: Any) -> str:
    pieces = [(text, (number + 1) / len(texts)) for number, text in enumerate(texts)]
    return train_tokenizer(pieces, TokenizerTraining(vocab_size, **more), max_bytes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "small"
    save_tokenizer(train(TEXTS, 290), path)
    return path


def test_a_trained_tokenizer_is_loaded_by_transformers(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.is_fast
    assert tokenizer.eos_token == EOS_TOKEN
    assert end_of_document_id(tokenizer) == 0
    assert len(tokenizer) == 290
    assert tokenizer.model_max_length > 10**9


def test_training_learns_the_text_and_keeps_every_byte(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    assert len(tokenizer("the cat sat").input_ids) < len("the cat sat") / 2
    for text in [*TEXTS, "never seen: ☃ \t\r\n  x"]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_training_is_deterministic() -> None:
    assert train(TEXTS, 300) == train(TEXTS, 300)


def test_min_frequency_holds_back_rare_merges() -> None:
    trained = json.loads(train(["ab ab ab cd cd"], 400, min_frequency=3))
    assert "ab" in trained["model"]["vocab"]  # three times
    assert "cd" not in trained["model"]["vocab"]  # twice


def test_training_text_is_sampled_evenly_up_to_the_cap() -> None:
    texts = [f"{letter * 10} " for letter in "abcdefghij"]
    trained = json.loads(train(texts, 300, max_bytes=55, min_frequency=1))
    learned = {letter for letter in "abcdefghij" if letter * 10 in trained["model"]["vocab"]}
    assert learned == set("acegi")


def test_unigram_is_trained_over_bytes_too(tmp_path: Path) -> None:
    words = [stem + end for stem in ("walk", "talk", "jump", "play", "look") for end in ("", "s", "ed", "er", "ing")]
    save_tokenizer(train([" ".join(words)], 300, kind="unigram"), tmp_path / "unigram")
    tokenizer = load_tokenizer(str(tmp_path / "unigram"))
    assert type(tokenizer.backend_tokenizer.model).__name__ == "Unigram"
    assert end_of_document_id(tokenizer) == tokenizer.convert_tokens_to_ids(EOS_TOKEN)
    assert len(tokenizer(" walking talked").input_ids) < len(" walking talked") / 2
    for text in [*TEXTS, "never seen: ☃ \t\r\n  x"]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_vocabulary_of_258_is_the_bytes_themselves(tmp_path: Path) -> None:
    save_tokenizer(train(TEXTS, 258), tmp_path / "bytes")
    tokenizer = load_tokenizer(str(tmp_path / "bytes"))
    assert [len(tokenizer(text).input_ids) for text in TEXTS] == [len(text.encode()) for text in TEXTS]


def test_what_to_train_is_read_from_its_name() -> None:
    assert parse_training("train:8192") == TokenizerTraining(8192)
    assert parse_training("train:300:unigram", 5) == TokenizerTraining(300, "unigram", 5)
    assert parse_training("trained") is None
    for name in ("train", "train:", "train:many", "train:8192:wordpiece"):
        with pytest.raises(UserError, match=r"allowed: train:N with N entries, as train:8192, or train:N:KIND"):
            parse_training(name)


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(DataError, match="found a vocabulary of 256; allowed: at least 258"):
        train(TEXTS, 256)


def test_training_without_documents_is_refused() -> None:
    with pytest.raises(DataError, match="no documents to train on"):
        train([], 300)


def test_saving_leaves_nothing_partial(folder: Path) -> None:
    assert [path.name for path in folder.parent.iterdir()] == ["small"]
    with pytest.raises(DataError, match="cannot be written"):
        save_tokenizer(train(TEXTS, 300), folder)
    assert [path.name for path in folder.parent.iterdir()] == ["small"]


@pytest.mark.parametrize("name", ["/no/such/folder", "./relative", "~/home", "a/b/c", "folder/"])
def test_a_path_that_is_no_folder_is_named(name: str) -> None:
    with pytest.raises(DataError, match=f"tokenizer {name}: no such folder"):
        load_tokenizer(name)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be loaded: .*allowed: a folder with a fast tokenizer"):
        load_tokenizer(str(tmp_path))


def test_an_unknown_name_fails_at_once_with_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"tokenizer no-such-tokenizer-here: no such folder.*\(train:8192\)"):
        load_tokenizer("no-such-tokenizer-here")


def test_a_tokenizer_without_an_end_token_is_named(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    with pytest.raises(DataError, match="no end-of-document token"):
        end_of_document_id(PreTrainedTokenizerFast(tokenizer_object=bare))
    assert end_of_document_id(PreTrainedTokenizerFast(tokenizer_object=bare, sep_token="a")) == 0


def test_the_code_that_a_tokenizer_brings_is_not_run(folder: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    shutil.copytree(folder, evil)
    (evil / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((evil / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (evil / "tokenizer_config.json").write_text(json.dumps(config))
    with suppress(DataError):  # transformers may do without it
        load_tokenizer(str(evil))
    assert not (tmp_path / "ran").exists()
