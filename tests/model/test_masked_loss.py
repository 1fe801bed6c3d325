from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import ROWS, tiny_model
from torch import Tensor
from torch.nn.functional import cross_entropy

from ds_pretrain.data.inputs import InputFormat
from ds_pretrain.data.masking import Masking
from ds_pretrain.model.attention import confines_attention, run_model
from ds_pretrain.model.loss import MaskedLmLoss

ENCODERS = ["bert", "distilbert", "electra"]
IDS = torch.arange(3, 35).reshape(2, 16)
PLACES = torch.tensor([[1, 5, 6], [0, 2, 15]])
WANTED = torch.tensor([[7, 8, 9], [10, -100, 12]])


@pytest.mark.parametrize("architecture", ENCODERS)
def test_the_loss_is_that_of_all_logits_at_the_masked_places(architecture: str) -> None:
    model = tiny_model(architecture, objective="masked_lm")
    whole = run_model(model, IDS, bidirectional=True).logits
    assert whole.shape == (2, 16, ROWS)
    expected = cross_entropy(whole[torch.arange(2)[:, None], PLACES].flatten(0, 1), WANTED.flatten(), reduction="sum")
    shapes: list[tuple[int, ...]] = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, logits: shapes.append(tuple(logits.shape)))
    found = MaskedLmLoss(model)(IDS, WANTED, PLACES)
    assert shapes == [(2, 3, ROWS)]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    # and the model is left as it was
    torch.testing.assert_close(run_model(model, IDS, bidirectional=True).logits, whole)


@pytest.mark.parametrize("architecture", ENCODERS)
def test_encoders_look_ahead(architecture: str) -> None:
    model = tiny_model(architecture, objective="masked_lm")
    later = IDS.clone()
    later[:, -1] += 5
    first, second = (run_model(model, ids, bidirectional=True).logits[:, 0] for ids in (IDS, later))
    assert not torch.equal(first, second)


def sees(model: torch.nn.Module, form: InputFormat, seq_len: int, rows: Tensor) -> Tensor:
    """[tokens, tokens]: whether the loss of each token, were it masked, depends on each token's embedding."""
    (batch,) = form.micro_batches(
        rows.numpy(), rows.numpy(), np.zeros(len(rows), dtype=np.int64), seq_len=seq_len, micro_batch_size=len(rows),
        places=np.arange(len(rows)), key=(0,),
    )  # fmt: skip
    ids = rows.reshape(batch.input_ids.shape)
    options = {name: value for name, value in batch.options.items() if name != "target_positions"}
    kept: list[Tensor] = []

    def keep(_: object, __: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    hook = model.model.get_input_embeddings().register_forward_hook(keep)
    found = []
    for token in range(ids.numel()):
        row, place = divmod(token, ids.shape[1])
        wanted = torch.full((len(ids), 1), -100)
        wanted[row] = 7
        loss = model(ids, wanted, torch.full((len(ids), 1), place), **options)
        (gradient,) = torch.autograd.grad(loss, kept.pop())
        found.append(gradient.flatten(0, 1).abs().amax(-1) > 0)
    hook.remove()
    return torch.stack(found)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_no_loss_depends_on_a_token_outside_its_block_or_document(architecture: str, attention: str) -> None:
    model = MaskedLmLoss(tiny_model(architecture, objective="masked_lm", attn_implementation=attention))
    masking = Masking(0.15, mask_id=1, special=np.zeros(ROWS, dtype=bool))
    rows = torch.arange(4, 20)[None]
    rows[0, 4] = rows[0, 9] = 3
    documents = torch.tensor([0] * 5 + [1] * 5 + [2] * 6)
    blocks = torch.arange(16) // 8
    same_document, same_block = (part[:, None] == part for part in (documents, blocks))
    found = sees(model, InputFormat(16, document_end=3, masking=masking), 16, rows)
    assert torch.equal(found, same_document)
    assert torch.equal(sees(model, InputFormat(16, masking=masking), 8, rows), same_block)
    both = sees(model, InputFormat(16, document_end=3, masking=masking), 8, rows)
    assert torch.equal(both, same_document & same_block)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "electra"])
def test_encoders_confine_attention(architecture: str) -> None:
    assert confines_attention(tiny_model(architecture, objective="masked_lm"), bidirectional=True)


def test_an_encoder_whose_layers_see_unlike_spans_is_refused() -> None:
    assert not confines_attention(tiny_model("modernbert", objective="masked_lm"), bidirectional=True)
