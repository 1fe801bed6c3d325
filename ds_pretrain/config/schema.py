"""The recipe: one YAML file is one run."""

from __future__ import annotations

from typing import Literal

from ds_pretrain.config.base import Section
from ds_pretrain.config.curriculum import Curriculum
from ds_pretrain.config.data import Data, Model, Run, Tokenizer
from ds_pretrain.config.optimization import Optimizer, ParamGroups, Schedule
from ds_pretrain.config.runtime import (
    Checkpoint,
    DeepSpeed,
    Evaluation,
    LrFinder,
    Safety,
    Tracking,
    Train,
)


class Recipe(Section):
    """Everything that a run is made of."""

    run: Run = Run()
    """Which run this is."""
    model: Model = Model()
    """The model."""
    tokenizer: Tokenizer | None = None
    """The tokenizer; the corpus manifest's unless given."""
    data: Data
    """The corpora."""
    curriculum: Curriculum = Curriculum()
    """Length and stages."""
    optimizer: Optimizer
    """Optimizer and base learning rate."""
    param_groups: ParamGroups = ParamGroups()
    """Discriminative learning rates."""
    schedule: Schedule = Schedule()
    """Learning-rate schedule."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """``auto`` is bf16 where the device has it, else fp16 with dynamic loss scaling, else fp32."""
    deepspeed: DeepSpeed = DeepSpeed()
    """DeepSpeed."""
    train: Train = Train()
    """Micro batches."""
    safety: Safety = Safety()
    """Guards."""
    checkpoint: Checkpoint = Checkpoint()
    """Checkpoints."""
    evaluation: Evaluation = Evaluation()
    """Validation."""
    lr_finder: LrFinder = LrFinder()
    """Learning-rate finder."""
    tracking: Tracking = Tracking()
    """Trackers."""

    @property
    def divides_parameters(self) -> bool:
        """Whether parameters are told apart by name or layer, so that only the model can say whether that works."""
        unfreezes = any(stage.trainable_layers is not None for stage in self.curriculum.stages or ())
        return unfreezes or self.param_groups != ParamGroups() or self.optimizer.type == "muon"
