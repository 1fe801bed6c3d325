"""Trains several recipes one after another on the ranks of one launch, which saves most of the launches' time.

Started by the real launcher: ``deepspeed tests/runs/many.py JOBS.json``; each job is a list of recipe files and
overrides. The processor's fp16 is refused by DeepSpeed as too slow; where asked for, that one check is overruled, and
everything else is DeepSpeed's own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deepspeed.accelerator import get_accelerator

from ds_pretrain.config import load_recipe
from ds_pretrain.engine.ranks import start_ranks, stop_ranks
from ds_pretrain.train.run import train_recipe


def main() -> None:
    jobs = json.loads(Path(sys.argv[-1]).read_text(encoding="utf-8"))
    if jobs["allow_fp16"]:
        get_accelerator().is_fp16_supported = lambda: True
    ranks = start_ranks(120.0)
    for files, overrides in jobs["runs"]:
        train_recipe(load_recipe([Path(file) for file in files], overrides), ranks, overrides)
    stop_ranks()


if __name__ == "__main__":
    main()
