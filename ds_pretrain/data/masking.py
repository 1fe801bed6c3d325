"""Dynamic masking for masked language models: which tokens are hidden, and behind what.

Of every sequence 15% of the tokens are targets (Devlin et al., BERT, 2019): 80% of them become the mask token, 10% a
token of chance, 10% stay. transformers' ``DataCollatorForLanguageModeling`` draws every token by itself; here every
sequence has exactly its share of targets, so that every step has equally many, whatever its text and the ranks. The
draws are a function of seed, step and the sequence's place in the batch, by a counter-based generator (Philox).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ds_pretrain.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_MASKED, _MASKED_OR_RANDOM = 0.8, 0.9
_DRAWS_PER_COUNT = 4  # 64-bit numbers that Philox makes of one count


@dataclass(frozen=True, eq=False)
class MaskedRows:
    """Sequences with tokens hidden.

    Args:
        input_ids: what is left to see, int64 [sequences, seq_len].
        positions: where the targets are, rising in every sequence, int64 [sequences, targets].
        targets: the tokens that stood there, int64 [sequences, targets].
    """

    input_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    targets: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Masking:
    """How tokens are hidden.

    Args:
        probability: share of the tokens that are targets.
        mask_id: token that hides another.
        special: tokens that are hidden only where a sequence has too few others, bool [vocab_size].
        ends_word, continues_word: whether a word may go on after a token, and whether a token may go on with the word
            of the one before it, bool [vocab_size]; None hides tokens one by one instead of whole words.
    """

    probability: float
    mask_id: int
    special: NDArray[np.bool_]
    ends_word: NDArray[np.bool_] | None = None
    continues_word: NDArray[np.bool_] | None = None

    def targets_per_sequence(self, seq_len: int) -> int:
        """Targets of a sequence of ``seq_len`` tokens: its share, rounded, at least one."""
        return max(1, round(self.probability * seq_len))

    def __call__(self, tokens: NDArray[np.int64], places: NDArray[np.int64], key: tuple[int, ...]) -> MaskedRows:
        """Hides tokens.

        Args:
            tokens: int64 [sequences, seq_len].
            places: number of each sequence in its batch, over all ranks; [sequences].
            key: what else the draws depend on: seed and step.
        """
        seq_len = tokens.shape[1]
        count = self.targets_per_sequence(seq_len)
        chances = _uniform(key, places, seq_len + 2 * count)
        order = self._order(tokens, chances[:, :seq_len], count)
        positions = np.sort(np.argpartition(order, count - 1, axis=1)[:, :count], axis=1)
        targets = np.take_along_axis(tokens, positions, axis=1)
        action, choice = chances[:, seq_len : seq_len + count], chances[:, seq_len + count :]
        seen = np.where(action < _MASKED_OR_RANDOM, (choice * len(self.special)).astype(np.int64), targets)
        seen[action < _MASKED] = self.mask_id
        input_ids = tokens.copy()
        np.put_along_axis(input_ids, positions, seen, axis=1)
        return MaskedRows(input_ids, positions, targets)

    def _order(self, tokens: NDArray[np.int64], chances: NDArray[np.float64], count: int) -> NDArray[np.float64]:
        """The lower, the sooner a token is a target; special tokens come last."""
        last = self.special[tokens]
        if self.ends_word is None or self.continues_word is None:
            return chances + last
        begins = np.ones(tokens.shape, dtype=bool)
        begins[:, 1:] = ~(self.ends_word[tokens[:, :-1]] & self.continues_word[tokens[:, 1:]])
        begins |= last
        begins[:, 1:] |= last[:, :-1]
        return _whole_words(begins, chances, last, count)


def tokenizer_masking(tokenizer: PreTrainedTokenizerFast, probability: float, whole_words: bool) -> Masking:
    """The masking of a tokenizer's text.

    A word is a run of WordPiece's word and its ``##`` pieces, or in other vocabularies a run of tokens of letters and
    digits without a space between them.

    Args:
        tokenizer: that the text was made with.
        probability: share of the tokens that are targets.
        whole_words: hide words instead of tokens.

    Raises:
        DataError: it has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise DataError(
            f"tokenizer {tokenizer.name_or_path}: has no mask token, which model.objective masked_lm hides tokens "
            "behind; prepare the corpus with one that has (BERT's, or one trained here), or set mask_token in its "
            "tokenizer_config.json to a token of its vocabulary"
        )
    size = len(tokenizer)
    special = np.zeros(size, dtype=bool)
    special[list(tokenizer.all_special_ids)] = True
    if not whole_words:
        return Masking(probability, tokenizer.mask_token_id, special)
    pieces = [piece or "" for piece in tokenizer.convert_ids_to_tokens(list(range(size)))]
    if any(piece.startswith("##") for piece in pieces):
        ends, continues = np.ones(size, dtype=bool), np.array([piece.startswith("##") for piece in pieces])
    else:
        texts = tokenizer.batch_decode([[token] for token in range(size)], clean_up_tokenization_spaces=False)
        ends = np.array([_is_letter(text[-1:]) for text in texts])
        continues = np.array(
            [_is_letter(text[:1]) and not piece.startswith("▁") for text, piece in zip(texts, pieces, strict=True)]
        )
    return Masking(probability, tokenizer.mask_token_id, special, ends, continues)


def _is_letter(character: str) -> bool:
    """Letters and digits, and the parts of such that byte-level tokens hold."""
    return character.isalnum() or character == "\ufffd"


def _uniform(key: tuple[int, ...], places: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    """Numbers in [0, 1), float64 [len(places), draws]; each row a function of ``key`` and its place."""
    counts = -(-draws // _DRAWS_PER_COUNT)
    words = np.random.SeedSequence(key).generate_state(2, dtype=np.uint64)
    runs = np.split(places, np.flatnonzero(np.diff(places) != 1) + 1) if len(places) else []
    chances = [
        np.random.Generator(np.random.Philox(key=words, counter=int(run[0]) * counts)).random(
            (len(run), counts * _DRAWS_PER_COUNT)
        )
        for run in runs
    ]
    return np.concatenate(chances)[:, :draws] if chances else np.empty((0, draws))


def _whole_words(
    begins: NDArray[np.bool_], chances: NDArray[np.float64], last: NDArray[np.bool_], count: int
) -> NDArray[np.float64]:
    """An order in which the first ``count`` tokens are whole words.

    Words come by the chance of their first token, for as long as they fit; then the words of one token fill up what is
    left. Only where a sequence has too few of these is a word cut.
    """
    rows, length = begins.shape
    begins = begins.copy()
    begins[:, 0] = True
    word = np.cumsum(begins, axis=1) - 1
    first = np.maximum.accumulate(np.where(begins, np.arange(length), 0), axis=1)
    size = np.take_along_axis(_counts(word, length), word, axis=1)
    by_word = np.argsort(np.take_along_axis(chances + last, first, axis=1), axis=1, kind="stable")
    rank = np.empty_like(by_word)
    np.put_along_axis(rank, by_word, np.broadcast_to(np.arange(length), (rows, length)), axis=1)
    # a word's tokens are neighbours in the order: it ends where its first token's rank and its size say
    end = np.take_along_axis(rank, first, axis=1) + size
    too_late = end > count
    order: NDArray[np.float64] = (
        rank + length * (too_late * np.where((size == 1) & ~last, 1.0, 2.0)) + 4.0 * length * last
    )
    return order


def _counts(word: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """How many tokens each word has, int64 [rows, length]; zeros after the last word."""
    rows = len(word)
    flat = (word + np.arange(rows)[:, None] * length).ravel()
    return np.bincount(flat, minlength=rows * length).reshape(rows, length)
