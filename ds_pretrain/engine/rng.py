"""State of the random number generators that training draws from: torch on the CPU and on this rank's device."""

from __future__ import annotations

from deepspeed.accelerator import get_accelerator
from torch import Tensor, get_rng_state, set_rng_state


def rng_state() -> dict[str, Tensor]:
    """This rank's generators, as uint8 tensors by device."""
    state = {"cpu": get_rng_state()}
    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        state["device"] = accelerator.get_rng_state()
    return state


def restore_rng(state: dict[str, Tensor]) -> None:
    """Puts the generators back to where ``rng_state`` found them."""
    set_rng_state(state["cpu"])
    if "device" in state:
        get_accelerator().set_rng_state(state["device"])
