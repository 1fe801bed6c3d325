"""A few of the cases of benchmarks/fuzz.py, the same ones every time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from fuzzing import CASES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_CASES = {"recipe": 60}


@pytest.mark.parametrize("name", list(CASES))
def test_a_reader_reads_or_refuses(name: str) -> None:
    reader, strategies = CASES[name]

    @settings(
        max_examples=_CASES.get(name, 150),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.tuples(*strategies))
    def run(case: tuple[Any, ...]) -> None:
        reader(case[0], folder, *case[1:])

    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        run()
