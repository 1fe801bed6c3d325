"""How good the learning-rate finder is: the quickstart's lengths, each trained around what it suggests.

For every length the finder sweeps and tries it, with its own seed. Then, with another seed (other first weights, other
data), the model is trained at 1/8, 1/4, 1/2, 1, 2, 4 and 8 times the suggestion, and at half and twice the edge: 80
steps, the first quarter of them a linear warmup, then a cosine to a tenth. A run trains, as for the finder, if it gets
half as far as the best of these below the loss of a model that knows only how often each token occurs in the
training text. Results go to a JSON file as they come; started again, it goes on where it was.

    python benchmarks/lr_finder.py --lengths 64,512 --out lr_finder.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("LOCAL_RANK", "0")

from ds_pretrain.config import LrFinder, load_recipe
from ds_pretrain.curriculum import StagePlan
from ds_pretrain.curriculum.lr_shapes import stage_shape
from ds_pretrain.data.manifest import open_corpus
from ds_pretrain.engine.ranks import Ranks, start_ranks, stop_ranks
from ds_pretrain.engine.snapshot import EngineSnapshot
from ds_pretrain.observe.logs import quiet_libraries
from ds_pretrain.schedules.lr_sweep import SweepPoint, steepest_rate
from ds_pretrain.schedules.lr_trials import TRAINS, Baselines, Finding, Trial, first_peak, judge, next_peak, repetitions
from ds_pretrain.train.lr_finder import run_sweep
from ds_pretrain.train.setup import Setup, prepare_run, start_engine
from ds_pretrain.train.stop import StopRequest
from ds_pretrain.train.sweep import SweepTrainer

ROOT = Path(__file__).parents[1]
MULTIPLES = (1, 2, 1 / 2, 4, 8, 1 / 4, 1 / 8)


@dataclass(frozen=True)
class Bench:
    """The quickstart model with the weights and data of a seed."""

    setup: Setup
    trainer: SweepTrainer
    snapshot: EngineSnapshot

    @classmethod
    def open(cls, seed: int, scratch: Path, overrides: list[str], ranks: Ranks) -> Bench:
        """Builds the engine; ``scratch`` holds its first state."""
        fixed = [f"run.output_dir={scratch}", f"run.seed={seed}", f"data.cache_dir={ROOT / 'data/cache'}"]
        recipe = load_recipe([ROOT / "ds_configs/quickstart.yaml"], [*fixed, *overrides])
        setup = prepare_run(recipe, ranks, StopRequest(), fresh=True)
        engine, *_ = start_engine(setup, ranks)
        snapshot = EngineSnapshot(engine, scratch / f"state{seed}", ranks)
        return cls(setup, SweepTrainer(engine, setup, ranks), snapshot)

    def stage(self, seq_len: int) -> StagePlan:
        """The stage of a length."""
        return next(stage for stage in self.setup.plan.stages if stage.seq_len == seq_len)

    def train(self, seq_len: int, peak_lr: float, repetition: int = 0) -> Trial:
        """A short training, whose loss is that of the validation text at the length."""
        stage = self.stage(seq_len)
        self.snapshot.restore()
        warmup = stage_shape(self.setup.recipe, stage).warmup_steps
        trial = self.trainer.try_peak(stage, peak_lr, warmup, lambda points: None, repetition)
        print(f"length {seq_len}: {peak_lr:g} -> {trial.loss:.3f}", flush=True)
        return trial


def find(bench: Bench, seq_len: int, kept: dict[str, Any], keep: Callable[[], None]) -> Finding:
    """What ``find_shape`` does, with the sweep and every trial kept as soon as it is there."""
    settings, stage = bench.setup.recipe.lr_finder, bench.stage(seq_len)
    if "baselines" not in kept:
        bench.snapshot.restore()
        kept["baselines"] = asdict(bench.trainer.baselines(stage, math.nan))
    trials, baselines = _trials(kept), Baselines(**kept["baselines"])
    peak: float | None
    if trials:
        peak = next_peak(trials, baselines, settings)
    else:
        sweep = run_sweep(bench.trainer, bench.snapshot, stage, lambda points: None)
        kept["sweep"] = [asdict(point) for point in sweep]
        peak = first_peak(steepest_rate(sweep, settings), settings)
    while peak is not None:
        trials.append(bench.train(seq_len, peak, repetitions(trials, peak)))
        kept.setdefault("trials", []).append(asdict(trials[-1]))
        keep()
        peak = next_peak(trials, baselines, settings)
    return _judged(kept, settings)


def _judged(kept: dict[str, Any], settings: LrFinder) -> Finding:
    return judge(_trials(kept), Baselines(**kept["baselines"]), settings)


def wanted_rates(finding: Finding) -> list[float]:
    """Rates to train at, those that decide most first."""
    rates = [finding.edge / 2, finding.edge * 2, *(multiple * finding.suggestion for multiple in MULTIPLES)]
    return list(dict.fromkeys(rates))


def unigram_loss(setup: Setup) -> float:
    """Validation loss, in nats per token, of a model that predicts every token by its share of the training text."""
    (_, validation), (_, train) = setup.corpus.validation[0], setup.corpus.train[0]
    size = setup.corpus.vocabulary.size
    counts, wanted = (
        np.bincount(np.asarray(open_corpus(prefix)[0].tokens), minlength=size) for prefix in (train, validation)
    )
    shares = (counts + 1) / (counts + 1).sum()
    return float(-(wanted * np.log(shares)).sum() / wanted.sum())


def table(results: dict[str, Any], settings: LrFinder) -> str:
    """Markdown: a row a length; validation losses by rate, in brackets where the run does not train."""
    headings = [f"{multiple:g}x" for multiple in sorted(MULTIPLES)] + ["edge / 2", "edge x 2"]
    lines = [
        "| length | trials | edge | suggestion | " + " | ".join(headings) + " |",
        "|---" * (4 + len(headings)) + "|",
    ]
    unigram = results["unigram_loss"]
    for seq_len, kept in results["lengths"].items():
        finding = _judged(kept, settings)
        rates = [multiple * finding.suggestion for multiple in sorted(MULTIPLES)]
        losses = kept.get("losses", {})
        limit = unigram - TRAINS * (unigram - min(losses.values(), default=unigram))
        cells = [_cell(losses, rate, limit) for rate in (*rates, finding.edge / 2, finding.edge * 2)]
        lines.append(
            f"| {seq_len} | {len(_trials(kept))} | {finding.edge:g} | {finding.suggestion:g} | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(lines)


def _cell(losses: dict[str, float], rate: float, limit: float) -> str:
    loss = losses.get(f"{rate:g}")
    return "" if loss is None else f"{loss:.3f}" if loss <= limit else f"({loss:.3f})"


def _trials(kept: dict[str, Any]) -> list[Trial]:
    trials = kept.get("trials", [])
    return [Trial(each["peak_lr"], _points(each["points"]), each["loss"]) for each in trials]


def _points(stored: list[dict[str, Any]]) -> tuple[SweepPoint, ...]:
    return tuple(SweepPoint(**point) for point in stored)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="64,512,128,256", help="which of the quickstart's lengths")
    parser.add_argument("--finder-seed", type=int, default=1234, help="run.seed of the finder")
    parser.add_argument("--seed", type=int, default=77, help="run.seed of the trainings around the suggestion")
    parser.add_argument("--out", type=Path, default=Path("lr_finder.json"), help="results so far, and the end's")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("overrides", nargs="*", help="key.path=value")
    options = parser.parse_args()
    results = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"lengths": {}}
    lengths = [int(text) for text in options.lengths.split(",")]

    def keep() -> None:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    settings = load_recipe([ROOT / "ds_configs/quickstart.yaml"], options.overrides).lr_finder
    if not options.table:
        with tempfile.TemporaryDirectory() as scratch:
            ranks = start_ranks(600.0)
            quiet_libraries(None)
            bench = Bench.open(options.finder_seed, Path(scratch), options.overrides, ranks)
            results["unigram_loss"] = unigram_loss(bench.setup)
            for seq_len in lengths:
                finding = find(bench, seq_len, results["lengths"].setdefault(str(seq_len), {}), keep)
                print(f"length {seq_len}: {finding}", flush=True)
            bench = Bench.open(options.seed, Path(scratch), options.overrides, ranks)
            wanted = []
            for seq_len in lengths:
                kept = results["lengths"][str(seq_len)]
                finding = _judged(kept, settings)
                wanted += [(place, seq_len, rate) for place, rate in enumerate(wanted_rates(finding))]
            for _, seq_len, rate in sorted(wanted, key=lambda each: each[0]):
                losses = results["lengths"][str(seq_len)].setdefault("losses", {})
                if f"{rate:g}" not in losses:
                    losses[f"{rate:g}"] = bench.train(seq_len, rate).loss
                    keep()
            stop_ranks()
    print(f"loss of the tokens' frequencies alone: {results['unigram_loss']:.3f}\n{table(results, settings)}")


if __name__ == "__main__":
    main()
