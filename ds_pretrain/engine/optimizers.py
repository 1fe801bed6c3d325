"""Optimizers that DeepSpeed's JSON cannot name on every device: built here, from their libraries, and handed to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ds_pretrain.config import Optimizer


def client_optimizer(settings: Optimizer, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """Lion and LAMB from pytorch_optimizer, whose own run on any device, or DeepSpeed's Muon.

    Args:
        settings: the recipe's ``optimizer`` section, of type ``lion``, ``lamb`` or ``muon``.
        groups: parameter groups with their weight decay; taken over and changed.

    Returns:
        The optimizer, before DeepSpeed partitions it.
    """
    if settings.type == "muon":
        return _muon(settings, groups)
    # loads a hundred optimizers
    from pytorch_optimizer import Lamb, Lion

    if settings.type == "lion":
        # foreach takes every gradient for granted, and a rank may hold an empty partition
        lion: torch.optim.Optimizer = Lion(groups, lr=settings.lr, betas=settings.betas, foreach=False)
        return lion
    assert settings.type == "lamb"
    lamb: torch.optim.Optimizer = Lamb(
        groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, max_grad_norm=0.0, foreach=False
    )
    return lamb


def _muon(settings: Optimizer, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """Momentum, orthogonalized (Jordan et al.: Muon, 2024), for groups called muon; AdamW for the others."""
    # imported late: it compiles its kernels
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    for group in groups:
        group["use_muon"] = ".muon" in f".{group['name']}"
        group["lr"] = settings.lr
        if group["use_muon"]:
            group["momentum"] = settings.momentum
        else:
            group |= {"betas": settings.betas, "eps": settings.eps}
        for parameter in group["params"]:
            parameter.use_muon = group["use_muon"]  # where ZeRO looks for it
    optimizer: torch.optim.Optimizer = MuonWithAuxAdam(groups)
    return optimizer
