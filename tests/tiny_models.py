"""Models of a few thousand parameters, built as a run builds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ds_pretrain.config import Model
from ds_pretrain.model.build import Vocabulary, build_model, model_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "llama": _LLAMA,
    "gpt_neox": {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"},
    "opt": {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "bert": {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2},
    "electra": {**{key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}, "embedding_size": 16},
    "roberta": {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"},
    "modernbert": {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"},
    "gemma2": {**_LLAMA, "head_dim": 16},
    "mistral": _LLAMA,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
}
# 50 ids, which make 56 rows in multiples of 8
VOCABULARY = Vocabulary(50, eos_id=3)
ROWS = 56


def tiny_section(architecture: str, **config: Any) -> Model:
    """A recipe's ``model`` section."""
    return Model(architecture=architecture, config={**SIZES[architecture], **config}, pad_vocab_multiple=8)


def tiny_model(
    architecture: str,
    max_seq_len: int = 16,
    seed: int = 0,
    attn_implementation: str = "auto",
    objective: str = "causal_lm",
    **config: Any,
) -> PreTrainedModel:
    """A model with ``ROWS`` token ids."""
    changes = {"attn_implementation": attn_implementation, "objective": objective}
    section = tiny_section(architecture, **config).model_copy(update=changes)
    torch.manual_seed(seed)
    return build_model(section, model_config(section, VOCABULARY, max_seq_len))
