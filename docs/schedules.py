"""Draws docs/schedules.png: every type of schedule over one run, by the project's own plan and schedule.

python docs/schedules.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ds_pretrain.config import parse_recipe
from ds_pretrain.curriculum import build_plan
from ds_pretrain.schedules import LearningRateSchedule

STEPS = 1000
# settings that show what a type does, where its defaults would hide it
TYPES: dict[str, dict[str, Any]] = {
    "constant": {},
    "linear": {},
    "polynomial": {"power": 2.0},
    "cosine": {},
    "wsd": {},
    "inverse_sqrt": {},
    "exponential": {},
    "step": {},
    "multistep": {},
    "cosine_restarts": {"t_0": 140, "t_mult": 2},
    "triangular": {},
    "triangular2": {},
    "exp_range": {},
    "one_cycle": {},
    "one_cycle, three phases": {"three_phase": True},
    "noam": {"noam_warmup": 200},
}


def rates(settings: dict[str, Any]) -> list[float]:
    """Learning rate of every step."""
    recipe = parse_recipe(
        {
            "model": {"architecture": "gpt2"},
            "data": {"train": "corpus", "max_seq_len": 64},
            "curriculum": {"total_steps": STEPS, "batch_size": 8},
            "optimizer": {"lr": 1.0},
            "schedule": {"by": "steps", **settings},
        }
    )
    return [row.lr for row in LearningRateSchedule(build_plan(recipe), recipe.schedule)]


def main(path: Path) -> None:
    """Draws one panel a type.

    Args:
        path: where to, as PNG.
    """
    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    for axes, (name, settings) in zip(figure.subplots(4, 4, sharex=True).flat, TYPES.items(), strict=True):
        found = rates({"type": name.split(",")[0], **settings})
        axes.plot(found, color="tab:blue")
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_ylim(0, 1.08 * max(found))
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("step")
    figure.supylabel("learning rate at optimizer.lr 1")
    figure.savefig(path)


if __name__ == "__main__":
    main(Path(__file__).with_name("schedules.png"))
