"""Parameters counted by hand."""

from __future__ import annotations

import pytest
from tiny_models import ROWS, tiny_model

from ds_pretrain.model.size import parameter_count, product_parameters

EMBEDDING = ROWS * 32
# query, key, value, output; gate, up, down; two norms a layer and one at the end
LLAMA_BODY = 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
# attention 32 -> 96 and 32 -> 32, feed-forward 32 -> 128 -> 32, with biases; two norms of weight and bias
GPT2_LAYER = (32 * 96 + 96) + (32 * 32 + 32) + (32 * 128 + 128) + (128 * 32 + 32) + 2 * 2 * 32
GPT2_BODY = 2 * GPT2_LAYER + 2 * 32
GPT2_POSITIONS = 16 * 32


@pytest.mark.parametrize(
    ("architecture", "tied", "parameters", "in_products"),
    [
        ("llama", True, EMBEDDING + LLAMA_BODY, EMBEDDING + LLAMA_BODY),
        ("llama", False, 2 * EMBEDDING + LLAMA_BODY, EMBEDDING + LLAMA_BODY),
        ("gpt2", True, EMBEDDING + GPT2_POSITIONS + GPT2_BODY, EMBEDDING + GPT2_BODY),
        ("gpt2", False, 2 * EMBEDDING + GPT2_POSITIONS + GPT2_BODY, EMBEDDING + GPT2_BODY),
    ],
)
def test_hand_counted(architecture: str, tied: bool, parameters: int, in_products: int) -> None:
    model = tiny_model(architecture, tie_word_embeddings=tied)
    assert parameter_count(model) == parameters
    assert product_parameters(model) == in_products


def test_the_numbers_themselves() -> None:
    """Keeps the sums above honest."""
    assert (EMBEDDING, LLAMA_BODY, GPT2_BODY) == (1792, 20640, 25472)
