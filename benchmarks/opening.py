"""Seconds from the name of a corpus of 10^12 tokens to a batch of it, by the number of its documents.

    python benchmarks/opening.py

Both corpora are a sparse file of 2 TB beside a whole index, so the file system has to allow files of that size; 200 MB
of it are really written. Measured is what every start pays: to open, to have the first batch, and to have the batch at
step 10^6. Beside it, what reading all of the index costs, as preparing, inspecting and the start of a run on a corpus
without a manifest do. The index is in the page cache.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from loader import MAX_SEQ_LEN
from stages import chain

from ds_pretrain.data.index_check import check_index
from ds_pretrain.data.indexed import TokenFile, bin_path, idx_path
from ds_pretrain.data.loader import BatchReader
from ds_pretrain.data.stream import TokenStream
from ds_pretrain.data.token_writer import write_index

TOKENS = 10**12
DOCUMENTS = (1_000, 10_000_000)
BATCH_SIZE = 16
STEP = 10**6


def make(prefix: Path, documents: int) -> None:
    """A corpus of zeros in documents of one length, that takes no more of the disk than its index."""
    with bin_path(prefix).open("wb") as file:
        file.truncate(2 * TOKENS)
    write_index(idx_path(prefix), np.dtype(np.uint16), np.broadcast_to(np.int32(TOKENS // documents), documents))


def first_batch(prefix: Path, step: int) -> float:
    """Seconds from the prefix to the batch of a step."""
    start = time.perf_counter()
    tokens = TokenFile.open(prefix).tokens
    (stage,) = chain([(2 * STEP, MAX_SEQ_LEN, BATCH_SIZE, 1)])
    reader = BatchReader([TokenStream(tokens, MAX_SEQ_LEN, seed=1)], [stage], seed=1)
    next(reader.read(range(step, stage.end_step)))
    return time.perf_counter() - start


def peak_memory() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measures both corpora and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where to make the corpora; the system's temporary folder unless given")
    parser.add_argument("--times", type=int, default=5, help="how often to measure; the median is shown")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"{'documents':>12}{'open':>10}{'first batch':>13}{f'step {STEP:,}':>16}{'memory':>10}{'whole index':>13}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for documents in DOCUMENTS:
            prefix = Path(folder, str(documents))
            make(prefix, documents)
            first_batch(prefix, 0)  # imports, and pages of the index
            before = peak_memory()
            opened = []
            for _ in range(options.times):
                start = time.perf_counter()
                TokenFile.open(prefix)
                opened.append(time.perf_counter() - start)
            batches = [statistics.median(first_batch(prefix, step) for _ in range(options.times)) for step in (0, STEP)]
            memory = peak_memory() - before
            start = time.perf_counter()
            check_index(TokenFile.open(prefix))
            whole = time.perf_counter() - start
            print(
                f"{documents:12,}{1000 * statistics.median(opened):8.2f}ms{1000 * batches[0]:11.1f}ms"
                f"{1000 * batches[1]:14.1f}ms{memory / 1e6:8.1f}MB{1000 * whole:11.1f}ms"
            )


if __name__ == "__main__":
    main()
