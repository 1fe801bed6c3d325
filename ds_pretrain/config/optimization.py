"""Recipe sections ``optimizer``, ``param_groups`` and ``schedule``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ds_pretrain.config.base import Count, Index, NonNegativeNumber, Number, PositiveNumber, Section

UnitInterval = Annotated[Number, Field(ge=0, le=1)]
Beta = Annotated[Number, Field(ge=0, lt=1)]


class Optimizer(Section):
    """The optimizer and its base learning rate."""

    type: Literal["adamw", "adam", "sgd", "lion", "lamb", "muon", "schedule_free_adamw"] = "adamw"
    """``adamw`` decays weights apart from the gradient, ``adam`` adds the decay to it (L2)."""
    lr: PositiveNumber
    """Base learning rate; a stage's peak is this times its multiplier."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay rates of Adam's two moments."""
    eps: PositiveNumber = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegativeNumber = 0.1
    """Weight decay of everything but biases, norms and, by choice, embeddings."""
    momentum: Beta = 0.9
    """Momentum of ``sgd``."""
    decay_embeddings: bool = False
    """Whether embeddings decay too."""


class ParamGroups(Section):
    """Discriminative learning rates. A factor of 0 freezes."""

    kind: Literal["none", "two_group", "layerwise", "patterns"] = "none"
    """How the factor on the learning rate is found: ``none`` is 1 for all."""
    backbone_multiplier: NonNegativeNumber = 0.1
    """``two_group``: factor on the learning rate of all but the head."""
    decay: Annotated[Number, Field(gt=0, le=1)] = 0.95
    """``layerwise``: factor from one layer to the one below; the head has 1, the top layer this."""
    layers_per_group: Count = 1
    """``layerwise``: neighbouring layers, from the top, that share the geometric mean of their factors."""
    table: dict[str, NonNegativeNumber] = {}
    """``patterns``: pattern of whole parameter names, with ``*``, ``?`` and ``[0-9]``, to factor; the first match
    wins, what none matches has 1."""
    no_decay: tuple[str, ...] = ()
    """Patterns of whole parameter names that have no weight decay, beside biases, norms and embeddings."""


class Warmup(Section):
    """Length of a stage's warmup; ``fraction: 0.02`` unless one of the three is given."""

    tokens: Index | None = None
    """Tokens of warmup in every stage."""
    steps: Index | None = None
    """Optimizer steps of warmup in every stage."""
    fraction: UnitInterval | None = None
    """Share of every stage's own steps."""
    max_steps: Count | None = None
    """Upper limit in optimizer steps."""
    shape: Literal["linear", "cosine", "inverse", "constant"] = "linear"
    """How the rate moves from its entry to the peak."""

    @model_validator(mode="before")
    @classmethod
    def _fraction_unless_stated(cls, data: Any) -> Any:
        """The default gives way to any other length, which a plain default value would contradict."""
        if isinstance(data, Mapping) and all(data.get(key) is None for key in ("tokens", "steps", "fraction")):
            return {**data, "fraction": 0.02}
        return data


class Schedule(Section):
    """The shape of the learning rate after its warmup."""

    type: Literal[
        "constant",
        "step",
        "multistep",
        "exponential",
        "linear",
        "polynomial",
        "cosine",
        "cosine_restarts",
        "triangular",
        "triangular2",
        "exp_range",
        "one_cycle",
        "noam",
        "inverse_sqrt",
        "wsd",
        "plateau",
    ] = "cosine"
    """The shape."""
    scope: Literal["stage", "run"] = "run"
    """``stage`` restarts the shape in every stage, ``run`` is one curve over the whole run."""
    min_lr_ratio: UnitInterval = 0.1
    """Floor of the shape, as a share of the peak."""
    warmup: Warmup = Warmup()
    """Warmup of every stage."""
