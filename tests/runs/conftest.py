"""A corpus, and runs over it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from launches import ROOT, Many, RankServer, launch
from support import TINY
from texts import write_texts

from ds_pretrain.data.prepare import prepare


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefix of a token file of about 100,000 tokens, with a validation part beside it."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = write_texts(folder / "texts", 330_000)
    prepare([str(texts)], folder / "mine", tokenizer="train:400", validation=0.1, workers=1)
    return folder / "mine"


@pytest.fixture(scope="session")
def base(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of three stages in which length, batch size and accumulation all change."""
    recipe: dict[str, Any] = {
        **TINY,
        "data": {"train": str(corpus), "validation": f"{corpus}-val", "max_seq_len": 64},
        "curriculum": {
            "total_steps": 12,
            "stages": [
                {"step": 0, "seq_len": 16, "batch_size": 24, "warmup_steps": 2, "grad_clip": 0.5},
                {"step": 4, "seq_len": 32, "batch_size": 8, "lr_multiplier": 0.5, "grad_clip": 5.0},
                {"step": 8, "seq_len": 64, "batch_size": 12, "lr_multiplier": 0.7, "grad_clip": 0.05},
            ],
        },
        "schedule": {"scope": "stage"},
        "precision": "fp32",
        "train": {"max_tokens_per_micro_batch": 128},
        "evaluation": {"every_steps": 5, "batches": 4},
        "checkpoint": {"every_steps": None},
    }
    path = tmp_path_factory.mktemp("recipes") / "base.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def train_many(base: Path, rank_server: RankServer, tmp_path_factory: pytest.TempPathFactory) -> Many:
    """Trains several variants of ``base`` on the same ranks; one that begins with another recipe's file, of that."""

    def train(
        num_ranks: int,
        variants: Sequence[Sequence[str]],
        allow_fp16: bool = False,
        expected: int = 0,
        go_on: bool = False,
        launcher: bool = False,
    ) -> Any:
        jobs = tmp_path_factory.mktemp("jobs") / "jobs.json"
        runs = [
            [[parts[0]], list(parts[1:])] if parts[0].endswith(".yaml") else [[str(base)], list(parts)]
            for parts in variants
        ]
        jobs.write_text(json.dumps({"runs": runs, "allow_fp16": allow_fp16, "go_on": go_on}), encoding="utf-8")
        start = launch if launcher else rank_server.run
        result = start(num_ranks, ROOT / "tests/runs/many.py", str(jobs))
        assert result.returncode == expected, result.stdout + result.stderr
        return result

    return train
