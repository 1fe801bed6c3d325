from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from launches import RankServer

# what nohup or a shell's background ignores, the processes that tests start would ignore too
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# tests share the cores: threads that spin while they wait would take them from one another
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# no deadline: these cores are shared; on CI the same cases every time, so that red means a change
settings.register_profile("shared", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "shared")

# files that take long, the longest first: one that is started last would be waited for with one core idle
LONG = (
    "runs/test_chaos.py",
    "docs/test_first_hour.py",
    "runs/test_elastic.py",
    "runs/test_many_nodes.py",
    "runs/test_guards.py",
    "runs/test_failures.py",
    "runs/test_training.py",
    "runs/test_lr_finder.py",
    "runs/test_moving_schedules.py",
    "runs/test_unfreezing.py",
    "runs/test_sequence_modes.py",
    "runs/test_resume.py",
    "engine/test_optimizers.py",
    "docs/test_cluster.py",
    "test_cli.py",
    "runs/test_recipes.py",
    "runs/test_engines_on_ranks.py",
    "runs/test_group_rates.py",
    "engine/test_universal.py",
    "test_supervise.py",
    "runs/test_full_disk.py",
)


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # by numbers of tests, which puts the longest files last


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


def pytest_collection_finish() -> None:
    gc.freeze()  # all that was imported: DeepSpeed collects at every start of an engine


@pytest.fixture(scope="session")
def rank_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankServer]:
    """Runs scripts on forked ranks."""
    server = RankServer(tmp_path_factory.mktemp("ranks"))
    yield server
    server.close()
