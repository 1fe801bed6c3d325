"""Shows the guards every step and evaluation, and tells what they say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ds_pretrain.config import Safety
from ds_pretrain.curriculum import StagePlan
from ds_pretrain.engine.step import StepResult
from ds_pretrain.guards import GuardState, Notice, StepFacts, Verdict, after_evaluation, after_step, is_bad_step


class Guarding:
    """The guards of a run while it trains; alike on every rank.

    Args:
        safety: the recipe's section.
        min_loss_scale: minimum of a dynamic fp16 loss scale; None otherwise.
        state: what the guards remember.
        event: logs an event, by name and details; does so on rank 0 alone.
        say: tells the user, on rank 0 alone.
    """

    def __init__(
        self,
        safety: Safety,
        min_loss_scale: float | None,
        state: GuardState,
        event: Callable[..., None],
        say: Callable[[str], None],
    ) -> None:
        self.state = state
        self._safety = safety
        self._min_loss_scale = min_loss_scale
        self._event = event
        self._say = say

    def damping(self, step: int) -> float:
        """Factor on the learning rate of the step after ``step`` steps."""
        return self.state.damping.at(step, self._safety.spike_recovery_steps)

    def after_step(self, step: int, stage: StagePlan, result: StepResult) -> Verdict:
        """What a step was.

        Args:
            step: steps done, this one included.
            stage: its stage.
            result: what the engine came to.
        """
        bad = is_bad_step(result.loss, result.skipped, result.loss_scale, self._min_loss_scale)
        grace = step <= stage.start_step + stage.warmup_steps
        facts = StepFacts(step, stage.index, grace, result.loss, result.grad_norm, bad)
        self.state, verdict = after_step(self.state, facts, self._safety)
        damping = self.damping(step)
        if bad:
            self._event("bad_step", loss=result.loss, grad_norm=result.grad_norm, damping=damping)
            self._say(
                f"step {step}: bad, loss {result.loss:g}, gradient norm {result.grad_norm:g}; the update was left out, "
                f"learning rate x {damping:g}"
            )
        if verdict.spike:
            average = self.state.average.mean
            self._event("spike", loss=result.loss, average=average, damping=damping)
            self._say(
                f"step {step}: spike, loss {result.loss:.4f} is {result.loss / average:.2f} times its running average "
                f"{average:.4f}; learning rate x {damping:g}"
            )
        self._warn(step, verdict.notices)
        return verdict

    def after_evaluation(self, step: int, stage: StagePlan, lines: Sequence[Mapping[str, Any]]) -> float | None:
        """Validation loss minus training loss at the stage's length, in nats; None where there is no average yet.

        Args:
            step: steps done.
            stage: the stage of the last one.
            lines: what ``Evaluator.evaluate`` returned.
        """
        losses = [line["val_loss"] for line in lines if line["seq_len"] == stage.seq_len]
        gap, notices = after_evaluation(self.state, sum(losses) / len(losses), self._safety)
        self._warn(step, notices)
        return gap

    def _warn(self, step: int, notices: Sequence[Notice]) -> None:
        for notice in notices:
            self._event("warning", kind=notice.kind, text=notice.text)
            self._say(f"step {step}: warning: {notice.text}")
