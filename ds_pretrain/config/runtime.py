"""Recipe sections on how a run is carried out: ``deepspeed`` to ``tracking``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ds_pretrain.config.base import Count, Index, NonNegativeNumber, Number, PositiveNumber, Section, Whole, whole


class Offload(Section):
    """Where DeepSpeed keeps a part of the state instead of on the GPU."""

    device: Literal["cpu", "nvme"]
    """CPU memory, or files on ``nvme_path``."""
    nvme_path: str | None = None
    """Folder on a fast local disk, for ``nvme``."""
    pin_memory: bool = False
    """Page-locked memory: faster copies, memory that the system cannot page out."""
    buffer_count: Count | None = None
    """Buffers for ``nvme``; DeepSpeed's own number unless given."""


class Fp16(Section):
    """DeepSpeed's loss scaling, for ``precision: fp16``."""

    loss_scale: NonNegativeNumber = 0.0
    """A fixed loss scale; 0 scales dynamically."""
    initial_scale_power: Index = 16
    """The dynamic scale starts at 2 to this power."""
    loss_scale_window: Count = 1000
    """Steps without overflow after which the scale doubles."""
    hysteresis: Count = 2
    """Overflows that are borne before the scale is halved."""
    consecutive_hysteresis: bool = False
    """Restores the hysteresis after every step without overflow."""
    min_loss_scale: PositiveNumber = 1.0
    """The scale is never halved below this."""


class DeepSpeed(Section):
    """ZeRO, offload, and whatever else DeepSpeed should be told."""

    zero_stage: Annotated[Literal[0, 1, 2, 3], BeforeValidator(whole)] = 1
    """What ZeRO partitions: nothing, optimizer state, gradients too, weights too."""
    offload_optimizer: Offload | None = None
    """Keeps the optimizer state elsewhere; needs ZeRO 1 or more."""
    offload_param: Offload | None = None
    """Keeps the weights elsewhere; needs ZeRO 3."""
    overlap_comm: bool | None = None
    """Overlaps gradient reduction with the backward pass; DeepSpeed's default unless given."""
    reduce_bucket_size: Count | None = None
    """Elements per reduction; DeepSpeed's default unless given."""
    allgather_bucket_size: Count | None = None
    """Elements per gather; DeepSpeed's default unless given."""
    fp16: Fp16 = Fp16()
    """Loss scaling."""
    communication_timeout_seconds: PositiveNumber = 1800.0
    """How long ranks wait for one that is gone."""
    extra: dict[str, Any] = {}
    """Merged into every generated DeepSpeed JSON."""


class Train(Section):
    """How a batch is cut for the devices."""

    micro_batch_size: Count | Literal["auto"] = "auto"
    """Sequences per rank and forward pass; ``auto`` takes the largest that divides and fits the next key."""
    max_tokens_per_micro_batch: Count = 16384
    """Tokens per rank and forward pass that ``auto`` keeps to."""


class Safety(Section):
    """When a run protects itself."""

    max_consecutive_bad_steps: Count = 10
    """Non-finite steps in a row that are borne."""
    spike_factor: Annotated[Number, Field(gt=1)] = 2.0
    """A loss above this times its running average is a spike."""
    spike_sigma: PositiveNumber | None = None
    """Or further than this many deviations."""
    spike_window: Count = 100
    """Steps of the running average."""
    spike_lr_factor: Annotated[Number, Field(gt=0, le=1)] = 0.5
    """Factor on the learning rate after a spike."""
    spike_recovery_steps: Count = 100
    """Steps until it is back."""
    spike_patience: Count = 200
    """Steps that the loss has to come back before the run does."""
    grad_norm_factor: PositiveNumber = 10.0
    """Warns of a gradient norm beyond this times its running average."""
    val_gap_threshold: PositiveNumber | None = None
    """Warns of validation loss above training loss by more than this, in nats."""
    rollback_lr_factor: Annotated[Number, Field(gt=0, le=1)] = 0.5
    """Factor on all later peaks after a rollback."""
    max_rollbacks: Index = 3
    """Rollbacks before the run stops."""


class Checkpoint(Section):
    """When checkpoints are written, kept and used."""

    every_steps: Count | None = 1000
    """Optimizer steps between checkpoints; null for the last one only."""
    every_minutes: PositiveNumber | None = None
    """Minutes between checkpoints, besides."""
    keep_last: Count = 3
    """How many of the newest stay."""
    keep_every_steps: Count | None = None
    """Checkpoints at multiples of this stay for good."""
    keep_best: bool = False
    """Keeps the one with the lowest validation loss at full length; learned positions: from the last stage on."""
    resume: Literal["auto", "must", "never"] = "auto"
    """``auto`` continues a run that exists, ``must`` fails where there is none, ``never`` wants a new folder."""
    asynchronous: bool = False
    """Writes while training goes on, from a copy in host memory of what each rank saves."""
    grace_seconds: PositiveNumber = 120.0
    """How long ``ds-pretrain launch`` waits for the ranks to save when it is told to stop."""


class Evaluation(Section):
    """When and how much is evaluated."""

    every_steps: Count | None = 500
    """Optimizer steps between evaluations; null for the start and the end only."""
    batches: Count = 50
    """Amount of validation text, in micro batches of ``train.max_tokens_per_micro_batch`` tokens."""


class LrFinder(Section):
    """The learning-rate finder: for every length an exponential sweep, and short trainings that settle it."""

    start_lr: PositiveNumber = 1e-5
    """First learning rate of the sweep, and the lowest that is tried."""
    end_lr: PositiveNumber = 1.0
    """Last learning rate of the sweep, where it gets that far, and the highest that is tried."""
    steps: Annotated[Whole, Field(ge=10)] = 130
    """Steps of the sweep from ``start_lr`` to ``end_lr``."""
    smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    """Share of the past in the sweep's smoothed loss."""
    divergence_factor: Annotated[Number, Field(gt=1)] = 1.25
    """The sweep ends at a smoothed perplexity (e to the loss) beyond this times its minimum."""
    trial_steps: Annotated[Whole, Field(ge=8)] = 80
    """Steps of a short training, the first quarter of them warmup."""
    max_trials: Annotated[Whole, Field(ge=2)] = 12
    """Short trainings of a length at most."""
    safety_divisor: Annotated[Number, Field(ge=1)] | Literal["auto"] = "auto"
    """The suggestion is the edge of stability divided by this; ``auto`` is the rate of the lowest loss, but never more
    than half of the highest rate that trains."""


class Wandb(Section):
    """Weights & Biases."""

    mode: Literal["online", "offline", "disabled"] = "disabled"
    """``offline`` writes to the run's folder for a later ``wandb sync``."""
    project: str | None = None
    """Project; W&B's own choice unless given."""
    entity: str | None = None
    """User or team."""
    group: str | None = None
    """Group of runs."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""
    notes: str | None = None
    """Notes on the run."""
    name: str | None = None
    """Name shown; ``run.name`` unless given."""


class Tracking(Section):
    """Who else is told the numbers that metrics.jsonl holds."""

    wandb: Wandb = Wandb()
    """Weights & Biases."""
    tensorboard: bool = False
    """TensorBoard files in the run's folder."""
