from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_pretrain.data.encoding import Encoder, TextBatch, cut, encode_in_order
from ds_pretrain.data.tokenizer import EOS_TOKEN, load_tokenizer, save_tokenizer
from ds_pretrain.data.train_tokenizer import TokenizerTraining, train_tokenizer

TEXTS = ["the cat sat on the mat\n", "the dog sat on the log\n", "ünïcödé — 漢字 🙂\n"] * 4


@given(text=st.text(alphabet="ab \n", max_size=200), characters=st.integers(2, 40))
def test_pieces_give_the_text_back(text: str, characters: int) -> None:
    pieces = list(cut(text, characters))
    assert "".join(piece for piece, _ in pieces) == text
    assert all(len(piece) <= characters for piece, _ in pieces)
    assert [last for _, last in pieces] == [False] * (len(pieces) - 1) + [True]


@given(
    text=st.text(alphabet="ab \n", min_size=1, max_size=200), characters=st.integers(2, 40), block=st.integers(1, 50)
)
def test_blocks_are_cut_where_the_whole_is(text: str, characters: int, block: int) -> None:
    blocks = [text[start : start + block] for start in range(0, len(text), block)]
    assert list(cut(iter(blocks), characters)) == list(cut(text, characters))


def test_pieces_are_cut_at_a_lone_line_end() -> None:
    assert list(cut("aaaaaaa\nbb\n\nbb\n cc", 10)) == [("aaaaaaa\n", False), ("bb\n\nbb\n cc", True)]
    assert list(cut("a" * 25, 10)) == [("a" * 10, False), ("a" * 10, False), ("a" * 5, True)]


def batch(tag: int, *texts: str) -> TextBatch[int]:
    made = TextBatch(tag)
    for text in texts:
        made.add(text, last=True)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "small"
    pieces = [(text, (number + 1) / len(TEXTS)) for number, text in enumerate(TEXTS)]
    save_tokenizer(train_tokenizer(pieces, TokenizerTraining(290)), path)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder(str(folder / "tokenizer.json"), eos_id=0, dtype="uint16")


def test_encoding_in_pieces_equals_encoding_whole(folder: Path, encoder: Encoder) -> None:
    text = "".join(TEXTS) * 3
    pieces = TextBatch(0)
    for piece, last in cut(text, 50):
        pieces.add(piece, last=last)
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

    def batches() -> Iterator[TextBatch[int]]:
        nonlocal made
        for index in range(50):
            made += 1
            yield batch(index, "the cat")

    with closing(encode_in_order(batches(), encoder, 1)) as results:
        next(results)
        assert made == 4
