"""Depths against lists written by hand, for six architectures, tied and untied, as decoders and as encoders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import ROWS, SIZES, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, BertForMaskedLM

from ds_pretrain.errors import RecipeError
from ds_pretrain.model.layers import has_learned_positions, layer_depths, num_layers

LAYERS = 3
_BERT_EMBEDDINGS = {
    *(f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")),
    "bert.embeddings.LayerNorm.weight",
    "bert.embeddings.LayerNorm.bias",
}
_BERT_HEAD = {
    "cls.predictions.bias",
    *(f"cls.predictions.transform.{name}.{kind}" for name in ("dense", "LayerNorm") for kind in ("weight", "bias")),
}
_BERT_OUTPUT = {f"cls.predictions.decoder.{kind}" for kind in ("weight", "bias")}
# architecture to: where its layers are, what runs before them, what runs after them, and what may be tied
DECODERS: dict[str, tuple[str, set[str], set[str], set[str]]] = {
    "gpt2": (
        "transformer.h.",
        {"transformer.wte.weight", "transformer.wpe.weight"},
        {"transformer.ln_f.weight", "transformer.ln_f.bias"},
        {"lm_head.weight"},
    ),
    "llama": ("model.layers.", {"model.embed_tokens.weight"}, {"model.norm.weight"}, {"lm_head.weight"}),
    "gpt_neox": (
        "gpt_neox.layers.",
        {"gpt_neox.embed_in.weight"},
        {"gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias"},
        {"lm_head.weight"},
    ),
    "opt": (
        "model.decoder.layers.",
        {"model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"},
        {"model.decoder.final_layer_norm.weight", "model.decoder.final_layer_norm.bias"},
        {"lm_head.weight"},
    ),
    "bert": ("bert.encoder.layer.", _BERT_EMBEDDINGS, _BERT_HEAD, _BERT_OUTPUT),
}
ENCODERS: dict[str, tuple[dict[str, Any], str, set[str], set[str], set[str]]] = {
    "bert": ({**SIZES["bert"], "num_hidden_layers": LAYERS}, *DECODERS["bert"]),
    "distilbert": (
        {"dim": 32, "hidden_dim": 64, "n_heads": 2, "n_layers": LAYERS},
        "distilbert.transformer.layer.",
        {
            "distilbert.embeddings.word_embeddings.weight",
            "distilbert.embeddings.position_embeddings.weight",
            "distilbert.embeddings.LayerNorm.weight",
            "distilbert.embeddings.LayerNorm.bias",
        },
        {
            *(f"vocab_{name}.{kind}" for name in ("transform", "layer_norm") for kind in ("weight", "bias")),
            "vocab_projector.bias",
        },
        {"vocab_projector.weight"},
    ),
}


def check(model: Any, layers: str, before: set[str], after: set[str]) -> None:
    depths = layer_depths(model)
    assert list(depths) == [name for name, _ in model.named_parameters()]
    assert num_layers(model) == LAYERS
    assert {name for name, depth in depths.items() if depth == LAYERS + 1} == before
    assert {name for name, depth in depths.items() if depth == 0} == after
    for index in range(LAYERS):
        inside = {name for name in depths if name.startswith(f"{layers}{index}.")}
        assert len(inside) > 4
        assert {name for name, depth in depths.items() if depth == LAYERS - index} == inside


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", sorted(DECODERS))
def test_depths_in_decoders(architecture: str, tied: bool) -> None:
    layers, before, after, output = DECODERS[architecture]
    number = {"gpt2": "n_layer"}.get(architecture, "num_hidden_layers")
    model = tiny_model(architecture, tie_word_embeddings=tied, **{number: LAYERS})
    check(model, layers, before, after if tied else after | output)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", sorted(ENCODERS))
def test_depths_in_encoders(architecture: str, tied: bool) -> None:
    sizes, layers, before, after, output = ENCODERS[architecture]
    config = AutoConfig.for_model(architecture, vocab_size=ROWS, tie_word_embeddings=tied, **sizes)
    check(AutoModelForMaskedLM.from_config(config), layers, before, after if tied else after | output)


def test_projections_count_by_where_they_run() -> None:
    # both are registered before the layers
    model = tiny_model("opt", word_embed_proj_dim=16, do_layer_norm_before=False, num_hidden_layers=LAYERS)
    before = DECODERS["opt"][1] | {"model.decoder.project_in.weight"}
    check(model, "model.decoder.layers.", before, {"model.decoder.project_out.weight"})


def test_what_no_pass_uses_belongs_to_the_head() -> None:
    model = tiny_model("llama")
    model.register_parameter("spare", torch.nn.Parameter(torch.zeros(2)))
    assert layer_depths(model)["spare"] == 0


def test_experts_are_parts_of_their_layer() -> None:
    sizes = {**SIZES["llama"], "num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": LAYERS}
    config = AutoConfig.for_model("mixtral", vocab_size=ROWS, tie_word_embeddings=False, **sizes)
    check(AutoModelForCausalLM.from_config(config), *DECODERS["llama"][:2], {"model.norm.weight", "lm_head.weight"})


def test_finding_the_layers_leaves_model_and_chance_alone() -> None:
    model = tiny_model("gpt2")
    before, config = {name: part.clone() for name, part in model.state_dict().items()}, model.config.to_dict()
    state = torch.get_rng_state()
    layer_depths(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config.to_dict() == config
    assert model.training
    assert all(torch.equal(before[name], part) for name, part in model.state_dict().items())


class _TwoStacks(BertForMaskedLM):
    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.more = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(config.num_hidden_layers))


class _LooksAtValues(BertForMaskedLM):
    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        return super().forward(input_ids=input_ids[:, : int(input_ids.max().item())], **options)


@pytest.mark.parametrize(
    ("kind", "reason"), [(_TwoStacks, "it has no single list of layers"), (_LooksAtValues, "without values")]
)
def test_a_model_whose_layers_cannot_be_told_is_named_with_the_remedy(kind: Any, reason: str) -> None:
    model = kind(BertConfig(vocab_size=ROWS, **SIZES["bert"]))
    with pytest.raises(RecipeError, match=r"cannot tell the layers of bert from the rest") as caught:
        layer_depths(model)
    (problem,) = caught.value.problems
    assert problem.path == "param_groups.kind"
    assert reason in problem.message
    assert "use kind: patterns" in problem.message


def test_which_models_learn_their_positions() -> None:
    encoders = {"bert", "distilbert", "electra", "roberta", "modernbert"}
    found = {
        architecture for architecture in SIZES.keys() - encoders if has_learned_positions(tiny_model(architecture))
    }
    assert found == {"gpt2", "opt"}
