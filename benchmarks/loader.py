"""Tokens per second of batch assembly on one core, against plain copies of as many tokens; and how soon a batch comes.

    python benchmarks/loader.py
    python benchmarks/loader.py --seek

Assembly finds the rows, gathers them and makes the micro batches, in the file's two bytes a token. Beside it, in turns
of some steps, now one first and now the other: the same rows copied by numpy one by one, inputs and targets in one run;
and inputs and targets copied in file order. The corpus is a file of random uint16 tokens, in the page cache: what is
measured is the work, not the disk.

``--seek`` opens a corpus of 10^12 tokens (a sparse file of 2 TB, a million documents) and reads one batch.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from stages import chain

from ds_pretrain.data.indexed import TokenFile, bin_path, idx_path
from ds_pretrain.data.loader import BatchReader
from ds_pretrain.data.stream import TokenStream
from ds_pretrain.data.token_writer import write_index

MAX_SEQ_LEN = 1024
CORPUS_TOKENS = 100_000_000
STEPS = 3072
TURN_TOKENS = 1 << 22
SHAPES = [(1024, 16, 1), (1024, 16, 4), (64, 256, 1), (384, 42, 1), (1024, 512, 1)]  # seq_len, batch_size, sources


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call, which other processes do not change."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def copy_rows(tokens: np.ndarray, starts: list[int], seq_len: int) -> list[np.ndarray]:
    """Plain copies of seq_len + 1 tokens from every start on."""
    return [tokens[start : start + seq_len + 1].copy() for start in starts]


def exhaust(made: Iterable[object]) -> None:
    """Makes everything, and keeps nothing."""
    deque(made, maxlen=0)


def measure(tokens: np.memmap, seq_len: int, batch_size: int, sources: int) -> tuple[float, float, float, float]:
    """M tokens per second of assembly, of a copy of the same rows and of one in file order; assembly's time over the
    copy's, both in one turn: medians."""
    stage = replace(chain([(STEPS, seq_len, batch_size, 1)])[0], data_weights=(1.0,) * sources)
    parts = np.split(tokens, sources)
    streams = [TokenStream(part, MAX_SEQ_LEN, seed=1) for part in parts]
    reader = BatchReader(streams, [stage], seed=1)
    size = seq_len * batch_size
    plain = tokens.view(np.ndarray)
    at_once = max(4, min(256, STEPS, TURN_TOKENS // size))
    turns: list[tuple[float, ...]] = []
    for first in range(0, STEPS - at_once + 1, at_once):
        steps = range(first, first + at_once)
        found, starts = reader.find(steps)
        for source, stream in enumerate(streams):
            mine = found == source
            starts[mine] = stream.locate(starts[mine], seq_len).at + source * len(parts[0])
        rows = [list(row) for row in starts.reshape(at_once, -1).tolist()]
        at = [step * size % (CORPUS_TOKENS - size) for step in steps]
        work: list[Callable[[], object]] = [
            partial(exhaust, reader.read(steps)),
            partial(exhaust, (copy_rows(plain, row, seq_len) for row in rows)),
            partial(exhaust, (copy_rows(plain, [start, start + 1], size - 1) for start in at)),
        ]
        order = (0, 1, 2) if len(turns) % 2 else (1, 0, 2)
        times = {number: seconds(work[number]) for number in order}
        turns.append(tuple(times[number] for number in range(3)))
    rates = [size * at_once / statistics.median(column) / 1e6 for column in zip(*turns, strict=True)]
    return rates[0], rates[1], rates[2], statistics.median(turn[0] / turn[1] for turn in turns)


def seek(folder: Path) -> None:
    """Prints how long opening a corpus of 10^12 tokens takes, and reading its first batch, or one far into it."""
    prefix = folder / "sparse"
    write_index(idx_path(prefix), np.dtype(np.uint16), np.full(10**6, 10**6, dtype=np.int32))
    with bin_path(prefix).open("wb") as file:
        file.truncate(2 * 10**12)
    (stage,) = chain([(2_000_000, 1024, 16, 1)])
    for step in (0, 10**6):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            stream = TokenStream(TokenFile.open(prefix).tokens, MAX_SEQ_LEN, seed=1)
            next(BatchReader([stream], [stage], seed=1).read(range(step, step + 1)))
            times.append(time.perf_counter() - start)
        print(f"open, and the batch of step {step:,}: {statistics.median(times):.3f} s (at most {max(times):.3f})")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def main() -> None:
    """Measures every shape and prints a table."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seek", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.seek:
            seek(Path(name))
            return
        file = Path(name, "tokens.bin")
        np.random.default_rng(0).integers(0, 50_000, CORPUS_TOKENS, dtype=np.uint16).tofile(file)
        tokens = np.memmap(file, dtype=np.uint16, mode="r")
        int(tokens.max())  # mapped, all of it
        print(f"{'seq_len':>8}{'batch':>7}{'sources':>9}{'assembly':>12}{'same rows':>12}{'file order':>12}", end="")
        print(f"{'over rows':>12}  M tokens/s")
        for seq_len, batch_size, sources in SHAPES:
            *rates, ratio = measure(tokens, seq_len, batch_size, sources)
            shown = "".join(f"{rate:12.0f}" for rate in rates)
            print(f"{seq_len:8d}{batch_size:7d}{sources:9d}{shown}{ratio:12.2f}", flush=True)


if __name__ == "__main__":
    main()
