"""Feeds the readers of recipes, indexes, manifests, states and logs broken files: python benchmarks/fuzz.py

Counts the cases. Ends with 1 and the smallest failing case where a reader does anything else than to read or to refuse
with the clear error. The suite runs a few of the same cases (tests/test_fuzz.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fuzzing import CASES


def count_cases(name: str, cases: int, number: int) -> int:
    """Runs one reader over its cases, and returns how many there were.

    Args:
        name: one of ``CASES``.
        cases: how many to run.
        number: seed of the cases.
    """
    reader, strategies = CASES[name]
    done = 0
    with tempfile.TemporaryDirectory() as folder:

        @seed(number)
        @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=st.tuples(*strategies))
        def run(case: tuple[Any, ...]) -> None:
            nonlocal done
            done += 1
            reader(case[0], Path(folder), *case[1:])

        run()
    return done


def main() -> None:
    """Runs every reader over its share of the cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=30_000, help="of every reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(CASES), default=None)
    arguments = parser.parse_args()
    for name in CASES if arguments.only is None else [arguments.only]:
        began = time.monotonic()
        done = count_cases(name, arguments.cases, arguments.seed)
        print(f"{name}: {done:,} cases in {time.monotonic() - began:.0f} s, no crash", flush=True)


if __name__ == "__main__":
    main()
