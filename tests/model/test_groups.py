"""Parameter groups against lists and factors written by hand."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny_models import SIZES, tiny_model

from ds_pretrain.config import Optimizer, ParamGroups
from ds_pretrain.errors import RecipeError
from ds_pretrain.model.groups import GroupPlan, parameter_groups, plan_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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


OPTIMIZER = Optimizer(lr=1e-3)
PATTERNS = ["*", "*.0.*", "*.1.*", "*.weight", "*.bias", "*norm*", "*embed*", "*.[01].*", "*q_proj*", "nothing"]


def groups_of(model: PreTrainedModel, optimizer: Optimizer = OPTIMIZER, **settings: Any) -> dict[str, GroupPlan]:
    return {group.name: group for group in plan_groups(model, optimizer, ParamGroups(**settings))}


def multipliers(model: PreTrainedModel, **settings: Any) -> dict[str, float]:
    return {name: group.lr_multiplier for name, group in groups_of(model, **settings).items()}


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("decay_embeddings", [True, False])
def test_groups_are_those_listed(architecture: str, tied: bool, decay_embeddings: bool) -> None:
    model = tiny_model(architecture, tie_word_embeddings=tied)
    optimizer = Optimizer(lr=1e-3, weight_decay=0.3, decay_embeddings=decay_embeddings)
    groups = groups_of(model, optimizer)
    # a tied head is the embedding; one of its own is a matrix like any other
    decay = MATRICES[architecture] | (set() if tied else {"lm_head.weight"})
    embeddings = EMBEDDINGS[architecture]
    assert {name: set(group.parameters) for name, group in groups.items()} == {
        "decay": decay | embeddings if decay_embeddings else decay,
        "no_decay": REST[architecture] if decay_embeddings else REST[architecture] | embeddings,
    }
    assert {name: group.weight_decay for name, group in groups.items()} == {"decay": 0.3, "no_decay": 0.0}
    assert {group.lr_multiplier for group in groups.values()} == {1.0}


@pytest.mark.parametrize(("decay", "ratio"), [(0.99, 0.89), (0.95, 0.54), (0.90, 0.28), (0.80, 0.07)])
def test_the_bottom_of_twelve_layers_against_the_head(decay: float, ratio: float) -> None:
    model = tiny_model("gpt2", n_layer=12)
    found = multipliers(model, kind="layerwise", decay=decay)
    assert found["layer_00.decay"] / found["head.no_decay"] == pytest.approx(ratio, abs=0.005)
    expected = {"head": 1.0, "embeddings": decay**13}
    expected |= {f"layer_{11 - depth + 1:02d}": decay**depth for depth in range(1, 13)}
    assert {name.split(".")[0]: value for name, value in found.items()} == pytest.approx(expected, rel=1e-15)


def test_layers_share_the_geometric_mean_of_their_rates() -> None:
    model = tiny_model("gpt2", n_layer=5)
    found = groups_of(model, kind="layerwise", decay=0.5, layers_per_group=2)
    # from the top: depths 1 and 2, 3 and 4, and what is left, 5; embeddings stay at 6
    assert {name: group.lr_multiplier for name, group in found.items()} == {
        "head.no_decay": 1.0,
        "layers_3-4.decay": 0.5**1.5,
        "layers_3-4.no_decay": 0.5**1.5,
        "layers_1-2.decay": 0.5**3.5,
        "layers_1-2.no_decay": 0.5**3.5,
        "layer_0.decay": 0.5**5,
        "layer_0.no_decay": 0.5**5,
        "embeddings.no_decay": 0.5**6,
    }
    layers = {name.split(".")[2] for name in found["layers_1-2.decay"].parameters}
    assert layers == {"1", "2"}


@pytest.mark.parametrize(
    ("tied", "head"), [(True, {"model.norm.weight"}), (False, {"model.norm.weight", "lm_head.weight"})]
)
def test_two_groups(tied: bool, head: set[str]) -> None:
    model = tiny_model("llama", tie_word_embeddings=tied)
    groups = groups_of(model, kind="two_group", backbone_multiplier=0.25)
    assert {name: group.lr_multiplier for name, group in groups.items()} == {
        **({} if tied else {"head.decay": 1.0}),
        "head.no_decay": 1.0,
        "backbone.decay": 0.25,
        "backbone.no_decay": 0.25,
    }
    assert {part for name, group in groups.items() if "head" in name for part in group.parameters} == head


def test_the_first_pattern_that_matches_wins_and_equal_factors_share_a_group() -> None:
    table = {"*.layers.0.*": 0.5, "*_proj.weight": 0.25, "*embed*": 0.5}
    groups = groups_of(tiny_model("llama"), kind="patterns", table=table)
    bottom, top = (
        {name.replace("layers.1", f"layers.{layer}") for name in MATRICES["llama"] if "layers.1" in name}
        for layer in (0, 1)
    )
    norms = {layer: {name for name in REST["llama"] if f"layers.{layer}." in name} for layer in (0, 1)}
    assert {name: (group.lr_multiplier, set(group.parameters)) for name, group in groups.items()} == {
        "x1.decay": (1.0, {"lm_head.weight"}),
        "x1.no_decay": (1.0, norms[1] | {"model.norm.weight"}),
        "x0.5.decay": (0.5, bottom),
        "x0.5.no_decay": (0.5, norms[0] | EMBEDDINGS["llama"]),
        "x0.25.decay": (0.25, top),
    }


def test_names_without_decay() -> None:
    groups = groups_of(tiny_model("llama"), no_decay=["*.q_proj.*", "lm_head.*"])
    queries = {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}
    assert set(groups["decay"].parameters) == MATRICES["llama"] - queries
    assert {*queries, "lm_head.weight"} < set(groups["no_decay"].parameters)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "layerwise", "decay": 1.0}, 1.0),
        ({"kind": "two_group", "backbone_multiplier": 1.0}, 1.0),
        ({"kind": "patterns", "table": {"*": 0.5}}, 0.5),
    ],
)
def test_one_factor_for_all_leaves_the_plain_pair(settings: dict[str, Any], expected: float) -> None:
    assert multipliers(tiny_model("llama"), **settings) == {"decay": expected, "no_decay": expected}


def test_a_factor_of_zero_freezes() -> None:
    model = tiny_model("llama")
    settings = ParamGroups(kind="patterns", table={"*.layers.0.*": 0, "*embed*": 0})
    frozen = {name for name, _ in model.named_parameters() if "layers.0." in name or "embed" in name}
    assert set(groups_of(model, kind=settings.kind, table=settings.table)["x0.frozen"].parameters) == frozen
    assert all(parameter.requires_grad for parameter in model.parameters())
    groups = parameter_groups(model, OPTIMIZER, settings)
    assert [group["name"] for group in groups] == ["x1.decay", "x1.no_decay"]
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen


@pytest.mark.parametrize(
    ("settings", "path", "words"),
    [
        (
            {"kind": "patterns", "table": {"*": 1, "layers": 2}},
            "table",
            r"'layers', which decides nothing: no whole name",
        ),
        (
            {"kind": "patterns", "table": {"*": 1, "*norm*": 2}},
            "table",
            r"'\*norm\*', .* an earlier pattern has matched",
        ),
        ({"no_decay": ["*.bias"]}, "no_decay", r"'\*.bias', .* names are like 'model.embed_tokens.weight'"),
        ({"kind": "patterns", "table": {"*": 0}}, "", r"freezes every parameter"),
    ],
)
def test_what_decides_nothing_is_refused(settings: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        groups_of(tiny_model("llama"), **settings)
    (problem,) = caught.value.problems
    assert problem.path == f"param_groups.{path}".rstrip(".")


SETTINGS = st.one_of(
    st.builds(ParamGroups, kind=st.just("none"), no_decay=st.lists(st.sampled_from(PATTERNS), max_size=2)),
    st.builds(ParamGroups, kind=st.just("two_group"), backbone_multiplier=st.sampled_from([0.0, 0.5, 1.0, 2.0])),
    st.builds(
        ParamGroups,
        kind=st.just("layerwise"),
        decay=st.floats(0.1, 1.0),
        layers_per_group=st.integers(1, 4),
    ),
    st.builds(
        ParamGroups,
        kind=st.just("patterns"),
        table=st.dictionaries(st.sampled_from(PATTERNS), st.sampled_from([0.0, 0.1, 1.0, 3.0]), min_size=1),
        no_decay=st.lists(st.sampled_from(PATTERNS), max_size=2),
    ),
)


@given(st.sampled_from(sorted(SIZES)), st.booleans(), SETTINGS)
def test_groups_partition_the_parameters(architecture: str, decay_embeddings: bool, settings: ParamGroups) -> None:
    model = shared_model(architecture)
    model.requires_grad_(True)
    optimizer = Optimizer(lr=1.0, decay_embeddings=decay_embeddings)
    try:
        plans = plan_groups(model, optimizer, settings)
    except RecipeError:
        # a table of patterns may decide nothing, or freeze everything
        assume(False)
    assert Counter(name for plan in plans for name in plan.parameters) == {
        name: 1 for name, _ in model.named_parameters()
    }
    assert len({plan.name for plan in plans}) == len(plans)
    groups = parameter_groups(model, optimizer, settings)
    assert [group["name"] for group in groups] == [plan.name for plan in plans if plan.lr_multiplier > 0]
    assert Counter(id(parameter) for group in groups for parameter in group["params"]) == {
        id(parameter): 1 for parameter in model.parameters() if parameter.requires_grad
    }
    frozen = {name for plan in plans if plan.lr_multiplier == 0 for name in plan.parameters}
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen


@cache
def shared_model(architecture: str) -> PreTrainedModel:
    # transformers has these as encoders alone
    objective = "masked_lm" if architecture in ("distilbert", "modernbert") else "causal_lm"
    return tiny_model(architecture, objective=objective)


@pytest.mark.parametrize("kind", ["none", "layerwise"])
def test_what_is_not_trained_is_in_no_group_and_renames_none(kind: Literal["none", "layerwise"]) -> None:
    model = tiny_model("llama")
    settings = ParamGroups(kind=kind)
    names = [group["name"] for group in parameter_groups(model, OPTIMIZER, settings)]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    found = parameter_groups(model, OPTIMIZER, settings)
    assert [group["name"] for group in found] == [name for name in names if "no_decay" in name and "embed" not in name]
    assert sum(len(group["params"]) for group in found) == 5
