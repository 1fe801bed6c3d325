"""Gradual unfreezing: which layers a stage trains, and since when, by their depth below the head.

Depth counts from the head (0) over the top layer (1) to the bottom layer (N) and the embeddings (N + 1). A stage with
``trainable_layers: K`` trains depths 0 to K; a stage without it trains everything (Howard, Ruder: ULMFiT, ACL 2018,
unfreezes from the top in this way).
"""

from __future__ import annotations

from ds_pretrain.curriculum.plan import Plan, StagePlan


def is_trained(stage: StagePlan, depth: int) -> bool:
    """Whether a stage trains the parameters at a depth."""
    return stage.trainable_layers is None or depth <= stage.trainable_layers


def trained_since(plan: Plan, index: int, depth: int) -> int:
    """Since which stage a depth has been trained without a break.

    Args:
        plan: the stages.
        index: a stage that trains the depth.
        depth: distance from the head, in layers.

    Returns:
        Index of the first stage of the unbroken row that ends at ``index``.
    """
    assert is_trained(plan.stages[index], depth)
    since = index
    while since > 0 and is_trained(plan.stages[since - 1], depth):
        since -= 1
    return since


def same_layers(first: StagePlan, second: StagePlan) -> bool:
    """Whether two stages train the same layers."""
    return first.trainable_layers == second.trainable_layers


def unfreezes(before: StagePlan, after: StagePlan) -> bool:
    """Whether a stage trains layers that the stage before it does not."""
    if before.trainable_layers is None:
        return False
    return after.trainable_layers is None or after.trainable_layers > before.trainable_layers


def widest(stages: tuple[StagePlan, ...]) -> StagePlan:
    """The stage that trains the most layers, the first of them."""
    everything = next((stage for stage in stages if stage.trainable_layers is None), None)
    return everything or max(stages, key=lambda stage: stage.trainable_layers or 0)


def fresh_share(stage: StagePlan, step: int) -> float:
    """Factor on the learning rate of what a stage is the first to train: a linear warmup from zero.

    Args:
        stage: the stage that unfroze it; its ``warmup_steps`` are this warmup's length too.
        step: optimizer step of the run, from 0, in this stage.

    Returns:
        (k + 1) / warmup_steps for step k of the stage, and 1 from the end of the warmup on; 1 throughout in the first
        stage, whose warmup is the schedule's.
    """
    if stage.index == 0:
        return 1.0
    k = step - stage.start_step
    return (k + 1) / stage.warmup_steps if k < stage.warmup_steps else 1.0
