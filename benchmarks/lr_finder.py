"""How good the learning-rate finder's suggestions are: the quickstart's lengths, each trained around its suggestion.

For every length the finder sweeps it, and then the model is trained from the same first weights, over the same data,
at 1/8, 1/4, 1/2, 1, 2, 4 and 8 times the suggestion: a linear warmup over a quarter of the steps, a cosine to a tenth.
A run trains if its validation loss ends well below that of a model that knows only how often each token occurs in the
training text. Results go to a JSON file as they come; started again, it goes on where it was.

    python benchmarks/lr_finder.py --lengths 64,512 --out lr_finder.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("LOCAL_RANK", "0")

from ds_pretrain.config import LrFinder, load_recipe
from ds_pretrain.data.manifest import open_corpus
from ds_pretrain.engine.ranks import start_ranks, stop_ranks
from ds_pretrain.engine.snapshot import EngineSnapshot
from ds_pretrain.observe.logs import quiet_libraries
from ds_pretrain.schedules.lr_sweep import SweepPoint, find_rates
from ds_pretrain.train.evaluation import Evaluator
from ds_pretrain.train.lr_finder import sweep_length
from ds_pretrain.train.setup import Setup, prepare_run, start_engine
from ds_pretrain.train.stop import StopRequest
from ds_pretrain.train.sweep import SweepTrainer

ROOT = Path(__file__).parents[1]
MULTIPLES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
# nats per token below the loss of knowing the tokens' frequencies alone
MARGIN = 0.2


def training_rates(peak: float, steps: int) -> list[float]:
    """Warmup over a quarter of the steps, then a cosine to a tenth of the peak."""
    warm = steps // 4
    shape = [(step + 1) / warm for step in range(warm)]
    shape += [0.1 + 0.45 * (1 + math.cos(math.pi * step / (steps - warm))) for step in range(steps - warm)]
    return [peak * factor for factor in shape]


def unigram_loss(setup: Setup) -> float:
    """Validation loss, in nats per token, of a model that predicts every token by its share of the training text."""
    (_, validation), train = setup.corpus.validation[0], setup.corpus.train
    size = setup.corpus.vocabulary.size
    counts, wanted = (
        np.bincount(np.asarray(open_corpus(prefix)[0].tokens), minlength=size) for prefix in (train, validation)
    )
    shares = (counts + 1) / (counts + 1).sum()
    return float(-(wanted * np.log(shares)).sum() / wanted.sum())


def table(results: dict[str, Any], settings: LrFinder) -> str:
    """Markdown: a row a length, its losses by multiple of the suggestion; in brackets what does not train.

    Steepest descent and edge are read from the stored curves anew, by the present analysis; the suggestion is the one
    that was trained around.
    """
    lines = [
        "| length | steepest | edge | suggestion | " + " | ".join(f"{multiple:g}x" for multiple in MULTIPLES) + " |",
        "|---" * (4 + len(MULTIPLES)) + "|",
    ]
    limit = results["unigram_loss"] - MARGIN
    for seq_len, found in results["lengths"].items():
        cells = []
        for multiple in MULTIPLES:
            loss = found["losses"].get(f"{multiple:g}", math.nan)
            text = "-" if loss is None else f"{loss:.3f}"
            cells.append(text if loss is not None and not loss > limit else f"({text})")
        search, climb = ([SweepPoint(**point) for point in found[sweep]] for sweep in ("search", "climb"))
        finding, suggestion = find_rates(search, climb, settings), found["finding"]["suggestion"]
        rates = f"{finding.steepest:.1e} | {finding.edge:.1e} ({finding.edge / suggestion:.1f}x) | {suggestion:.1e}"
        lines.append(f"| {seq_len} | {rates} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="64,128,256,512", help="which of the quickstart's lengths")
    parser.add_argument("--steps", type=int, default=80, help="steps of a training")
    parser.add_argument("--out", type=Path, default=Path("lr_finder.json"), help="results so far, and the end's")
    parser.add_argument("overrides", nargs="*", help="key.path=value")
    options = parser.parse_args()
    results = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"lengths": {}}
    with tempfile.TemporaryDirectory() as scratch:
        overrides = [f"run.output_dir={scratch}", f"data.cache_dir={ROOT / 'data/cache'}", *options.overrides]
        recipe = load_recipe([ROOT / "ds_configs/quickstart.yaml"], overrides)
        ranks = start_ranks(600.0)
        quiet_libraries(None)
        setup = prepare_run(recipe, ranks, StopRequest(), fresh=True)
        engine, _ = start_engine(setup, ranks)
        trainer, evaluator = SweepTrainer(engine, setup, ranks), Evaluator(setup.corpus.validation, recipe, ranks)
        snapshot = EngineSnapshot(engine, Path(scratch) / "state", ranks)
        results["unigram_loss"] = unigram_loss(setup)

        def keep() -> None:
            options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

        for seq_len in (int(text) for text in options.lengths.split(",")):
            stage = next(stage for stage in setup.plan.stages if stage.seq_len == seq_len)
            found = results["lengths"].get(str(seq_len))
            if found is None:
                found = asdict(sweep_length(trainer, snapshot, stage, lambda _, points: None)) | {"losses": {}}
                results["lengths"][str(seq_len)] = found
                keep()
                print(f"length {seq_len}: {found['finding']}", flush=True)
            for multiple in sorted(MULTIPLES, key=lambda multiple: abs(math.log(multiple))):
                if f"{multiple:g}" in found["losses"]:
                    continue
                peak = multiple * found["finding"]["suggestion"]
                snapshot.restore()
                trainer.train(stage, training_rates(peak, options.steps), lambda points: points[-1].bad)
                loss = evaluator.evaluate(engine, [seq_len])[0]["val_loss"]
                assert isinstance(loss, float)
                found["losses"][f"{multiple:g}"] = loss if math.isfinite(loss) else None
                keep()
                print(f"length {seq_len}: {multiple:g} x -> {loss:.3f}", flush=True)
        stop_ranks()
    print(f"loss of the tokens' frequencies alone: {results['unigram_loss']:.3f}\n{table(results, recipe.lr_finder)}")


if __name__ == "__main__":
    main()
