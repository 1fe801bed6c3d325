"""The forked ranks of other tests are ranks: processes of their own, told apart, and none fails unseen."""

from __future__ import annotations

from pathlib import Path

from launches import RankServer

SCRIPT = """\
import os, sys, time
print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], sys.argv[1], flush=True)
if sys.argv[1] == "fail":
    if os.environ["RANK"] == "1":
        sys.exit(3)
    time.sleep(10_000)
"""


def test_a_rank_that_fails_ends_the_others_and_is_told_of(rank_server: RankServer, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    failed = rank_server.run(2, tmp_path / "script.py", "fail")
    assert failed.returncode == 3
    assert "rank 1 of 2 fail" in failed.stdout.splitlines()
    done = rank_server.run(3, tmp_path / "script.py", "go")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"rank {rank} of 3 go" for rank in range(3)]


def test_a_rank_that_raises_leaves_its_traceback(rank_server: RankServer, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("raise ValueError('on purpose')", encoding="utf-8")
    failed = rank_server.run(1, tmp_path / "script.py")
    assert failed.returncode == 1
    assert "ValueError: on purpose" in failed.stderr
