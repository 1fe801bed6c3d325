"""Preparing a corpus against `tokenizers`' own `encode_batch` and against `datasets.map`.

    python benchmarks/prepare.py --workers 2 --rounds 5
    python benchmarks/prepare.py --workers 2 --memory

The same JSONL, the same tokenizer, the same number of cores. The sides take turns, each in a process of its own, and
ratios are those of one round. Timed are: for ours all of `prepare`, from JSONL to a corpus with its manifest, worker
processes started anew; for `encode_batch` the call alone, on texts that are in memory; for `datasets.map` the call
alone, `num_proc` processes from an Arrow file in the cache to an Arrow file.

``--memory`` prepares a quarter of the text, all of it, and all of it as one document, and prints the most memory that
the processes had together (resident; a page that several share is counted once).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

SIDES = ("ours", "encode_batch", "map")


def write_corpus(path: Path, megabytes: int) -> None:
    """Python sources of this environment as JSONL."""
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for source in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
            text = source.read_text(encoding="utf-8", errors="ignore")
            if text.strip():
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                size += len(text)
            if size >= megabytes * 1_000_000:
                return


def texts_of(path: Path) -> list[str]:
    """The texts of the JSONL file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def ours(folder: Path, workers: int) -> tuple[float, int]:
    """Seconds and tokens of `prepare`."""
    from transformers import AutoTokenizer  # noqa: F401, no side is charged for its imports

    from ds_pretrain.data.prepare import prepare

    start = time.perf_counter()
    report = prepare(
        [str(folder / "corpus.jsonl")],
        folder / "made" / "corpus",
        tokenizer=str(folder / "tokenizer"),
        workers=workers,
        overwrite=True,
    )
    return time.perf_counter() - start, report.train.tokens - report.train.documents


def encode_batch(folder: Path, workers: int) -> tuple[float, int]:
    """Seconds and tokens of `encode_batch` in as many threads."""
    os.environ |= {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(workers)}
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    texts = texts_of(folder / "corpus.jsonl")
    tokens = 0
    start = time.perf_counter()
    for first in range(0, len(texts), 1000):
        tokens += sum(len(encoding) for encoding in tokenizer.encode_batch(texts[first : first + 1000]))
    return time.perf_counter() - start, tokens


def dataset_map(folder: Path, workers: int) -> tuple[float, int]:
    """Seconds and tokens of `datasets.map` in as many processes."""
    os.environ |= {"TOKENIZERS_PARALLELISM": "false"}
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    data = datasets.load_dataset(
        "json", data_files=str(folder / "corpus.jsonl"), split="train", cache_dir=str(folder / "cache")
    )
    start = time.perf_counter()
    made = data.map(
        lambda batch: {"input_ids": tokenizer(batch["text"], return_attention_mask=False)["input_ids"]},
        batched=True,
        remove_columns=["text"],
        num_proc=workers,
        load_from_cache_file=False,
    )
    seconds = time.perf_counter() - start
    return seconds, sum(len(ids) for ids in made.with_format("numpy")["input_ids"])


def _turn(side: str, folder: Path, workers: int) -> list[str]:
    return [sys.executable, __file__, "--side", side, "--folder", str(folder), "--workers", str(workers)]


def run_side(side: str, folder: Path, workers: int) -> tuple[float, int]:
    """One turn of one side, in a process of its own."""
    output = subprocess.run(_turn(side, folder, workers), check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, tokens = json.loads(output.splitlines()[-1])
    return seconds, tokens


def peak_memory(folder: Path, workers: int) -> int:
    """Bytes that ``prepare`` and its workers had resident at most, looked at every 20 ms."""
    process = subprocess.Popen(_turn("ours", folder, workers), stdout=subprocess.DEVNULL)
    tree, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        held = 0
        with suppress(psutil.Error):
            for each in (tree, *tree.children(recursive=True)):
                held += int(each.memory_full_info().pss)
        peak = max(peak, held)
        time.sleep(0.02)
    assert process.returncode == 0
    return peak


def measure_memory(folder: Path, texts: list[str], workers: int) -> None:
    """Prints the peak memory of preparing some of the texts, all, and all as one document."""
    for name, documents in (
        ("a quarter", texts[: len(texts) // 4]),
        ("all", texts),
        ("one document", ["\n".join(texts)]),
    ):
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents]
        (folder / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")
        size = (folder / "corpus.jsonl").stat().st_size / 1e6
        print(f"{name:>12}: {size:.0f} MB, peak {peak_memory(folder, workers) / 1e6:.0f} MB", flush=True)


def main() -> None:
    """Runs every side in turns and prints tokens per second and ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=16384)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.side:
        sides = {"ours": ours, "encode_batch": encode_batch, "map": dataset_map}
        print(json.dumps(sides[arguments.side](arguments.folder, arguments.workers)))
        return
    from ds_pretrain.data.tokenizer import save_tokenizer
    from ds_pretrain.data.train_tokenizer import TokenizerTraining, train_tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus.jsonl", arguments.megabytes)
        texts = texts_of(folder / "corpus.jsonl")
        pieces = ((text, (number + 1) / len(texts)) for number, text in enumerate(texts))
        trained = train_tokenizer(pieces, TokenizerTraining(arguments.vocab_size), max_bytes=8_000_000)
        save_tokenizer(trained, folder / "tokenizer")
        if arguments.memory:
            measure_memory(folder, texts, arguments.workers)
            return
        rounds = []
        for number in range(arguments.rounds):
            order = SIDES[number % 3 :] + SIDES[: number % 3]
            rounds.append({side: run_side(side, folder, arguments.workers) for side in order})
            counts = sorted(tokens for _, tokens in rounds[-1].values())
            # a document of more than half a million characters is encoded in pieces
            assert counts[-1] - counts[0] <= 1e-6 * counts[0], "the sides differ in their tokens"
            print({side: round(tokens / seconds) for side, (seconds, tokens) in rounds[-1].items()}, flush=True)
        print(f"{sum(map(len, texts)) / 1e6:.0f} MB, {len(texts):,} documents, {rounds[0]['ours'][1]:,} tokens")
        for side in SIDES:
            speed = statistics.median(tokens / seconds for seconds, tokens in (made[side] for made in rounds))
            ratios = sorted(made[side][0] / made["ours"][0] for made in rounds)
            print(
                f"{side:>12}: {speed / 1e6:.2f} M tokens/s; ours is {statistics.median(ratios):.2f} times as fast "
                f"(from {ratios[0]:.2f} to {ratios[-1]:.2f})"
            )


if __name__ == "__main__":
    main()
