"""What a recipe and its corpus say of the model's inputs: where documents end, how positions count, what is hidden."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ds_pretrain.config import Recipe
from ds_pretrain.data.indexed import TokenFile
from ds_pretrain.data.inputs import InputFormat
from ds_pretrain.data.manifest import open_corpus
from ds_pretrain.data.masking import Masking, tokenizer_masking
from ds_pretrain.data.tokenizer import end_of_document_id, load_tokenizer
from ds_pretrain.errors import DataError, Problem, RecipeError
from ds_pretrain.model.attention import confines_attention, takes_positions
from ds_pretrain.model.layers import first_position
from ds_pretrain.train.corpus import Corpus

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DOCUMENTS_LOOKED_AT = 1000
_LONG = 4096


def input_format(recipe: Recipe, corpus: Corpus) -> InputFormat:
    """How the rows of a run's corpora become inputs.

    Args:
        recipe: a checked recipe.
        corpus: its token files.

    Raises:
        DataError: documents are to be told apart, but do not end with one token; or there is no mask token.
    """
    data = recipe.data
    end = _document_end(corpus) if data.document_mask else None
    masking = _masking(recipe, corpus) if recipe.model.objective == "masked_lm" else None
    return InputFormat(data.max_seq_len, document_end=end, reset_positions=data.reset_positions, masking=masking)


def positions_run_on(recipe: Recipe) -> bool:
    """Whether short stages train late positions too: those of blocks that are not the first of their row."""
    return recipe.data.sequence_mode == "mask" and not recipe.data.reset_positions


def check_model(recipe: Recipe, model: PreTrainedModel) -> None:
    """Has the model show that it does what the recipe asks of its attention. Every rank must take part under ZeRO 3.

    Raises:
        RecipeError: it does not.
    """
    data, kind = recipe.data, model.config.model_type
    masked = recipe.model.objective == "masked_lm"
    first = first_position(model)
    if first and model.config.max_position_embeddings < data.max_seq_len + first:
        message = f"found {model.config.max_position_embeddings}, but {kind} counts positions from {first}; "
        raise RecipeError([Problem("model.config.max_position_embeddings", f"{message}set {data.max_seq_len + first}")])
    if (data.document_mask or positions_run_on(recipe)) and not takes_positions(model, masked):
        remedy = "leave it out" if data.document_mask else "set data.reset_positions, or use mode chunk"
        key = "data.document_mask" if data.document_mask else "data.sequence_mode"
        raise RecipeError(
            [
                Problem(
                    key, f"needs positions to be given to the model, which {kind} does not take as they are; {remedy}"
                )
            ]
        )
    if data.document_mask and not confines_attention(model, masked):
        raise RecipeError(
            [Problem("data.document_mask", f"{kind} does not confine its attention to documents; leave it out")]
        )


def attention_problems(recipe: Recipe, device_type: str) -> Sequence[Problem]:
    """Attention that the device cannot train with."""
    if recipe.model.attn_implementation == "flex_attention" and device_type == "cpu":
        return [
            Problem("model.attn_implementation", "found flex_attention, which torch trains with on GPUs only; use auto")
        ]
    return ()


def attention_notes(recipe: Recipe, device_type: str) -> Sequence[str]:
    """What documents cost at long lengths where the kernel does not skip what is masked."""
    skips = recipe.model.attn_implementation in ("flex_attention", "flash_attention_2")
    if not recipe.data.document_mask or skips or device_type == "cpu" or recipe.data.max_seq_len < _LONG:
        return ()
    return (
        f"note: data.document_mask at max_seq_len {recipe.data.max_seq_len}: SDPA computes whole rows and needs memory "
        "for their masks; model.attn_implementation flex_attention or flash_attention_2 skips what is masked",
    )


def _masking(recipe: Recipe, corpus: Corpus) -> Masking:
    if corpus.tokenizer is None:
        raise DataError(
            f"{corpus.train}: names no tokenizer, whose mask token model.objective masked_lm needs; set tokenizer.path"
        )
    settings = recipe.data.masking
    return tokenizer_masking(load_tokenizer(corpus.tokenizer), settings.probability, settings.whole_words)


def _document_end(corpus: Corpus) -> int:
    prefixes = [prefix for _, prefix in (*corpus.train, *corpus.validation)]
    manifest = next((found for found in (open_corpus(prefix)[1] for prefix in prefixes) if found is not None), None)
    if manifest is not None:
        end = manifest.eos_id
    else:
        assert corpus.tokenizer is not None  # or there would be no vocabulary
        end = end_of_document_id(load_tokenizer(corpus.tokenizer))
    for prefix in prefixes:
        _check_ends(prefix, end)
    return end


def _check_ends(prefix: Path, end: int) -> None:
    """Looks at the last token of the first documents."""
    corpus = TokenFile.open(prefix)
    bounds = np.arange(min(corpus.num_documents, _DOCUMENTS_LOOKED_AT) + 1)
    if corpus.document_bounds is not None:
        bounds = corpus.document_bounds[: _DOCUMENTS_LOOKED_AT + 1]
    ends = np.concatenate(([0], np.cumsum(corpus.sequence_lengths[: bounds[-1]], dtype=np.int64)))[bounds]
    filled = ends[1:][np.diff(ends) > 0]
    others = int((corpus.tokens[filled - 1] != end).sum())
    if others:
        raise DataError(
            f"{prefix}: {others} of its first {len(filled)} documents do not end with token {end}, which "
            "data.document_mask tells documents by; prepare the corpus again with ds-pretrain prepare (or Megatron's "
            "--append-eod), or leave data.document_mask out"
        )
