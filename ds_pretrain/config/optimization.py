"""Recipe sections ``optimizer``, ``param_groups`` and ``schedule``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ds_pretrain.config.base import Count, Index, NonNegativeNumber, Number, PositiveNumber, Section

UnitInterval = Annotated[Number, Field(ge=0, le=1)]
Beta = Annotated[Number, Field(ge=0, lt=1)]


# keys that only some optimizers have
OPTIMIZER_KEYS: Mapping[str, tuple[str, ...]] = {
    "betas": ("adamw", "adam", "lion", "lamb", "muon"),
    "eps": ("adamw", "adam", "lamb", "muon"),
    "momentum": ("sgd", "muon"),
    "adam_multiplier": ("muon",),
}


class Optimizer(Section):
    """The optimizer and its base learning rate."""

    type: Literal["adamw", "adam", "sgd", "lion", "lamb", "muon", "schedule_free_adamw"] = "adamw"
    """``adamw`` decays weights apart from the gradient, ``adam`` adds the decay to it (L2). ``lion`` wants a rate of a
    third to a tenth of Adam's. ``lamb`` needs ZeRO 0 and fp32. ``muon`` trains the matrices of the layers, at rates
    like 0.02, and the rest by AdamW. ``schedule_free_adamw`` is refused: DeepSpeed would evaluate and save other
    weights than its averaged ones."""
    lr: PositiveNumber
    """Base learning rate; a stage's peak is this times its multiplier."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay rates of Adam's two moments; of ``lion``'s interpolation and momentum; of what ``muon`` leaves to AdamW."""
    eps: PositiveNumber = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegativeNumber = 0.1
    """Weight decay of everything but biases, norms and, by choice, embeddings."""
    momentum: Beta = 0.9
    """Momentum of ``sgd`` and ``muon``."""
    adam_multiplier: PositiveNumber = 0.05
    """``muon``: factor on the learning rate of embeddings, head, biases and norms, which AdamW trains: 1e-3 at 0.02."""
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


ScheduleType = Literal[
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
    "custom",
]
# their own rise takes the place of a warmup, unless a recipe asks for both
RISING_TYPES: frozenset[str] = frozenset({"triangular", "triangular2", "exp_range", "one_cycle", "noam"})
# they end where their own formulas do
TYPES_WITHOUT_FLOOR: frozenset[str] = frozenset({"constant", "noam", "one_cycle"})
# keys that only some types have; the lengths among them are in tokens or steps, as ``by`` says
SCHEDULE_KEYS: Mapping[str, tuple[str, ...]] = {
    "gamma": ("step", "multistep", "exponential", "exp_range"),
    "step_size": ("step",),
    "milestones": ("multistep",),
    "decay_every": ("exponential",),
    "k": ("exponential",),
    "power": ("polynomial",),
    "t_0": ("cosine_restarts",),
    "t_mult": ("cosine_restarts",),
    "step_size_up": ("triangular", "triangular2", "exp_range"),
    "step_size_down": ("triangular", "triangular2", "exp_range"),
    "pct_start": ("one_cycle",),
    "div_factor": ("one_cycle",),
    "final_div_factor": ("one_cycle",),
    "three_phase": ("one_cycle",),
    "anneal_strategy": ("one_cycle",),
    "cycle_momentum": ("one_cycle",),
    "base_momentum": ("one_cycle",),
    "max_momentum": ("one_cycle",),
    "d_model": ("noam",),
    "noam_warmup": ("noam",),
    "timescale": ("inverse_sqrt",),
    "decay_fraction": ("wsd",),
    "decay_shape": ("wsd",),
    "factor": ("plateau",),
    "patience": ("plateau",),
    "threshold": ("plateau",),
    "threshold_mode": ("plateau",),
    "cooldown": ("plateau",),
    "function": ("custom",),
}


class Schedule(Section):
    """The curve of the learning rate after its warmup."""

    type: ScheduleType = "cosine"
    """The curve; each is described, with a picture, in docs/learning-rates.md."""
    scope: Literal["stage", "run"] = "run"
    """``stage`` restarts the curve in every stage, ``run`` is one curve over the whole run."""
    by: Literal["tokens", "steps"] = "tokens"
    """What the curve's time and lengths are counted in."""
    min_lr_ratio: UnitInterval = 0.1
    """Floor of the curve, as a share of the peak; ``constant``, ``noam`` and ``one_cycle`` do not look at it."""
    warmup: Warmup = Warmup()
    """Warmup of every stage; none by default for the types that rise by themselves: cyclical, one_cycle and noam."""
    gamma: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Factor of a decay. Unless given: sqrt(0.1) for ``step`` and ``multistep``, two of which make a tenth, as in
    DeepSeek LLM (2024); 0.1 for ``exponential``; for ``exp_range`` the heights fall to a tenth over the span."""
    step_size: PositiveNumber | None = None
    """``step``: length between two decays; a third of the span unless given."""
    milestones: Annotated[tuple[PositiveNumber, ...], Field(min_length=1)] | None = None
    """``multistep``: where the rate falls; at 80% and 90% of the span unless given (DeepSeek LLM, 2024)."""
    decay_every: PositiveNumber | None = None
    """``exponential``: length in which the rate falls by ``gamma``; the span unless given."""
    k: PositiveNumber | None = None
    """``exponential``: rate of e^(-k t), instead of ``gamma`` and ``decay_every``."""
    power: PositiveNumber = 1.0
    """``polynomial``: exponent; 1 is a straight line."""
    t_0: PositiveNumber | None = None
    """``cosine_restarts``: length of the first cycle; a third of the span unless given."""
    t_mult: Annotated[Number, Field(ge=1)] = 1.0
    """``cosine_restarts``: factor from one cycle's length to the next one's."""
    step_size_up: PositiveNumber | None = None
    """Cyclical types: length of a cycle's rise; an eighth of the span unless given."""
    step_size_down: PositiveNumber | None = None
    """Cyclical types: length of a cycle's fall; that of its rise unless given."""
    pct_start: Annotated[Number, Field(gt=0, lt=1)] = 0.3
    """``one_cycle``: part of the span in which the rate rises."""
    div_factor: Annotated[Number, Field(ge=1)] = 25.0
    """``one_cycle``: peak over the first rate."""
    final_div_factor: Annotated[Number, Field(ge=1)] = 1e4
    """``one_cycle``: first rate over the last."""
    three_phase: bool = False
    """``one_cycle``: back to the first rate as fast as it rose, and then down."""
    anneal_strategy: Literal["cos", "linear"] = "cos"
    """``one_cycle``: how the rate goes from one to the next."""
    cycle_momentum: bool = True
    """``one_cycle``: whether momentum, or Adam's first beta, goes the other way."""
    base_momentum: Beta = 0.85
    """``one_cycle``: momentum where the rate is highest."""
    max_momentum: Beta = 0.95
    """``one_cycle``: momentum where the rate is lowest."""
    d_model: Annotated[Number, Field(ge=1)] = 512.0
    """``noam``: model width in the formula; the paper's base model unless given."""
    noam_warmup: Annotated[Number, Field(ge=1)] = 4000.0
    """``noam``: optimizer steps to the largest rate, of the size of the span's last one."""
    timescale: PositiveNumber | None = None
    """``inverse_sqrt``: length in which the rate falls by sqrt(2); the warmup's unless given."""
    decay_fraction: Annotated[Number, Field(gt=0, le=1)] = 0.2
    """``wsd``: last part of the span, in which the rate falls."""
    decay_shape: Literal["linear", "cosine", "1-sqrt"] = "1-sqrt"
    """``wsd``: how it falls."""
    factor: Annotated[Number, Field(gt=0, lt=1)] = 0.5
    """``plateau``: factor on the rate when the validation loss at full length stops falling."""
    patience: Index = 5
    """``plateau``: evaluations without a better loss that are borne."""
    threshold: NonNegativeNumber = 1e-4
    """``plateau``: how much better a loss has to be."""
    threshold_mode: Literal["rel", "abs"] = "rel"
    """``plateau``: whether ``threshold`` is a share of the best loss, or in nats."""
    cooldown: Index = 0
    """``plateau``: evaluations after a reduction that do not count."""
    function: str | None = None
    """``custom``: package.module.function from the span's progress to the share of the way from floor to peak."""

    @property
    def peak_factor(self) -> float:
        """Factor on ``optimizer.lr`` at the top of the curve: 1, but for ``noam``, whose formula brings its own scale.

        The largest value of d_model^-0.5 x min(s^-0.5, s x warmup^-1.5), at s = warmup: (d_model x warmup)^-0.5.
        """
        return float((self.d_model * self.noam_warmup) ** -0.5) if self.type == "noam" else 1.0

    @property
    def floor(self) -> float:
        """Least factor on the peak that the curve goes to after its warmup; 0 for ``noam``, which only nears it."""
        if self.type == "constant":
            return 1.0
        if self.type == "noam":
            return 0.0
        if self.type == "one_cycle":
            return 1.0 / (self.div_factor * self.final_div_factor)
        return self.min_lr_ratio

    @model_validator(mode="before")
    @classmethod
    def _no_warmup_before_a_rise(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("warmup") is not None:
            return data
        kind = data.get("type")
        if isinstance(kind, str) and kind in RISING_TYPES:
            return {**data, "warmup": {"fraction": 0.0}}
        return data
