"""Planned stages of any shape, without a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from ds_pretrain.curriculum.plan import StagePlan


def chain(shapes: Sequence[tuple[int, int, int, int]], ranks: int = 1, stride: int | None = None) -> list[StagePlan]:
    """Stages one after another from (steps, seq_len, micro_batch_size, grad_accum_steps)."""
    stages: list[StagePlan] = []
    step = tokens = cursor = 0
    for index, (steps, seq_len, micro, accum) in enumerate(shapes):
        batch_size = ranks * micro * accum
        stages.append(
            StagePlan(
                index=index,
                start_step=step,
                end_step=step + steps,
                start_tokens=tokens,
                end_tokens=tokens + steps * batch_size * seq_len,
                start_cursor=cursor,
                positions_per_step=batch_size * (stride or seq_len),
                seq_len=seq_len,
                batch_size=batch_size,
                micro_batch_size=micro,
                grad_accum_steps=accum,
                lr_multiplier=1.0,
                formula_multiplier=1.0,
                peak_lr=1e-3,
                min_lr=1e-4,
                warmup_steps=0,
                grad_clip=1.0,
            )
        )
        step, tokens = stages[-1].end_step, stages[-1].end_tokens
        cursor = stages[-1].cursor_before(step)
    return stages
