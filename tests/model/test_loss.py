"""The summed loss, whole and in chunks of tokens."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import ROWS, tiny_model
from torch import Tensor
from torch.nn.functional import cross_entropy

from ds_pretrain.model.loss import CausalLmLoss, head_is_plain, max_chunk_tokens, summed_loss

WHOLE = 1 << 30
FIVE_TOKENS = 5 * 4 * ROWS
MODELS = [
    ("llama", {"tie_word_embeddings": False}),
    ("llama", {"tie_word_embeddings": True}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("gpt2", {"tie_word_embeddings": True}),
]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Two rows of 16; 4 of the targets are not counted."""
    generator = torch.Generator().manual_seed(1)
    ids, targets = torch.randint(0, 50, (2, 2, 16), generator=generator)
    targets[0, 3:6] = -100
    targets[1, 15] = -100
    return ids, targets


def loss_and_gradients(module: CausalLmLoss, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    module.zero_grad()
    loss = module(*batch)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_the_loss_of_even_logits_is_the_sum_of_logarithms() -> None:
    logits = torch.zeros(3, 8)
    assert summed_loss(logits, torch.tensor([0, 5, 7])).item() == pytest.approx(3 * math.log(8))
    assert summed_loss(logits, torch.tensor([0, -100, 7])).item() == pytest.approx(2 * math.log(8))
    assert summed_loss(logits, torch.tensor([-100, -100, -100])).item() == 0.0


def test_targets_are_taken_as_given(batch: tuple[Tensor, Tensor]) -> None:
    ids, targets = batch
    model = tiny_model("llama")
    logits = model(input_ids=ids).logits.double().log_softmax(-1)
    expected = -sum(
        logits[row, column, targets[row, column]]
        for row in range(2)
        for column in range(16)
        if targets[row, column] >= 0
    )
    assert CausalLmLoss(model, WHOLE)(*batch).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("architecture", "config"), MODELS)
def test_chunks_change_neither_loss_nor_gradient(
    architecture: str, config: dict[str, bool], batch: tuple[Tensor, Tensor]
) -> None:
    model = tiny_model(architecture, **config)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == config["tie_word_embeddings"]
    heads: list[tuple[int, ...]] = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, logits: heads.append(tuple(logits.shape)))
    whole, expected = loss_and_gradients(CausalLmLoss(model, WHOLE), batch)
    assert heads == [(2, 16, ROWS)]
    heads.clear()
    chunked, found = loss_and_gradients(CausalLmLoss(model, FIVE_TOKENS), batch)
    # 32 tokens in sixes of 5 and a rest of 2, each computed twice
    assert sorted(heads) == [(2, ROWS)] * 2 + [(5, ROWS)] * 12
    assert chunked.item() == pytest.approx(whole.item(), rel=1e-6)
    assert found.keys() == expected.keys() == dict(model.named_parameters(prefix="model")).keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


def test_chunks_hold_as_many_tokens_as_fit() -> None:
    assert max_chunk_tokens(vocab_size=50257, max_logits_bytes=512 * 1024 * 1024) == 2670
    assert max_chunk_tokens(vocab_size=100, max_logits_bytes=800) == 2
    assert max_chunk_tokens(vocab_size=100, max_logits_bytes=799) == 1
    assert max_chunk_tokens(vocab_size=100, max_logits_bytes=1) == 1


@pytest.mark.parametrize("limit", [WHOLE, FIVE_TOKENS])
def test_the_loss_is_fp32_under_bf16_weights(limit: int, batch: tuple[Tensor, Tensor]) -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    logits = model(input_ids=batch[0]).logits
    assert logits.dtype == torch.bfloat16
    loss = CausalLmLoss(model, limit)(*batch)
    assert loss.dtype == torch.float32
    expected = cross_entropy(logits.double().flatten(0, 1), batch[1].flatten(), reduction="sum")
    # a sum in bf16 would be off by a part in 250
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("architecture", "plain"), [("llama", True), ("gpt2", True), ("gpt_neox", True), ("opt", True), ("gemma2", False)]
)
def test_a_head_is_plain_where_nothing_follows_it(architecture: str, plain: bool) -> None:
    model = tiny_model(architecture)
    assert head_is_plain(model) is plain
    assert model.training


def test_trying_the_head_draws_no_random_numbers() -> None:
    model = tiny_model("gpt2", resid_pdrop=0.5)
    before = torch.get_rng_state()
    assert head_is_plain(model)
    assert torch.equal(torch.get_rng_state(), before)
