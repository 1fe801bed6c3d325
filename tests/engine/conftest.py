"""One rank in this very process, for tests of real engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ds_pretrain.engine.ranks import Ranks, start_ranks, stop_ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    with pytest.MonkeyPatch.context() as patch:
        # what a launcher sets; port 0 is any free one, so that test processes do not meet
        for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_PORT", "0")):
            patch.setenv(name, value)
        # models this small are slower on two threads than on one
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield start_ranks(60.0)
        stop_ranks()
