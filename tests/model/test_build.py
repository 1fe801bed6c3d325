"""Models from a config and from a pretrained folder; what does not fit is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ROWS, SIZES, VOCABULARY, tiny_model, tiny_section
from torch import nn

from ds_pretrain.config import Model
from ds_pretrain.errors import RecipeError
from ds_pretrain.model.build import Vocabulary, build_model, model_config

ARCHITECTURES = ["gpt2", "llama", "gpt_neox", "opt"]


def refusal(model: Model, vocabulary: Vocabulary = VOCABULARY, max_seq_len: int = 16) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        build_model(model, model_config(model, vocabulary, max_seq_len))
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("size", "multiple", "rows"), [(50, 8, 56), (56, 8, 56), (57, 8, 64), (50257, 128, 50304), (5, 1, 5)]
)
def test_the_vocabulary_is_rounded_up(size: int, multiple: int, rows: int) -> None:
    assert Vocabulary(size).padded(multiple) == rows


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_vocabulary_positions_and_ids_come_from_the_recipe(architecture: str) -> None:
    model = tiny_model(architecture, max_seq_len=24)
    assert model.get_input_embeddings().weight.shape == (ROWS, 32)
    assert model.get_output_embeddings().weight.shape == (ROWS, 32)
    assert model.config.max_position_embeddings == 24
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (3, 3, None)
    assert model.config.num_hidden_layers == 2
    # no row of the embedding is the padding's, which would never be trained
    assert model.get_input_embeddings().padding_idx is None


@pytest.mark.parametrize(("architecture", "name", "rows"), [("gpt2", "wpe", 24), ("opt", "embed_positions", 24 + 2)])
def test_learned_positions_are_as_many_as_the_recipe_needs(architecture: str, name: str, rows: int) -> None:
    model = tiny_model(architecture, max_seq_len=24)
    (table,) = [part for key, part in model.named_modules() if key.endswith(name)]
    assert table.weight.shape[0] == rows
    assert model(input_ids=torch.zeros((1, 24), dtype=torch.long)).logits.shape == (1, 24, ROWS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_is_ready_to_train(architecture: str) -> None:
    model = tiny_model(architecture)
    assert model.training
    assert not model.config.use_cache
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_is_off(architecture: str) -> None:
    model = tiny_model(architecture)
    assert all(part.p == 0 for part in model.modules() if isinstance(part, nn.Dropout))
    ids = torch.arange(16)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("architecture", "key"), [("gpt2", "resid_pdrop"), ("llama", "attention_dropout"), ("opt", "dropout")]
)
def test_dropout_is_on_where_asked_for(architecture: str, key: str) -> None:
    model = tiny_model(architecture, **{key: 0.5})
    ids = torch.arange(16)[None]
    with torch.no_grad():
        assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "bert"])
def test_no_token_is_seen_before_its_turn(architecture: str) -> None:
    model = tiny_model(architecture).eval()
    ids = torch.arange(10)[None]
    other = ids.clone()
    other[0, 6] = 20
    with torch.no_grad():
        first, second = (model(input_ids=each).logits[0] for each in (ids, other))
    torch.testing.assert_close(first[:6], second[:6])
    assert not torch.allclose(first[6:], second[6:])


def test_a_config_may_use_either_name_of_a_field() -> None:
    for key in ("n_embd", "hidden_size"):
        model = Model(architecture="gpt2", config={"n_layer": 1, "n_head": 2, key: 48})
        assert model_config(model, VOCABULARY, 16).n_embd == 48


@pytest.mark.parametrize("key", ["n_positions", "max_position_embeddings"])
def test_what_a_config_states_wins_by_either_name(key: str) -> None:
    model = Model(architecture="gpt2", config={"n_layer": 1, "n_head": 2, "n_embd": 8, key: 64, "vocab_size": 99})
    config = model_config(model, VOCABULARY, 16)
    assert (config.n_positions, config.vocab_size) == (64, 99)


def test_an_attention_implementation_is_passed_on() -> None:
    section = tiny_section("llama").model_copy(update={"attn_implementation": "eager"})
    assert build_model(section, model_config(section, VOCABULARY, 16)).config._attn_implementation == "eager"
    assert tiny_model("llama").config._attn_implementation == "sdpa"


def test_gradient_checkpointing_is_switched_on() -> None:
    section = tiny_section("llama").model_copy(update={"gradient_checkpointing": True})
    assert build_model(section, model_config(section, VOCABULARY, 16)).is_gradient_checkpointing
    assert not tiny_model("llama").is_gradient_checkpointing


@pytest.mark.parametrize(
    ("architecture", "near"), [("lama", "; did you mean 'llama'?"), ("gpt22", "; did you mean 'gpt2'?"), ("zzzzz", "")]
)
def test_an_unknown_architecture_is_refused(architecture: str, near: str) -> None:
    assert refusal(Model(architecture=architecture)) == [
        f"model.architecture: found {architecture!r}; allowed: a causal language model of transformers, "
        f"e.g. gpt2, llama, gpt_neox{near}"
    ]


def test_every_unknown_config_key_is_refused() -> None:
    assert refusal(Model(architecture="gpt2", config={"n_layers": 3, "n_embed": 8})) == [
        "model.config.n_layers: unknown key for gpt2; allowed: the fields of GPT2Config; did you mean 'n_layer'?",
        "model.config.n_embed: unknown key for gpt2; allowed: the fields of GPT2Config; did you mean 'n_embd'?",
    ]


@pytest.mark.parametrize(
    ("config", "path", "words"),
    [
        ({"n_embd": 30, "n_head": 4}, "model", "divisible by num_heads"),
        ({"n_embd": "wide"}, "model.config", "'n_embd' expected int"),
    ],
)
def test_what_transformers_refuses_is_one_message(config: dict[str, Any], path: str, words: str) -> None:
    (problem,) = refusal(Model(architecture="gpt2", config=config))
    assert problem.startswith(f"{path}: transformers refuses it: ")
    assert words in problem
    assert "\n" not in problem


def test_a_config_too_small_for_the_data_is_refused() -> None:
    config = {"vocab_size": 10, "max_position_embeddings": 4}
    assert refusal(Model(architecture="llama", config=config)) == [
        "model.config: found a model of 10 token ids, but the corpus uses 50; "
        "use the model's own tokenizer, or a model with a larger vocab_size",
        "model.config: found a model of 4 positions, but data.max_seq_len is 16; "
        "allowed: data.max_seq_len up to 4, or a model with more positions",
    ]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    tiny_model("gpt2", max_seq_len=32, seed=7).save_pretrained(folder)
    return folder


def test_a_pretrained_folder_brings_its_weights(pretrained: Path) -> None:
    model = Model(pretrained=str(pretrained))
    found = build_model(model, model_config(model, VOCABULARY, 16)).state_dict()
    expected = tiny_model("gpt2", max_seq_len=32, seed=7).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_pretrained_models_config_may_be_changed(pretrained: Path) -> None:
    model = Model(pretrained=str(pretrained), config={"resid_pdrop": 0.25})
    built = build_model(model, model_config(model, VOCABULARY, 32))
    assert {part.p for name, part in built.named_modules() if name.endswith("resid_dropout")} == {0.25}
    wrong = Model(pretrained=str(pretrained), config={"resid_drop": 0.25})
    assert refusal(wrong) == [
        "model.config.resid_drop: unknown key for gpt2; allowed: the fields of GPT2Config; did you mean 'resid_pdrop'?"
    ]


def test_a_pretrained_model_too_small_for_the_data_is_refused(pretrained: Path) -> None:
    assert refusal(Model(pretrained=str(pretrained)), Vocabulary(57), max_seq_len=33) == [
        "model.pretrained: found a model of 56 token ids, but the corpus uses 57; "
        "use the model's own tokenizer, or a model with a larger vocab_size",
        "model.pretrained: found a model of 32 positions, but data.max_seq_len is 33; "
        "allowed: data.max_seq_len up to 32, or a model with more positions",
    ]


def test_a_folder_that_is_no_model_is_refused(pretrained: Path, tmp_path: Path) -> None:
    (problem,) = refusal(Model(pretrained=str(tmp_path)))
    assert problem.startswith(f"model.pretrained: found {str(tmp_path)!r}, which transformers cannot load (")
    # a config without weights
    (tmp_path / "config.json").write_bytes((pretrained / "config.json").read_bytes())
    (problem,) = refusal(Model(pretrained=str(tmp_path)))
    assert problem.startswith("model: transformers refuses it: ")


def test_the_tiny_sizes_are_taken() -> None:
    """Guards the other tests: a misspelt size would leave transformers' large default."""
    for architecture in SIZES:
        objective = "masked_lm" if architecture in ("distilbert", "modernbert") else "causal_lm"
        model = tiny_model(architecture, objective=objective)
        assert sum(parameter.numel() for parameter in model.parameters()) < 60_000


def test_a_masked_model_looks_both_ways_and_knows_its_padding() -> None:
    section = tiny_section("bert").model_copy(update={"objective": "masked_lm"})
    model = build_model(section, model_config(section, Vocabulary(50, eos_id=3, pad_id=2), 16))
    assert type(model).__name__ == "BertForMaskedLM"
    assert not model.config.is_decoder
    assert model.get_input_embeddings().padding_idx == 2


def test_an_architecture_without_the_objective_is_refused() -> None:
    section = tiny_section("gpt2").model_copy(update={"objective": "masked_lm"})
    (problem,) = refusal(section)
    assert problem.startswith(
        "model.architecture: found 'gpt2'; allowed: a masked language model of transformers, e.g. bert, distilbert"
    )


def test_the_code_that_a_pretrained_folder_brings_is_not_run_unless_asked_for(pretrained: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    shutil.copytree(pretrained, evil)
    ran = tmp_path / "ran"
    (evil / "evil.py").write_text(
        f"from transformers import GPT2Config, GPT2LMHeadModel\nopen({str(ran)!r}, 'w')\n"
        "class EvilConfig(GPT2Config):\n    model_type = 'evil'\n"
        "class EvilModel(GPT2LMHeadModel):\n    config_class = EvilConfig\n"
    )
    config = json.loads((evil / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"},
    }
    (evil / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match=r"model\.pretrained"):
        model_config(Model(pretrained=str(evil)), VOCABULARY, 16)
    assert not ran.exists()
    model_config(Model(pretrained=str(evil), trust_remote_code=True), VOCABULARY, 16)
    assert ran.exists()
