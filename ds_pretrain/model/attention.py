"""Runs a transformers model with attention confined to documents, through what transformers offers for it.

Where documents begin is told by position 0. transformers' causal masks are made of the documents' numbers by its own
code, for SDPA, eager and flex attention, sliding windows included; flash attention takes the documents' cumulative
lengths; bidirectional masks, which transformers has no packing for, are made by its mask functions.

Left alone, transformers looks for documents in the values of the positions, in every forward pass: on a GPU the host
then waits for the device once a micro batch, even where there are none. ``documents_known`` answers in its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import masking_utils

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run_model(
    part: PreTrainedModel,
    input_ids: Tensor,
    position_ids: Tensor | None = None,
    cu_seq_lens: Tensor | None = None,
    bidirectional: bool = False,
) -> Any:
    """The forward pass of a model or of its base model.

    Args:
        part: a transformers model.
        input_ids: int64, shape [sequences, seq_len].
        position_ids: the same shape; None counts from 0 in every sequence.
        cu_seq_lens: cumulative lengths of the documents that attention is confined to, int32 [documents + 1]; None
            confines it to the sequences alone.
        bidirectional: whether the model is an encoder, which looks ahead.

    Returns:
        The model's own output.
    """
    options: dict[str, Any] = {} if position_ids is None else {"position_ids": position_ids}
    documents = None
    if cu_seq_lens is not None:
        assert position_ids is not None
        documents = (position_ids == 0).cumsum(-1)
        options |= _confinement(part, documents, cu_seq_lens, bidirectional)
    with documents_known(documents):
        return part(input_ids=input_ids, **options)


@contextmanager
def documents_known(documents: Tensor | None) -> Iterator[None]:
    """Answers transformers' search for documents in positions, for the time of one forward pass.

    Args:
        documents: number of every token's document, shape [sequences, seq_len]; None where there are none.
    """
    search = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: documents
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = search


def takes_positions(model: PreTrainedModel, bidirectional: bool = False) -> bool:
    """Whether positions can be given to the model, counted from 0 as it counts them itself; found by trying it.

    Every rank must take part under ZeRO 3.
    """
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return False
    ids = torch.tensor([[0, 1]], device=next(model.parameters()).device)
    training = model.training
    model.eval()
    with torch.no_grad():
        own, given = (
            run_model(model, ids, positions, bidirectional=bidirectional).logits
            for positions in (None, torch.arange(2, device=ids.device)[None])
        )
    model.train(training)
    return torch.equal(own, given)


def confines_attention(model: PreTrainedModel, bidirectional: bool = False) -> bool:
    """Whether ``run_model`` keeps the documents of a sequence apart; found by trying it on two of them.

    Every rank must take part under ZeRO 3. An encoder whose layers differ in what they see is not: one mask would make
    them alike.
    """
    if bidirectional and set(getattr(model.config, "layer_types", None) or ()) - {"full_attention"}:
        return False
    device = next(model.parameters()).device
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]], device=device)
    lengths = torch.tensor([0, 3, 6], dtype=torch.int32, device=device)
    training = model.training
    model.eval()
    with torch.no_grad():
        first, second = (
            run_model(model, torch.tensor([ids], device=device), positions, lengths, bidirectional).logits[:, 3:]
            for ids in ([0, 1, 0, 1, 0, 1], [1, 0, 1, 1, 0, 1])
        )
    model.train(training)
    return torch.allclose(first, second, rtol=1e-3, atol=1e-5)


def _confinement(part: PreTrainedModel, documents: Tensor, cu_seq_lens: Tensor, bidirectional: bool) -> dict[str, Any]:
    """What confines attention to documents, besides their numbers, which causal masks are made of."""
    attention = str(part.config._attn_implementation)
    if attention.startswith("flash"):
        longest = documents.shape[1]  # an upper bound will do, and the true one is on the device
        return {
            "cu_seq_lens_q": cu_seq_lens,
            "cu_seq_lens_k": cu_seq_lens,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    if not bidirectional:
        return {}
    mask = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS[attention](
        batch_size=documents.shape[0],
        q_length=documents.shape[1],
        kv_length=documents.shape[1],
        mask_function=masking_utils.packed_sequence_mask_function(documents),
        allow_is_causal_skip=False,
        dtype=part.dtype,
        device=documents.device,
    )
    return {"attention_mask": mask}
