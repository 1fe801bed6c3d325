from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support import recipe
from typer.testing import CliRunner

from ds_pretrain.cli import app
from ds_pretrain.config import Recipe, dump_recipe
from ds_pretrain.curriculum import build_plan
from ds_pretrain.curriculum.skips import Skip
from ds_pretrain.data.indexed import TokenFile
from ds_pretrain.data.loader import step_batch
from ds_pretrain.data.prepare import prepare
from ds_pretrain.data.stream import TokenStream
from ds_pretrain.data.tokenizer import load_tokenizer
from ds_pretrain.errors import UserError
from ds_pretrain.train.data_sample import sample_step


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Two sources of numbered lines, each line a document, and stages of two lengths."""
    folder = tmp_path_factory.mktemp("sampled")
    for name in ("one", "two"):
        lines = [json.dumps({"text": f"{name} {number} " * 8}) for number in range(300)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    prepare([str(folder / "one.jsonl")], folder / "one", tokenizer="train:300")
    manifest = json.loads((folder / "one.manifest.json").read_text(encoding="utf-8"))
    tokenizer = str(folder / manifest["tokenizer"])
    prepare([str(folder / "two.jsonl")], folder / "two", tokenizer=tokenizer)
    stages = [{"step": 0, "seq_len": 16, "batch_size": 8}, {"step": 6, "seq_len": 64, "batch_size": 4}]
    return recipe(
        run={"output_dir": str(folder / "runs"), "name": "sampled"},
        data={"train": [{"path": str(folder / "one"), "weight": 3}, {"path": str(folder / "two")}]},
        curriculum={"total_steps": 12, "stages": stages},
    )


def trained_on(mixed: Recipe, step: int, ranks: int, skips: tuple[Skip, ...] = ()) -> list[str]:
    """The texts that the loader gives, rank by rank."""
    files = [TokenFile.open(Path(str(source.path))) for source in mixed.data.train]
    streams = [TokenStream(file.tokens, 64, mixed.run.seed) for file in files]
    prefix = Path(str(mixed.data.train[0].path))
    manifest = json.loads(Path(f"{prefix}.manifest.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(str(prefix.parent / manifest["tokenizer"]))
    stages = build_plan(mixed, ranks).stages
    batches = [
        step_batch(streams, stages, step - 1, seed=mixed.run.seed, rank=rank, data_parallel_size=ranks, skips=skips)
        for rank in range(ranks)
    ]
    return [tokenizer.decode(row) for one in batches for part in one.micro_batches for row in part.input_ids.tolist()]


@pytest.mark.parametrize("step", [1, 6, 7, 12])
def test_the_text_is_what_the_loader_gives_with_where_it_comes_from(mixed: Recipe, step: int) -> None:
    rows = sample_step(mixed, step, world_size=2)
    assert [row.text for row in rows] == trained_on(mixed, step, 2)
    assert {row.source for row in rows} == {"one", "two"}
    assert {row.stage for row in rows} == {0 if step <= 6 else 1}
    for row in rows:  # a document is a line "one 17 one 17 …", so a row tells its source and its document
        assert row.source in row.text
        assert f"{row.document} " in row.text or f"{row.document + 1} " in row.text
    second = sample_step(mixed, step, rank=1, world_size=2)
    assert second == [row for row in rows if row.rank == 1]


def test_rollbacks_of_the_run_are_taken_into_account(mixed: Recipe) -> None:
    before = [row.text for row in sample_step(mixed, 5)]
    folder = Path(mixed.run.output_dir) / "sampled"
    folder.mkdir(parents=True)
    history = {"count": 1, "rollbacks": [{"from_step": 7, "target_step": 3, "lr_factor": 0.5, "reason": "a spike"}]}
    (folder / "recovery.json").write_text(json.dumps(history), encoding="utf-8")
    after = [row.text for row in sample_step(mixed, 5)]
    (folder / "recovery.json").unlink()
    assert after == trained_on(mixed, 5, 1, (Skip(3, 4),))
    assert after != before
    # the file is lost: the run itself reads the copy in its checkpoint
    checkpoint = folder / "checkpoints/step_00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps({"step": 10, "recovery": history}), encoding="utf-8")
    assert [row.text for row in sample_step(mixed, 5)] == after
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("recovery.json", "{", "recovery.json: cannot be read"),
        ("plan.json", "[]", "plan.json: does not say the number of ranks"),
        ("plan.json", '{"world_size": "two"}', "plan.json: does not say the number of ranks"),
    ],
)
def test_a_damaged_file_of_the_run_is_named(mixed: Recipe, name: str, text: str, message: str) -> None:
    folder = Path(mixed.run.output_dir) / "sampled"
    folder.mkdir(parents=True)
    (folder / name).write_text(text, encoding="utf-8")
    try:
        with pytest.raises(UserError, match=message):
            sample_step(mixed, 5)
    finally:
        shutil.rmtree(folder)


def test_what_the_run_does_not_have_is_refused(mixed: Recipe) -> None:
    with pytest.raises(UserError, match="--step: found 13; allowed: 1 to 12"):
        sample_step(mixed, 13)
    with pytest.raises(UserError, match="--rank: found 2; allowed: 0 to 1"):
        sample_step(mixed, 3, rank=2, world_size=2)


def test_the_command_prints_every_row(mixed: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(mixed), encoding="utf-8")
    result = CliRunner().invoke(app, ["data", "sample", str(file), "--step", "7"])
    assert result.exit_code == 0, result.output
    assert result.output.count("--- rank 0, row ") == 4
    assert all(row.text in result.output for row in sample_step(mixed, 7))
