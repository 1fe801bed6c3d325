"""Training a tokenizer on the text of a corpus: byte-level BPE or Unigram."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ds_pretrain.data.tokenizer import EOS_TOKEN, MASK_TOKEN
from ds_pretrain.errors import DataError, UserError

MIN_VOCAB_SIZE = 258  # 256 bytes, the end-of-document token and the mask
MAX_TRAINING_BYTES = 256 << 20

TokenizerKind = Literal["bpe", "unigram"]


@dataclass(frozen=True)
class TokenizerTraining:
    """A tokenizer to train.

    Args:
        vocab_size: entries, the 256 bytes, the end-of-document token and the mask included; fewer where the text has
            fewer.
        kind: ``bpe`` (the kind of GPT-2 and Llama 3) or ``unigram`` (Kudo, 2018); both over bytes, so that any text
            is encoded and decoded to itself.
        min_frequency: for ``bpe``, how often a pair must stand in the text to be merged.

    Raises:
        DataError: ``vocab_size`` is too small.
    """

    vocab_size: int
    kind: TokenizerKind = "bpe"
    min_frequency: int = 2

    def __post_init__(self) -> None:
        if self.vocab_size < MIN_VOCAB_SIZE:
            raise DataError(
                f"tokenizer: found a vocabulary of {self.vocab_size}; allowed: at least {MIN_VOCAB_SIZE}, the 256 "
                f"bytes, {EOS_TOKEN} and {MASK_TOKEN}"
            )


def parse_training(tokenizer: str, min_frequency: int = 2) -> TokenizerTraining | None:
    """What ``train:N`` or ``train:N:KIND`` asks for; None for any other tokenizer.

    Raises:
        UserError: it is neither of the two.
    """
    if tokenizer != "train" and not tokenizer.startswith("train:"):
        return None
    kinds = get_args(TokenizerKind)
    match = re.fullmatch(rf"train:(\d+)(?::({'|'.join(kinds)}))?", tokenizer)
    if match is None:
        raise UserError(
            f"tokenizer: found {tokenizer!r}; allowed: train:N with N entries, as train:8192, or train:N:KIND with "
            f"one of {', '.join(kinds)}"
        )
    return TokenizerTraining(int(match[1]), match[2] or "bpe", min_frequency)  # type: ignore[arg-type]


def train_tokenizer(
    pieces: Iterable[tuple[str, float]], training: TokenizerTraining, max_bytes: int = MAX_TRAINING_BYTES
) -> str:
    """Train a tokenizer; the same text gives the same BPE tokenizer. Returns its JSON.

    Memory is bounded by learning from at most about ``max_bytes`` of text, taken evenly over all of it.

    Args:
        pieces: texts of a bounded size to learn from, each with the share of all input that is read once it is.
        training: what to train.
        max_bytes: the most to learn from, in UTF-8 bytes.

    Raises:
        DataError: there is no text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any
    if training.kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=training.vocab_size,
            min_frequency=training.min_frequency,
            special_tokens=[EOS_TOKEN, MASK_TOKEN],
            initial_alphabet=alphabet,
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=training.vocab_size,
            special_tokens=[EOS_TOKEN, MASK_TOKEN],
            initial_alphabet=alphabet,
            show_progress=False,
        )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    taken = 0

    def sample() -> Iterator[str]:
        nonlocal taken
        for piece, share in pieces:
            if taken < share * max_bytes:
                taken += len(piece.encode("utf-8"))
                yield piece

    tokenizer.train_from_iterator(sample(), trainer=trainer)
    if taken == 0:
        raise DataError("tokenizer: no documents to train on; give more text, or hold less of it out for validation")
    return str(tokenizer.to_str())
