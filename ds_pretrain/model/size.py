"""How large a model is, in parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def parameter_count(module: nn.Module) -> int:
    """Parameters, tied ones once, partitioned ones (ZeRO 3) whole."""
    return sum(_size(parameter) for parameter in module.parameters())


def product_parameters(model: PreTrainedModel) -> int:
    """Parameters that every token is multiplied with: all but embeddings that are only looked up.

    Args:
        model: a transformers model; an embedding tied to the head counts, as the head.
    """
    head = model.get_output_embeddings()
    head_weights = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    looked_up = {
        id(parameter): _size(parameter)
        for part in model.modules()
        if isinstance(part, nn.Embedding)
        for parameter in part.parameters(recurse=False)
        if id(parameter) not in head_weights
    }
    return parameter_count(model) - sum(looked_up.values())


def head_parameters(model: PreTrainedModel) -> int:
    """Parameters of the product that gives the logits; those of a masked language model's are used on targets alone."""
    head = model.get_output_embeddings()
    return 0 if head is None else _size(head.weight)


def _size(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))
