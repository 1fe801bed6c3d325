"""Trains several recipes one after another on the same ranks, which saves most of the starts' time.

Started by the real launcher, ``deepspeed tests/runs/many.py JOBS.json``, or forked; each job is a list of recipe files
and overrides. The processor's fp16 is refused by DeepSpeed as too slow; where asked for, that one check is overruled,
and everything else is DeepSpeed's own. With "go_on", a run that fails is told of and the next one started; in place
of a run, "remove:FOLDER" removes a folder, and "fill:FOLDER" makes one that fills its disk. A run whose overrides begin
with "fault:…" has that fault of ``faults.py``.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from deepspeed.accelerator import get_accelerator
from faults import install

from ds_pretrain.config import load_recipe
from ds_pretrain.engine.ranks import barrier, start_ranks, stop_ranks
from ds_pretrain.errors import TrainingError, UserError
from ds_pretrain.train.run import train_recipe


def fill(folder: Path) -> None:
    """Leaves no byte of the file system that a new folder is made on."""
    folder.mkdir()
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


ORDERS: dict[str, Callable[[Path], object]] = {"remove": shutil.rmtree, "fill": fill}


def main() -> None:
    jobs = json.loads(Path(sys.argv[-1]).read_text(encoding="utf-8"))
    if jobs["allow_fp16"]:
        get_accelerator().is_fp16_supported = lambda: True
    ranks = start_ranks(120.0)
    for files, overrides in jobs["runs"]:
        order, _, folder = overrides[0].partition(":") if overrides else ("", "", "")
        if order in ORDERS:
            barrier()
            if ranks.is_main:
                ORDERS[order](Path(folder))
            barrier()
            continue
        install(json.loads(folder) if order == "fault" else None, ranks)
        changes = overrides[1:] if order == "fault" else overrides
        try:
            train_recipe(load_recipe([Path(file) for file in files], changes), ranks, changes)
        except (UserError, TrainingError) as error:
            if not jobs.get("go_on"):
                raise
            if ranks.is_main:
                print(f"{type(error).__name__}: {error}", flush=True)
    stop_ranks()


if __name__ == "__main__":
    main()
