"""What a model or a corpus cannot do for a recipe is said before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import recipe
from tiny_models import tiny_model, tiny_section

from ds_pretrain.data.token_writer import TokenFileWriter
from ds_pretrain.data.tokenizer import save_tokenizer
from ds_pretrain.data.train_tokenizer import TokenizerTraining, train_tokenizer
from ds_pretrain.errors import DataError, RecipeError
from ds_pretrain.model.build import Vocabulary, build_model, model_config
from ds_pretrain.train.corpus import Corpus
from ds_pretrain.train.formats import attention_notes, attention_problems, check_model, input_format, positions_run_on

DOCUMENTS = {"document_mask": True, "max_seq_len": 16}
BLOCKS = {"sequence_mode": "mask", "max_seq_len": 16}


@pytest.mark.parametrize(
    ("architecture", "data", "message"),
    [
        ("opt", DOCUMENTS, "data.document_mask: opt does not confine its attention to documents; leave it out"),
        ("bloom", DOCUMENTS, "data.document_mask: needs positions to be given to the model, which bloom does not take"),
        ("bloom", BLOCKS, "data.sequence_mode: needs positions to be given to the model, which bloom does not take"),
    ],
)
def test_a_model_that_cannot_is_refused(architecture: str, data: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_model(recipe(data=data), tiny_model(architecture))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "data"),
    [("gpt2", DOCUMENTS), ("llama", BLOCKS), ("opt", BLOCKS), ("bloom", {**BLOCKS, "reset_positions": True})],
)
def test_a_model_that_can_is_not(architecture: str, data: dict[str, Any]) -> None:
    check_model(recipe(data=data), tiny_model(architecture))


def roberta(positions: int) -> Any:
    section = tiny_section("roberta", max_position_embeddings=positions).model_copy(update={"objective": "masked_lm"})
    return build_model(section, model_config(section, Vocabulary(50, eos_id=2, pad_id=1), 16))


def test_positions_that_begin_behind_the_padding_need_more_rows() -> None:
    masked = {"model": {"architecture": "roberta", "objective": "masked_lm"}}
    with pytest.raises(RecipeError) as caught:
        check_model(recipe(data={"max_seq_len": 16}, **masked), roberta(16))
    expected = "model.config.max_position_embeddings: found 16, but roberta counts positions from 2; set 18"
    assert expected in str(caught.value)
    enough = roberta(18)
    check_model(recipe(data={"max_seq_len": 16}, **masked), enough)
    assert enough(input_ids=torch.full((1, 16), 5)).logits.shape == (1, 16, 56)
    with pytest.raises(RecipeError, match="which roberta does not take as they are"):
        check_model(recipe(data=BLOCKS, **masked), enough)


def test_short_stages_train_late_positions_in_blocks_alone() -> None:
    assert positions_run_on(recipe(data=BLOCKS))
    assert not positions_run_on(recipe(data={**BLOCKS, "reset_positions": True}))
    assert not positions_run_on(recipe())


def test_attention_that_the_device_lacks_or_pays_dearly_for() -> None:
    flex = recipe(model={"attn_implementation": "flex_attention"}, data=DOCUMENTS)
    (problem,) = attention_problems(flex, "cpu")
    assert "torch trains with on GPUs only" in str(problem)
    assert attention_problems(flex, "cuda") == attention_problems(recipe(), "cpu") == ()
    long = recipe(data={"document_mask": True, "max_seq_len": 8192})
    (note,) = attention_notes(long, "cuda")
    assert "flex_attention or flash_attention_2" in note
    assert attention_notes(long, "cpu") == attention_notes(recipe(data=DOCUMENTS), "cuda") == ()


def corpus(prefix: Path, documents: list[list[int]]) -> Corpus:
    with TokenFileWriter(prefix, np.uint16) as writer:
        for document in documents:
            writer.append(np.array(document, dtype=np.uint16))
    save_tokenizer(train_tokenizer([("words", 1.0)], TokenizerTraining(258)), prefix.parent / "tokenizer")
    return Corpus((("ended", prefix),), (), str(prefix.parent / "tokenizer"), Vocabulary(258, 0), "")


def test_documents_are_told_by_the_token_that_ends_them(tmp_path: Path) -> None:
    asked = recipe(data=DOCUMENTS)
    ended = corpus(tmp_path / "a" / "ended", [[5, 6, 0], [7, 0], [0]])
    assert input_format(asked, ended).document_end == 0
    assert input_format(recipe(), ended).document_end is None
    with pytest.raises(DataError, match="2 of its first 3 documents do not end with token 0"):
        input_format(asked, corpus(tmp_path / "b" / "open", [[5, 6], [7, 0], [8]]))
