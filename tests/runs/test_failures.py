"""Runs that fail, or are refused, end with one message and the right exit code."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from launches import LAUNCH_SECONDS, ROOT, Many, launch
from records import steps

from ds_pretrain.config import load_recipe
from ds_pretrain.curriculum import build_plan
from ds_pretrain.data.indexed import TokenFile, bin_path, idx_path
from ds_pretrain.data.loader import BatchReader
from ds_pretrain.data.positions import epoch_positions
from ds_pretrain.data.stream import TokenStream


def test_a_run_that_diverges_ends_with_a_message(base: Path, tmp_path: Path) -> None:
    overrides = [
        "optimizer.lr=1e30",
        "safety.max_consecutive_bad_steps=3",
        "safety.max_rollbacks=0",
        f"run.output_dir={tmp_path}",
    ]
    result = launch(2, ROOT / "launch/pretrain.py", "--config", str(base), *overrides)
    assert result.returncode == 1
    assert result.stderr.count("4 steps from") == 1
    assert "Lower optimizer.lr" in result.stderr
    assert "Traceback" not in result.stderr
    lines = steps(tmp_path / "run")
    bad = [line["step"] for line in lines if line["loss"] is None or line["skipped"]]
    # the limit and one more, in a row, and nothing after
    assert bad == list(range(bad[0], bad[0] + 4))
    assert lines[-1]["step"] == bad[-1]
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["step"] for event in events if event["event"] == "bad_step"] == bad


def test_a_loss_scale_at_its_minimum_is_no_bare_exception(train_many: Many, base: Path, tmp_path: Path) -> None:
    scaler = ["deepspeed.fp16.initial_scale_power=24", "deepspeed.fp16.min_loss_scale=16777216"]
    overrides = [
        "precision=fp16",
        "safety.max_consecutive_bad_steps=2",
        "safety.max_rollbacks=0",
        *scaler,
        f"run.output_dir={tmp_path}",
    ]
    result = train_many(1, [overrides], allow_fp16=True, expected=1)
    assert "3 steps from 1 on had a loss or gradient that is not a number" in result.stderr
    assert all(line["skipped"] and line["loss_scale"] == 2.0**24 for line in steps(tmp_path / "run"))


def test_resume_must_and_never_are_kept(train_many: Many, tmp_path: Path) -> None:
    output = f"run.output_dir={tmp_path}"
    refused = train_many(1, [[output, "checkpoint.resume=must"]], expected=1)
    assert "checkpoint.resume: found must, but there is no checkpoint in" in refused.stderr
    assert not (tmp_path / "run").exists()
    refused = train_many(1, [[output], [output, "checkpoint.resume=never"]], expected=1)
    assert "checkpoint.resume: found never, but" in refused.stderr


def test_an_id_beyond_the_vocabulary_that_one_rank_meets_ends_the_run_on_all(
    base: Path, corpus: Path, tmp_path: Path
) -> None:
    """The corpus has no manifest, as those of other tools; the other rank stands in the step's collectives."""
    for path in (bin_path(corpus), idx_path(corpus)):
        shutil.copy(path, tmp_path / ("foreign" + path.suffix))
    tokenizer = f"tokenizer.path={corpus}-tokenizer"
    overrides = [f"data.train={tmp_path}/foreign", tokenizer, f"run.output_dir={tmp_path}"]
    recipe = load_recipe([base], overrides)
    tokens = np.memmap(tmp_path / "foreign.bin", dtype=TokenFile.open(corpus).dtype, mode="r+")
    stages = build_plan(recipe, 2, epoch_positions(tmp_path / "foreign", 64)).stages
    stream = TokenStream(tokens, 64, recipe.run.seed)
    reader = BatchReader([stream], stages, seed=recipe.run.seed, rank=1, data_parallel_size=2)
    wrong = int(stream.locate(reader.find(range(9, 10))[1], 64).at[0]) + 5
    tokens[wrong] = 60_000
    tokens.flush()
    result = launch(2, ROOT / "launch/pretrain.py", "--config", str(base), *overrides)
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("ds_pretrain: ") == 1
    assert f"foreign.bin: token {wrong}, in document " in result.stderr
    assert "found id 60000; allowed: 0 to " in result.stderr
    assert "Traceback" not in result.stderr
    assert steps(tmp_path / "run")[-1]["step"] == 9


def test_a_port_that_is_taken_is_told_apart_from_a_failure(base: Path, tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        result = subprocess.run(
            [sys.executable, str(ROOT / "launch/pretrain.py"), "--config", str(base), f"run.output_dir={tmp_path}"],
            env={**os.environ, "MASTER_PORT": str(port), "WORLD_SIZE": "1"},
            capture_output=True, text=True, timeout=LAUNCH_SECONDS, check=False,
        )  # fmt: skip
    assert result.returncode == 75
    assert f"ds_pretrain: port {port} of 127.0.0.1, where the ranks are to meet, is in use" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
