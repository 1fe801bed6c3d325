"""Parameter groups against lists written by hand."""

from __future__ import annotations

from collections import Counter

import pytest
from tiny_models import SIZES, tiny_model

from ds_pretrain.model.groups import decay_groups

_GPT2_LAYERS = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
_LLAMA_LAYERS = [
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
]
MATRICES = {
    "gpt2": {f"transformer.h.{layer}.{name}.weight" for layer in (0, 1) for name in _GPT2_LAYERS},
    "llama": {f"model.layers.{layer}.{name}.weight" for layer in (0, 1) for name in _LLAMA_LAYERS},
}
EMBEDDINGS = {"gpt2": {"transformer.wte.weight", "transformer.wpe.weight"}, "llama": {"model.embed_tokens.weight"}}
REST = {
    "gpt2": {
        *(
            f"transformer.h.{layer}.{name}"
            for layer in (0, 1)
            for name in (
                *(f"{norm}.{kind}" for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")),
                *(f"{matrix}.bias" for matrix in _GPT2_LAYERS),
            )
        ),
        "transformer.ln_f.weight",
        "transformer.ln_f.bias",
    },
    "llama": {
        *(
            f"model.layers.{layer}.{norm}.weight"
            for layer in (0, 1)
            for norm in ("input_layernorm", "post_attention_layernorm")
        ),
        "model.norm.weight",
    },
}


def grouped_names(architecture: str, tied: bool, decay_embeddings: bool) -> dict[str, set[str]]:
    model = tiny_model(architecture, tie_word_embeddings=tied)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = decay_groups(model, 0.1, decay_embeddings)
    assert {group["name"]: group["weight_decay"] for group in groups} == {"decay": 0.1, "no_decay": 0.0}
    assert {group["lr_multiplier"] for group in groups} == {1.0}
    return {group["name"]: {names[id(parameter)] for parameter in group["params"]} for group in groups}


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("decay_embeddings", [True, False])
def test_groups_are_those_listed(architecture: str, tied: bool, decay_embeddings: bool) -> None:
    # a tied head is the embedding; one of its own is a matrix like any other
    decay = MATRICES[architecture] | (set() if tied else {"lm_head.weight"})
    embeddings = EMBEDDINGS[architecture]
    assert grouped_names(architecture, tied, decay_embeddings) == {
        "decay": decay | embeddings if decay_embeddings else decay,
        "no_decay": REST[architecture] if decay_embeddings else REST[architecture] | embeddings,
    }


@pytest.mark.parametrize("architecture", sorted(SIZES))
def test_every_trained_parameter_is_in_exactly_one_group(architecture: str) -> None:
    model = tiny_model(architecture)
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    found = Counter(id(parameter) for group in decay_groups(model, 0.1, False) for parameter in group["params"])
    assert found == {id(parameter): 1 for parameter in model.parameters() if parameter is not frozen}


def test_a_group_without_parameters_is_left_out() -> None:
    model = tiny_model("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    assert [group["name"] for group in decay_groups(model, 0.1, False)] == ["no_decay"]
