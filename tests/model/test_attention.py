"""Which tokens the loss of a token depends on: exactly those of its block and document, as gradients tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor
from transformers import PreTrainedModel, masking_utils

from ds_pretrain.data.inputs import InputFormat, MicroBatch
from ds_pretrain.model.attention import confines_attention, run_model, takes_positions
from ds_pretrain.model.loss import CausalLmLoss

LENGTH, END = 16, 3
# two rows of the stream; the second goes into the next window after 5 positions
ROWS = np.array(
    [
        [5, 6, 7, END, 9, 10, 11, 12, 13, END, END, 16, 17, 18, 19, 20],
        [21, 22, 23, 24, 25, 26, 27, END, 29, 30, 31, 32, 33, 34, 35, 36],
    ]
)
STARTS = np.array([0, 11])
FORMATS = {
    "blocks": (InputFormat(LENGTH), 4),
    "blocks, positions reset": (InputFormat(LENGTH, reset_positions=True), 4),
    "documents": (InputFormat(LENGTH, document_end=END), LENGTH),
    "documents in blocks": (InputFormat(LENGTH, document_end=END), 8),
}


def fed(kind: str) -> MicroBatch:
    form, seq_len = FORMATS[kind]
    (batch,) = form.micro_batches(
        ROWS, ROWS + 1, STARTS, seq_len=seq_len, micro_batch_size=2, places=np.arange(2), key=(0,)
    )
    return batch


def together(kind: str) -> Tensor:
    """[32, 32]: whether two tokens, counted through the rows, are of one block and one document."""
    form, seq_len = FORMATS[kind]
    numbers = []
    number = 0
    for row, start in zip(ROWS, STARTS, strict=True):
        for place in range(LENGTH):
            ends = form.document_end is not None and (place > 0 and row[place - 1] == END)
            seam = form.document_end is not None and (start + place) % LENGTH == 0
            number += bool(ends or seam or place % seq_len == 0)
            numbers.append(number)
    same = torch.tensor(numbers)
    return same[:, None] == same


def dependence(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """[tokens, tokens]: largest derivative of each token's loss by each token's embedding."""
    kept: list[Tensor] = []

    def keep(_: Any, __: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    hook = model.get_input_embeddings().register_forward_hook(keep)
    rows = []
    for token in range(batch.targets.numel()):
        wanted = torch.full_like(batch.targets, -100)
        wanted.view(-1)[token] = batch.targets.reshape(-1)[token]
        loss = CausalLmLoss(model, 1 << 30)(batch.input_ids, wanted, **batch.options)
        (gradient,) = torch.autograd.grad(loss, kept.pop())
        rows.append(gradient.flatten(0, 1).abs().amax(-1))
    hook.remove()
    return torch.stack(rows)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_no_loss_depends_on_a_token_outside_its_block_or_document(architecture: str, attention: str, kind: str) -> None:
    model = tiny_model(architecture, attn_implementation=attention)
    found = dependence(model, fed(kind))
    expected = together(kind).tril()
    assert torch.equal(found > 0, expected)
    # and without being told, it does
    if "documents" in kind:
        batch = fed(kind)
        assert not torch.equal(dependence(model, MicroBatch(batch.input_ids, batch.targets)) > 0, expected)


def test_tokens_of_a_sliding_window_look_back_no_further_inside_their_document() -> None:
    model = tiny_model("mistral", sliding_window=3)
    reach = torch.ones(32, 32).tril().triu(-4).bool()  # two layers of two tokens back
    assert torch.equal(dependence(model, fed("documents")) > 0, together("documents") & reach)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_flex_attention_sees_what_sdpa_sees(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward only: torch has no backward pass of it on a CPU."""
    run_uncompiled(monkeypatch)
    batch = fed("documents in blocks")
    with torch.no_grad():
        expected, found = (
            run_model(model, batch.input_ids, batch.position_ids, batch.cu_seq_lens).logits
            for model in (tiny_model(architecture, attn_implementation=kind) for kind in ("sdpa", "flex_attention"))
        )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_flash_attention_is_told_the_documents_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs on GPUs only: what reaches its kernel is looked at here."""
    seen: list[dict[str, Any]] = []

    def kernel(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any) -> Any:
        seen.append({"mask": attention_mask, **options})
        return query.transpose(1, 2), None

    monkeypatch.setitem(masking_utils.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "flash_stand_in", lambda **_: None)
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_stand_in", kernel)
    model = tiny_model("llama")
    model.config._attn_implementation = "flash_stand_in"
    batch = fed("documents")
    run_model(model, batch.input_ids, batch.position_ids, batch.cu_seq_lens)
    assert len(seen) == 2
    for options in seen:
        assert options["mask"] is None
        assert options["cu_seq_lens_q"].tolist() == options["cu_seq_lens_k"].tolist() == [0, 4, 10, 11, 16, 21, 24, 32]
        assert options["max_length_q"] == options["max_length_k"] == LENGTH


@pytest.mark.parametrize("kind", [None, *FORMATS])
def test_transformers_does_not_look_into_positions(kind: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each look would make the host wait for the device."""

    def look(_: Tensor) -> None:
        raise AssertionError("positions were looked into")

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", look)
    batch = MicroBatch(torch.from_numpy(ROWS), torch.from_numpy(ROWS)) if kind is None else fed(kind)
    for architecture in ("gpt2", "llama"):
        run_model(tiny_model(architecture), batch.input_ids, batch.position_ids, batch.cu_seq_lens)
    assert masking_utils.find_packed_sequence_indices is look


def test_plain_sequences_and_blocks_need_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast kernels take none."""
    masks: list[Any] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watch(*tensors: Tensor, **options: Any) -> Tensor:
        masks.append(options["attn_mask"])
        return attend(*tensors, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    for kind in ("blocks", "documents"):
        batch = fed(kind)
        run_model(tiny_model("llama"), batch.input_ids, batch.position_ids, batch.cu_seq_lens)
    assert masks[:2] == [None, None]
    assert [mask.shape for mask in masks[2:]] == [(2, 1, LENGTH, LENGTH)] * 2


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox", "mistral"])
def test_models_that_confine_attention_are_told_from_those_that_do_not(architecture: str) -> None:
    model = tiny_model(architecture)
    assert takes_positions(model)
    assert confines_attention(model)
    assert model.training


def test_a_model_that_ignores_documents_is_found_out() -> None:
    assert not confines_attention(tiny_model("opt"))
    assert not takes_positions(tiny_model("bloom"))


def run_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flex attention and its masks without the compiler: slow, and the same in what is seen."""
    from torch.nn.attention import flex_attention as flex
    from transformers.integrations import flex_attention as wrapped

    monkeypatch.setattr(wrapped.WrappedFlexAttention, "__call__", lambda _: flex.flex_attention)

    def create(*arguments: Any, **options: Any) -> Any:
        return flex.create_block_mask(*arguments, **{**options, "_compile": False})

    monkeypatch.setattr(masking_utils, "create_block_mask", create)
