"""What several tests share: a tiny recipe, and the published table as a recipe."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ds_pretrain.config import Recipe, parse_recipe

TINY: Mapping[str, Any] = {
    "model": {
        "architecture": "llama",
        "config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
        "pad_vocab_multiple": 8,
    },
    "data": {"train": [{"path": "corpus"}], "max_seq_len": 64},
    "curriculum": {"total_steps": 12, "batch_size": 8},
    "optimizer": {"lr": 1e-2},
}

# a published curriculum for GPT-2 small at extreme learning rates; its warmups are stated by stage
PUBLISHED: Mapping[str, Any] = {
    "model": {"architecture": "gpt2", "config": {"n_layer": 12, "n_embd": 768, "n_head": 12}},
    "tokenizer": {"path": "gpt2"},
    "data": {"train": ["data/owt"], "validation": ["data/owt-val"], "max_seq_len": 1024},
    "curriculum": {
        "total_steps": 100000,
        "stages": [
            {"step": 0, "seq_len": 64, "batch_size": 256, "lr_multiplier": 11.3, "warmup_steps": 500, "grad_clip": 5.0},
            {"step": 2000, "seq_len": 128, "batch_size": 128, "lr_multiplier": 7.0, "warmup_steps": 300,
             "grad_clip": 2.0},
            {"step": 4000, "seq_len": 256, "batch_size": 64, "lr_multiplier": 3.5, "warmup_steps": 200,
             "grad_clip": 1.0},
            {"step": 8000, "seq_len": 512, "batch_size": 32, "lr_multiplier": 1.5, "warmup_steps": 100,
             "grad_clip": 0.5},
            {"step": 20000, "seq_len": 1024, "batch_size": 16, "lr_multiplier": 0.7, "warmup_steps": 100,
             "grad_clip": 0.3},
        ],
    },
    "optimizer": {"lr": 6.0e-4},
    "schedule": {"type": "cosine", "scope": "stage", "min_lr_ratio": 0.1,
                 "warmup": {"tokens": 100_000_000, "max_steps": 2000}},
}  # fmt: skip


def recipe(base: Mapping[str, Any] = TINY, **sections: Mapping[str, Any] | str) -> Recipe:
    """``base`` with the keys of some sections replaced."""
    data = copy.deepcopy(dict(base))
    for name, changes in sections.items():
        data[name] = {**data.get(name, {}), **changes} if isinstance(changes, Mapping) else changes
    return parse_recipe(data)
