from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from ds_pretrain.data.masking import Masking, tokenizer_masking
from ds_pretrain.data.tokenizer import load_tokenizer, save_tokenizer
from ds_pretrain.data.train_tokenizer import TokenizerTraining, train_tokenizer
from ds_pretrain.errors import DataError

VOCABULARY, MASK, END = 40, 1, 0
SPECIAL = np.arange(VOCABULARY) < 2
PLAIN = Masking(0.15, MASK, SPECIAL)


def text(sequences: int, seq_len: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(2, VOCABULARY, (sequences, seq_len))


def hide(masking: Masking, tokens: Any, step: int = 0, first: int = 0) -> Any:
    return masking(tokens, np.arange(first, first + len(tokens)), (7, step))


@pytest.mark.parametrize(("seq_len", "count"), [(8, 1), (2, 1), (128, 19), (256, 38), (512, 77)])
def test_every_sequence_has_its_share_of_targets(seq_len: int, count: int) -> None:
    assert PLAIN.targets_per_sequence(seq_len) == count
    tokens = text(5, seq_len)
    hidden = hide(PLAIN, tokens)
    assert hidden.positions.shape == hidden.targets.shape == (5, count)
    assert (np.diff(hidden.positions, axis=1) > 0).all()
    assert np.array_equal(np.take_along_axis(tokens, hidden.positions, axis=1), hidden.targets)
    others = np.ones(tokens.shape, dtype=bool)
    np.put_along_axis(others, hidden.positions, False, axis=1)
    assert np.array_equal(hidden.input_ids[others], tokens[others])


def test_a_sequence_is_masked_alike_whatever_travels_with_it() -> None:
    """So that ranks, micro batches and restarts change nothing."""
    tokens = text(12, 64)
    whole = hide(PLAIN, tokens)
    parts = [hide(PLAIN, tokens[first : first + 3], first=first) for first in range(0, 12, 3)]
    assert np.array_equal(np.concatenate([part.input_ids for part in parts]), whole.input_ids)
    apart = PLAIN(tokens[[7, 2, 3]], np.array([7, 2, 3]), (7, 0))
    assert np.array_equal(apart.input_ids, whole.input_ids[[7, 2, 3]])
    assert np.array_equal(apart.positions, whole.positions[[7, 2, 3]])


def test_steps_seeds_and_sequences_are_masked_differently() -> None:
    tokens = np.repeat(text(1, 64), 2, axis=0)
    found = [hide(PLAIN, tokens), hide(PLAIN, tokens, step=1), PLAIN(tokens, np.arange(2), (8, 0))]
    rows = {tuple(row) for hidden in found for row in hidden.positions.tolist()}
    assert len(rows) == 6


def test_it_is_the_librarys_collator_in_distribution() -> None:
    """How often a token is a target, and what it becomes, by its place and its kind; the collator's own, counted."""
    tokens = text(6000, 20)
    tokens[:, 7] = END
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({str(token): token for token in range(VOCABULARY)}, "2")),
        mask_token=str(MASK),
        eos_token=str(END),
    )
    collator = DataCollatorForLanguageModeling(tokenizer, seed=3)
    collator.create_rng()
    theirs, labels = (part.numpy() for part in collator.torch_mask_tokens(torch.from_numpy(tokens.copy())))
    is_target = labels != -100
    ours = hide(PLAIN, tokens)
    chosen = np.zeros(tokens.shape, dtype=bool)
    np.put_along_axis(chosen, ours.positions, True, axis=1)
    assert not chosen[:, 7].any()
    assert not is_target[:, 7].any()
    # 3 of 19 here, 15% there: the share that differs is the rounding of 3 of 20
    assert chosen.mean(axis=0)[np.arange(20) != 7] == pytest.approx(np.full(19, 3 / 19), abs=5 * 0.0047)
    assert is_target.mean(axis=0)[np.arange(20) != 7] == pytest.approx(np.full(19, 0.15), abs=5 * 0.0047)
    kinds = []
    for seen, target in ((ours.input_ids, chosen), (theirs, is_target)):
        became, was = seen[target], tokens[target]
        masked, same = became == MASK, became == was
        others = became[~masked & ~same]
        spread = np.bincount(others, minlength=VOCABULARY) / len(others)
        kinds.append(np.array([masked.mean(), same.mean(), len(others) / len(became)]))
        assert spread[2:] == pytest.approx(np.full(VOCABULARY - 2, 1 / VOCABULARY), abs=0.02)
        # a token of chance may be the mask, or the token itself
        assert kinds[-1] == pytest.approx([0.8 + 0.1 / 40, 0.1 + 0.1 / 40, 0.1 * 38 / 40], abs=0.015)
    assert kinds[0] == pytest.approx(kinds[1], abs=0.02)


def test_special_tokens_are_hidden_only_where_there_is_nothing_else() -> None:
    tokens = np.full((1, 20), END)
    tokens[0, 4] = 9
    hidden = hide(PLAIN, tokens)
    assert hidden.positions.shape == (1, 3)
    assert 4 in hidden.positions


# 0 to 9 begin words, 10 to 19 go on with them
WORDS = Masking(
    0.15, mask_id=1, special=np.arange(20) < 2, ends_word=np.ones(20, dtype=bool), continues_word=np.arange(20) >= 10
)


@given(data=st.data(), seq_len=st.integers(20, 60), seed=st.integers(0, 99))
def test_whole_words_are_hidden(data: st.DataObject, seq_len: int, seed: int) -> None:
    row = data.draw(st.lists(st.integers(0, 19), min_size=seq_len, max_size=seq_len))
    row[:seq_len:5] = [5] * len(row[:seq_len:5])  # words of one token somewhere
    row[1:seq_len:5] = [6] * len(row[1:seq_len:5])
    tokens = np.array([row])
    hidden = WORDS(tokens, np.arange(1), (seed,))
    chosen = set(hidden.positions[0].tolist())
    assert len(chosen) == WORDS.targets_per_sequence(seq_len)
    for place in range(1, seq_len):
        if row[place] >= 10 and row[place - 1] >= 2:
            assert (place in chosen) == (place - 1 in chosen)


def test_a_word_is_cut_where_nothing_else_fits() -> None:
    tokens = np.array([[5, *[12] * 19]])  # one word of 20 tokens, of which 3 are to be hidden
    assert WORDS(tokens, np.arange(1), (0,)).positions.tolist() == [[0, 1, 2]]


def test_words_of_every_length_are_about_equally_likely() -> None:
    """Not quite: the last of a sequence's share goes to words of one token."""
    tokens = np.tile([5, 12, 6, 7, 14, 13, 8, 9, 5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6], (2000, 10))
    hidden = WORDS(tokens, np.arange(2000), (0,))
    often = np.bincount(hidden.positions.ravel(), minlength=200).reshape(10, 20).mean(axis=0) / 2000
    assert often.sum() == pytest.approx(3)
    assert often[[0, 3, 3]] == pytest.approx(often[[1, 4, 5]], abs=1e-12)
    assert often == pytest.approx(np.full(20, 0.15), abs=0.015)


def byte_level(**special: str) -> PreTrainedTokenizerFast:
    pieces = ["<end>", "<hide>", "un", "Ġun", "break", "able", ".", "Ġ(", "Ċ", "7", "é"]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    from tokenizers import decoders

    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", **special)


def test_words_of_byte_level_text_are_runs_of_letters_without_a_space() -> None:
    masking = tokenizer_masking(byte_level(mask_token="<hide>"), 0.15, whole_words=True)
    assert masking.mask_id == 1
    assert masking.special.tolist() == [True, True, *[False] * 9]
    assert masking.continues_word is not None
    assert masking.ends_word is not None
    #                                           un    Ġun   break able  .      Ġ(     Ċ      7     é
    assert masking.continues_word[2:].tolist() == [True, False, True, True, False, False, False, True, True]
    assert masking.ends_word[2:].tolist() == [True, True, True, True, False, False, False, True, True]


def test_words_of_wordpiece_are_told_by_its_marks() -> None:
    pieces = ["[UNK]", "[MASK]", "[SEP]", "un", "##break", "##able", "."]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)})),
        mask_token="[MASK]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    )
    masking = tokenizer_masking(tokenizer, 0.15, whole_words=True)
    assert masking.continues_word is not None
    assert masking.continues_word.tolist() == [False, False, False, False, True, True, False]
    assert masking.special.tolist() == [True, True, True, False, False, False, False]


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    with pytest.raises(DataError, match=r"has no mask token, which model\.objective masked_lm hides tokens behind"):
        tokenizer_masking(byte_level(), 0.15, whole_words=False)


def test_the_one_that_is_trained_here_has_a_mask_token(tmp_path: Path) -> None:
    pieces = [("some words to learn from, and some more words", 1.0)]
    save_tokenizer(train_tokenizer(pieces, TokenizerTraining(300)), tmp_path / "t")
    tokenizer = load_tokenizer(str(tmp_path / "t"))
    masking = tokenizer_masking(tokenizer, 0.15, whole_words=False)
    assert tokenizer.convert_ids_to_tokens(masking.mask_id) == "<|mask|>"
    assert masking.special[[tokenizer.eos_token_id, masking.mask_id]].all()
