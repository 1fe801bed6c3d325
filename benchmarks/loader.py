"""Tokens per second of batch assembly on one core, against plain copies of as many tokens.

    python benchmarks/loader.py

Assembly finds the rows, gathers them and makes the micro batches, in the file's two bytes a token. Beside it, in turns:
the same rows copied by numpy one by one, inputs and targets in one run; and inputs and targets copied in file order.
The corpus is a file of random uint16 tokens, in the page cache: what is measured is the work, not the disk.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ds_pretrain.curriculum.plan import StagePlan
from ds_pretrain.data.loader import BatchReader
from ds_pretrain.data.stream import TokenStream

MAX_SEQ_LEN = 1024
CORPUS_TOKENS = 100_000_000
STEPS = 300
SHAPES = [(1024, 16), (64, 256), (384, 42), (1024, 512)]  # seq_len, batch_size


def stage_of(seq_len: int, batch_size: int) -> StagePlan:
    """A stage of one micro batch per step, from the start of the stream."""
    tokens = seq_len * batch_size
    return StagePlan(
        index=0,
        start_step=0,
        end_step=STEPS,
        start_tokens=0,
        end_tokens=STEPS * tokens,
        start_cursor=0,
        positions_per_step=tokens,
        seq_len=seq_len,
        batch_size=batch_size,
        micro_batch_size=batch_size,
        grad_accum_steps=1,
        lr_multiplier=1.0,
        formula_multiplier=1.0,
        peak_lr=1e-3,
        min_lr=1e-4,
        warmup_steps=0,
        grad_clip=1.0,
    )


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call, which other processes do not change."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def copied(tokens: NDArray[np.uint16]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inputs and targets, cast as a batch's are."""
    return tokens[:-1].astype("i8"), tokens[1:].astype("i8")


def copy_rows(tokens: np.ndarray, starts: list[int], seq_len: int) -> list[np.ndarray]:
    """Plain copies of seq_len + 1 tokens from every start on."""
    return [tokens[start : start + seq_len + 1].copy() for start in starts]


def measure(tokens: np.memmap, seq_len: int, batch_size: int) -> tuple[float, float, float]:
    """Median tokens per second of batch assembly, of a copy of the same rows, and of a copy in file order."""
    stage = stage_of(seq_len, batch_size)
    stream = TokenStream(tokens, MAX_SEQ_LEN, seed=1)
    reader = BatchReader([stream], [stage], seed=1)
    size = seq_len * batch_size
    plain = tokens.view(np.ndarray)
    assembly: list[float] = []
    rows: list[float] = []
    copy: list[float] = []
    batches = reader.read(range(STEPS))
    for step in range(STEPS):
        starts = stream.locate(reader.find(range(step, step + 1))[1], seq_len).at
        at = step * size % (CORPUS_TOKENS - size)
        assembly.append(seconds(lambda: next(batches)))
        rows.append(seconds(partial(copy_rows, plain, starts.tolist(), seq_len)))
        copy.append(seconds(partial(copy_rows, plain, [at, at + 1], size - 1)))
    # the mean of assembly: rows are found for many steps at once, in the first of them
    return size / statistics.fmean(assembly), size / statistics.median(rows), size / statistics.median(copy)


def main() -> None:
    """Measures every shape and prints a table."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tokens.bin")
        np.random.default_rng(0).integers(0, 50_000, CORPUS_TOKENS, dtype=np.uint16).tofile(file)
        tokens = np.memmap(file, dtype=np.uint16, mode="r")
        print(f"{'seq_len':>8}{'batch_size':>11}{'assembly':>12}{'same rows':>12}{'file order':>12}  M tokens/s")
        for seq_len, batch_size in SHAPES:
            rates = "".join(f"{rate / 1e6:12.1f}" for rate in measure(tokens, seq_len, batch_size))
            print(f"{seq_len:8d}{batch_size:11d}{rates}")


if __name__ == "__main__":
    main()
