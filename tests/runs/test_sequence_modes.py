"""Blocks, documents and masked tokens in real runs on two ranks: as planned, the same on one, continued to the bit."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from launches import ROOT, Many, RankServer
from records import metrics, steps
from tiny_models import SIZES
from transformers import AutoModelForMaskedLM, AutoTokenizer

from ds_pretrain.config import load_recipe
from ds_pretrain.curriculum import build_plan
from ds_pretrain.data.manifest import open_corpus
from ds_pretrain.data.masking import tokenizer_masking
from ds_pretrain.errors import UserError
from ds_pretrain.train.export import continue_text, export_run

MODES = {
    "mask": ["data.sequence_mode=mask"],
    "mask-documents": ["data.sequence_mode=mask", "data.document_mask=true"],
    "chunk-documents": ["data.document_mask=true"],
    "chunk": [],
}
MASKED = {
    "bert": [],
    "bert-words": ["data.sequence_mode=mask", "data.document_mask=true", "data.masking.whole_words=true"],
    "bert-zero3": ["deepspeed.zero_stage=3", "precision=bf16"],
}
ON_BOTH = ("mask", "mask-documents", "bert", "bert-words")
RESUMED = ("mask-documents", "bert", "bert-words")


@pytest.fixture(scope="module")
def bert(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` with BERT in place of Llama."""
    recipe = yaml.safe_load(base.read_text(encoding="utf-8"))
    recipe["model"] = {
        "architecture": "bert",
        "objective": "masked_lm",
        "config": SIZES["bert"],
        "pad_vocab_multiple": 8,
    }
    path = tmp_path_factory.mktemp("bert") / "bert.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def runs(train_many: Many, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modes")
    common = ["checkpoint.every_steps=6", "checkpoint.keep_last=9"]
    # all there is to evaluate on: a part of it need not have the end of a document inside a row
    whole = "evaluation.batches=99"
    variants = {name: [*common, whole, *mode, f"run.name={name}"] for name, mode in MODES.items()}
    variants |= {name: [str(bert), *common, *mode, f"run.name={name}"] for name, mode in MASKED.items()}
    train_many(2, [[*variant, f"run.output_dir={folder / 'two'}"] for variant in variants.values()])
    train_many(1, [[*variants[name], f"run.output_dir={folder / 'one'}"] for name in ON_BOTH])
    for name in RESUMED:  # as a kill just after the save inside the second stage leaves it
        shutil.copytree(folder / "two" / name, folder / "again" / name)
        shutil.rmtree(folder / "again" / name / "checkpoints/step_00000012")
    again = [f"run.output_dir={folder / 'again'}", "checkpoint.resume=must"]
    train_many(2, [[*variants[name], *again] for name in RESUMED])
    return folder


@pytest.mark.parametrize("name", ["mask", "mask-documents", "bert-words"])
def test_steps_are_as_planned_in_rows_of_blocks(runs: Path, base: Path, name: str) -> None:
    plan = build_plan(load_recipe([base], ["data.sequence_mode=mask"]), 2)
    assert [stage.rows_per_step for stage in plan.stages] == [6, 4, 12]
    for line in steps(runs / "two" / name):
        stage = plan.stage_at(line["step"] - 1)
        assert line["tokens"] == stage.tokens_before(line["step"])
        assert (line["seq_len"], line["batch_size"]) == (stage.seq_len, stage.batch_size)
        assert line["micro_batch_size"] * line["grad_accum_steps"] * 2 == stage.rows_per_step


@pytest.mark.parametrize("name", [*MODES, *MASKED])
def test_they_learn(runs: Path, name: str) -> None:
    losses = [line["loss"] for line in steps(runs / "two" / name)]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("name", ON_BOTH)
def test_one_rank_and_two_learn_the_same(runs: Path, name: str) -> None:
    one, two = metrics(runs / "one" / name), metrics(runs / "two" / name)
    for key in ("loss", "val_loss"):
        found = [[line[key] for line in lines if key in line] for lines in (one, two)]
        assert found[0] == pytest.approx(found[1], abs=1e-4)


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_goes_on_to_the_bit(runs: Path, name: str) -> None:
    assert metrics(runs / "again" / name) == metrics(runs / "two" / name)


def test_evaluation_confines_attention_as_training_does(runs: Path) -> None:
    """The untrained model judges the same text at length 16 and 64; only what it may look at differs."""
    first = {
        name: {line["seq_len"]: line["val_loss"] for line in metrics(runs / "two" / name) if line["step"] == 0}
        for name in MODES
    }
    # Llama sees distances alone, so that blocks are to it what pieces are
    assert first["mask"][16] == pytest.approx(first["chunk"][16], abs=1e-5)
    assert first["mask"][64] == pytest.approx(first["chunk"][64], abs=1e-5)
    for seq_len in (16, 64):
        # few rows hold the end of a document, and weights that know nothing lose little by it: no number is large
        documents = first["chunk-documents"][seq_len]
        assert abs(first["mask-documents"][seq_len] - documents) < abs(first["chunk"][seq_len] - documents) / 5


def test_an_exported_encoder_gives_the_runs_loss_and_fills_in_masks(runs: Path, tmp_path: Path) -> None:
    run, out = runs / "two/bert", tmp_path / "out"
    export_run(run, out)
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)
    recipe = load_recipe([run / "config.yaml"])
    tokens, _ = open_corpus(Path(str(recipe.data.validation[0].path)))
    available = (tokens.num_tokens - 1) // 64
    windows = min(4 * 2, available)
    starts = [index * available // windows * 64 for index in range(windows)]
    rows = np.stack([tokens.tokens[start : start + 64] for start in starts]).astype(np.int64)
    hidden = tokenizer_masking(tokenizer, 0.15, whole_words=False)(rows, np.arange(windows), (recipe.run.seed, 1))
    labels = np.full_like(rows, -100)
    np.put_along_axis(labels, hidden.positions, hidden.targets, axis=1)
    with torch.no_grad():
        loss = model(input_ids=torch.from_numpy(hidden.input_ids), labels=torch.from_numpy(labels)).loss
    assert loss.item() == pytest.approx(metrics(run)[-1]["val_loss"], abs=1e-5)
    filled = continue_text(out, f"def{tokenizer.mask_token}main() -> None:", 5)
    assert filled.startswith("def")
    assert filled.endswith("main() -> None:")
    with pytest.raises(UserError, match=r"fills in what is hidden; write <\|mask\|> for a token to be filled in"):
        continue_text(out, "def main() -> None:", 5)


def test_the_finder_sweeps_blocks_documents_and_masked_tokens(
    base: Path, bert: Path, rank_server: RankServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sweeps")
    jobs = folder / "jobs.json"
    output = f"run.output_dir={folder}"
    variants = [[[str(base)], [*MODES["mask-documents"], output]], [[str(bert)], [*MASKED["bert-words"], output]]]
    jobs.write_text(json.dumps(variants), encoding="utf-8")
    result = rank_server.run(2, ROOT / "tests/runs/sweeps.py", str(jobs))
    assert result.returncode == 0, result.stdout + result.stderr
    for first, _, second, third in (rank for job in json.loads((folder / "results.json").read_text()) for rank in job):
        assert len(first[1]) == 4
        assert all(math.isfinite(loss) for loss in first[1])
        assert first == second == third
