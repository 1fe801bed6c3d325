"""``ds-pretrain prepare`` and ``ds-pretrain data``: what they print, write and refuse."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from config.test_parse import recipe_data

from ds_pretrain.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the command in this process, in a folder with a little text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    Path("texts.jsonl").write_text("".join(json.dumps({"text": f"text {number % 30}"}) + "\n" for number in range(40)))

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ds-pretrain", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        code = left.value.code
        assert code is None or isinstance(code, int)
        return (code or 0, *capsys.readouterr())

    return command


PREPARE = ("prepare", "--input", "texts.jsonl", "--tokenizer", "train:270", "--output", "out/mine", "--workers", 1)


def test_shards_are_prepared_merged_and_looked_at(run: Run) -> None:
    options = ("--deduplicate", "--max-characters", 6, "--validation", 0.3)
    for index in range(2):
        code, out, _ = run(*PREPARE, *options, "--shard", f"{index}/2")
        assert code == 0
        assert f"shard {index}/2: " in out
        assert "ds-pretrain data merge out/mine" in out
    code, out, _ = run("data", "merge", "out/mine")
    assert code == 0
    assert "tokenizer: out/mine-tokenizer\n" in out
    assert "documents left out: 20 too long, 10 duplicate\n" in out
    code, out, _ = run("data", "inspect", "out/mine-val", "--verify")
    assert code == 0
    assert "left out: 20 too long, 10 duplicate\n" in out
    assert "verified: checksums are right; largest token id" in out
    assert "document 0, " in out
    assert "'text " in out
    assert run(*PREPARE, *options)[2].startswith("ds-pretrain: out/mine.idx: exists already; choose another output")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*PREPARE, "--shard", "2/2"), "--shard: found '2/2'; allowed: INDEX/COUNT, the index from 0: 0/2 to 1/2"),
        ((*PREPARE, "--text-field", "body"), "texts.jsonl: line 1: no field 'body'; its fields: 'text'"),
        ((*PREPARE, "--min-characters", 9, "--max-characters", 8), "max_characters: found 8; allowed: at least"),
        ((*PREPARE, "--min-characters", 9), "no documents to train on"),
        (("data", "merge", "out/mine"), "out/mine.partial: no shards"),
        (("data", "inspect", "nowhere"), "nowhere.idx: not found"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(run: Run, arguments: tuple[object, ...], message: str) -> None:
    code, out, error = run(*arguments)
    assert (code, out) == (2, "")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(Path().glob("out/*.bin"))


def test_launch_refuses_a_model_without_the_corpuss_entries_before_anything_starts(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> int:
        raise AssertionError("started")

    monkeypatch.setattr("ds_pretrain.launcher.launch_run", never)
    assert run(*PREPARE)[0] == 0
    data = recipe_data("data.max_seq_len=64")
    data["data"]["train"] = "out/mine"
    data["model"]["config"] = {"vocab_size": 256}
    Path("recipe.yaml").write_text(yaml.safe_dump(data))
    code, _, error = run("launch", "recipe.yaml")
    assert code == 2
    assert "data.train.0.path: found out/mine, made with a vocabulary of " in error
    assert "but model.config.vocab_size has 256 entries" in error
