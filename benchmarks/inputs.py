"""What blocks, documents and masked tokens add to the assembly of a batch, as ratios to the plain one.

    python benchmarks/inputs.py [--tokens 262144] [--seq-len 1024] [--repeats 20]

Processor time of one core; rows are already read. A line for every format: million tokens a second, and time over
that of the plain one.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np
import torch

from ds_pretrain.data.inputs import InputFormat
from ds_pretrain.data.masking import Masking

VOCABULARY = 32000


def main() -> None:
    """Measures every format in turn, several times over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=262144)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    rows = options.tokens // options.seq_len
    tokens = generator.integers(0, VOCABULARY, (rows, options.seq_len))
    tokens[generator.random(tokens.shape) < 1 / 700] = 0
    places = np.arange(rows)
    special = np.arange(VOCABULARY) < 2
    continues = generator.random(VOCABULARY) < 0.3
    masking = Masking(0.15, 1, special)
    words = Masking(0.15, 1, special, np.ones(VOCABULARY, dtype=bool), continues)
    length = options.seq_len
    formats = {
        "plain": (InputFormat(length), length),
        "blocks of an eighth": (InputFormat(length), length // 8),
        "documents": (InputFormat(length, document_end=0), length),
        "masked tokens": (InputFormat(length, masking=masking), length),
        "masked words": (InputFormat(length, masking=words), length),
    }
    seconds: dict[str, list[float]] = {name: [] for name in formats}
    for step in range(options.repeats):
        for name, (form, seq_len) in formats.items():
            began = time.thread_time()
            # the copies that reading makes of 16-bit tokens
            inputs, targets = tokens.astype(np.int64), tokens.astype(np.int64)
            form.micro_batches(
                inputs,
                targets,
                places * length,
                seq_len=seq_len,
                micro_batch_size=rows // 8,
                places=places,
                key=(0, step),
            )
            seconds[name].append(time.thread_time() - began)
    for name, times in seconds.items():
        ratio = median(mine / plain for mine, plain in zip(times, seconds["plain"], strict=True))
        print(f"{name:>20}: {options.tokens / median(times) / 1e6:7.1f} M tokens/s, {ratio:5.2f} x plain")


if __name__ == "__main__":
    main()
