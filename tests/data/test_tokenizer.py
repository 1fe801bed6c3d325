from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from ds_pretrain.data.tokenizer import (
    EOS_TOKEN,
    Encoder,
    TextBatch,
    cut,
    encode_in_order,
    end_of_document_id,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
    train_tokenizer,
)
from ds_pretrain.errors import DataError

TEXTS = ["the cat sat on the mat\n", "the dog sat on the log\n", "ünïcödé — 漢字 🙂\n"] * 4
SIZE = sum(len(text.encode()) for text in TEXTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "small"
    train_tokenizer(TEXTS, 290, path, total_bytes=SIZE)
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
    assert train_bpe(TEXTS, 300, total_bytes=SIZE) == train_bpe(TEXTS, 300, total_bytes=SIZE)


def test_min_frequency_holds_back_rare_merges() -> None:
    trained = json.loads(train_bpe(["ab ab ab cd cd"], 400, min_frequency=3, total_bytes=14))
    assert "ab" in trained["model"]["vocab"]  # three times
    assert "cd" not in trained["model"]["vocab"]  # twice


def test_training_text_is_sampled_evenly_up_to_the_cap() -> None:
    texts = [f"{letter * 10} " for letter in "abcdefghij"]
    trained = json.loads(train_bpe(texts, 300, min_frequency=1, total_bytes=110, max_bytes=55))
    learned = {letter for letter in "abcdefghij" if letter * 10 in trained["model"]["vocab"]}
    assert learned == set("acegi")


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(DataError, match="found a vocabulary of 256; allowed: at least 257"):
        train_bpe(TEXTS, 256, total_bytes=SIZE)


def test_training_without_documents_is_refused() -> None:
    with pytest.raises(DataError, match="no documents to train on"):
        train_bpe([], 300, total_bytes=0)


def test_saving_leaves_nothing_partial(folder: Path) -> None:
    assert [path.name for path in folder.parent.iterdir()] == ["small"]
    with pytest.raises(DataError, match="cannot be written"):
        save_tokenizer(train_bpe(TEXTS, 300, total_bytes=SIZE), folder)
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


@given(text=st.text(alphabet="ab \n", max_size=200), characters=st.integers(2, 40))
def test_pieces_give_the_text_back(text: str, characters: int) -> None:
    pieces = list(cut(text, characters))
    assert "".join(piece for piece, _ in pieces) == text
    assert all(len(piece) <= characters for piece, _ in pieces)
    assert [last for _, last in pieces] == [False] * (len(pieces) - 1) + [True]


def test_pieces_are_cut_at_a_lone_line_end() -> None:
    assert list(cut("aaaaaaa\nbb\n\nbb\n cc", 10)) == [("aaaaaaa\n", False), ("bb\n\nbb\n cc", True)]
    assert list(cut("a" * 25, 10)) == [("a" * 10, False), ("a" * 10, False), ("a" * 5, True)]


def batch(tag: int, *texts: str) -> TextBatch:
    made = TextBatch(tag)
    for text in texts:
        made.add(text, last=True, source_bytes=len(text))
    return made


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder(str(folder / "tokenizer.json"), eos_id=0, dtype="uint16")


def test_encoding_in_pieces_equals_encoding_whole(folder: Path, encoder: Encoder) -> None:
    text = "".join(TEXTS) * 3
    pieces = TextBatch(0)
    for piece, last in cut(text, 50):
        pieces.add(piece, last=last, source_bytes=0)
    assert len(pieces.pieces) > 10
    (_, tokens, lengths) = next(iter(encode_in_order([pieces], encoder, 1)))
    assert tokens.tolist() == [*load_tokenizer(str(folder))(text).input_ids, 0]
    assert sum(lengths) == len(tokens)


def test_batches_come_back_in_order_with_an_end_after_each_document(encoder: Encoder, folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    texts = [[f"{index} {item} the cat" * (20 - index) for item in range(index % 3 + 1)] for index in range(20)]
    batches = [batch(index, *documents) for index, documents in enumerate(texts)]
    results: list[Any] = list(encode_in_order(batches, encoder, 2))
    assert [made.tag for made, _, _ in results] == list(range(20))
    for made, tokens, lengths in results:
        expected = [[*tokenizer(piece).input_ids, 0] for piece in made.pieces]
        assert tokens.tolist() == [token for document in expected for token in document]
        assert lengths == [len(document) for document in expected]


def test_a_document_that_spells_the_end_token_does_not_end_there(encoder: Encoder) -> None:
    (_, tokens, _) = next(iter(encode_in_order([batch(0, f"a{EOS_TOKEN}b")], encoder, 1)))
    assert tokens.tolist().count(0) == 1
    assert tokens[-1] == 0


def test_few_batches_are_under_way_at_once(encoder: Encoder) -> None:
    made = 0

    def batches() -> Iterator[TextBatch]:
        nonlocal made
        for index in range(50):
            made += 1
            yield batch(index, "the cat")

    with closing(encode_in_order(batches(), encoder, 1)) as results:
        next(results)
        assert made == 4
