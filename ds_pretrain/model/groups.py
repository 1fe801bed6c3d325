"""Parameter groups of the optimizer: which parameters decay, under names that metrics show."""

from __future__ import annotations

from typing import TypedDict

from torch import nn


class ParameterGroup(TypedDict):
    """A group as torch optimizers take it; ``name`` and ``lr_multiplier`` are ours and stay in the group."""

    name: str
    params: list[nn.Parameter]
    weight_decay: float
    lr_multiplier: float


def decay_groups(module: nn.Module, weight_decay: float, decay_embeddings: bool) -> list[ParameterGroup]:
    """Splits the trained parameters into those that decay and those that don't.

    Biases and norms (anything with fewer than two dimensions) never decay, embeddings by choice; a head that is
    tied to the embedding is an embedding.

    Args:
        module: the model.
        weight_decay: coefficient of the group that decays.
        decay_embeddings: whether embeddings belong to it.

    Returns:
        The groups that have parameters, each trained parameter in exactly one.
    """
    embeddings = {
        id(parameter)
        for part in module.modules()
        if isinstance(part, nn.Embedding)
        for parameter in part.parameters(recurse=False)
    }
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        # ZeRO 3 leaves a flat partition behind and keeps the shape beside it
        dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
        kept = dimensions < 2 or name.endswith("bias")
        kept = kept or (id(parameter) in embeddings and not decay_embeddings)
        (no_decay if kept else decay).append(parameter)
    groups = [_group("decay", decay, weight_decay), _group("no_decay", no_decay, 0.0)]
    return [group for group in groups if group["params"]]


def _group(name: str, params: list[nn.Parameter], weight_decay: float) -> ParameterGroup:
    return {"name": name, "params": params, "weight_decay": weight_decay, "lr_multiplier": 1.0}
