from __future__ import annotations

import pytest

from ds_pretrain.launcher import world_size


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], 1),
        (["--num_gpus", "4"], 4),
        (["--num_nodes", "2", "--num_gpus", "8", "--master_port", "29501"], 16),
        (["--include", "localhost:0,1"], 1),
    ],
)
def test_the_ranks_that_flags_ask_for(flags: list[str], expected: int) -> None:
    assert world_size(flags) == expected
