"""The ``ds-pretrain`` command: what it prints, writes and refuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from config.test_parse import BAD, recipe_data
from launches import LAUNCH_SECONDS, ROOT, deepspeed_command

from ds_pretrain.cli import main
from ds_pretrain.engine.checkpoint_files import publish, record_files

SHIPPED = sorted((ROOT / "ds_configs").glob("*.yaml"))


class Answer(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


Run = Callable[..., Answer]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def command(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["ds-pretrain", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        code = left.value.code
        assert code is None or isinstance(code, int)
        return Answer(code or 0, *capsys.readouterr())

    return command


@pytest.fixture
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a sound recipe under changes such as ``optimizer.lr=1``, in a folder of its own."""

    def write(*changes: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path_factory.mktemp("recipes") / name
        path.write_text(yaml.safe_dump(recipe_data(*changes)), encoding="utf-8")
        return path

    return write


RecipeFile = Callable[..., Path]
FOUR_STEPS = [
    "curriculum={total_steps: 4, batch_size: 4}",
    "data.max_seq_len=16",
    "optimizer.lr=0.01",
    "schedule={type: linear, min_lr_ratio: 0, warmup: {steps: 2}}",
]


def test_there_are_at_least_twenty_bad_recipes() -> None:
    assert len(BAD) >= 20


@pytest.mark.parametrize(("change", "message"), BAD, ids=[change for change, _ in BAD])
def test_a_bad_recipe_is_one_message_and_exit_code_2(
    run: Run, recipe_file: RecipeFile, change: str, message: str
) -> None:
    path = recipe_file(change)
    assert run("plan", path) == Answer(2, "", f"ds-pretrain: {path}: 1 problem\n  {message}\n")


# sound as recipes, but not to be planned as asked
UNPLANNABLE = [
    (
        ["curriculum.batch_size=9", "--world-size", "2"],
        "curriculum.batch_size: found 9, which 2 ranks cannot share equally; allowed: a multiple of 2, "
        "e.g. 8 or 10, or a number of ranks that divides 9",
    ),
    (
        ["curriculum.batch_size=8", "train.micro_batch_size=3"],
        "curriculum.batch_size: found 8, which is no whole number of 1 rank x micro_batch_size 3; allowed: a multiple "
        "of 3, e.g. 6 or 9, or one of the micro batch sizes 1, 2, 4, 8, or micro_batch_size auto",
    ),
    (
        ["curriculum.total_epochs=2"],
        "curriculum.total_epochs: found 2, but the corpus does not exist yet, so the length of an epoch is not known; "
        "prepare the corpus first, or give total_tokens or total_steps",
    ),
    (
        ["deepspeed.extra={train_batch_size: 3}", "curriculum.batch_size=8"],
        "deepspeed.extra.train_batch_size: found 3, but recipe and plan say 8; remove it, "
        "or change the recipe's own key for it",
    ),
    (
        ["deepspeed.extra={amp: {}}"],
        "deepspeed.extra.amp: is not allowed: precision takes its place; remove it",
    ),
    (["optimizer.lr"], "there is no such file"),
    (["=3"], "found override '=3'; allowed: key.path=value, e.g. optimizer.lr=1e-3"),
]


@pytest.mark.parametrize(("arguments", "message"), UNPLANNABLE, ids=[arguments[0] for arguments, _ in UNPLANNABLE])
def test_what_cannot_be_planned_is_refused_alike(
    run: Run, recipe_file: RecipeFile, arguments: list[str], message: str
) -> None:
    path = recipe_file()
    answer = run("plan", path, *arguments)
    assert (answer.code, answer.out) == (2, "")
    heading, *problems = answer.err.splitlines()
    # a second file makes the heading, and the problem, name which
    second = arguments[0] if message == "there is no such file" else None
    assert heading == f"ds-pretrain: {path}{f', {second}' if second else ''}: 1 problem"
    assert problems == [f"  {second}: {message}" if second else f"  {message}"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "bf8"], "ds-pretrain: --precision: found 'bf8'; allowed: bf16, fp16, fp32\n"),
        (
            ["--plot", "plan.gif"],
            "ds-pretrain: --plot: found 'plan.gif'; allowed: a file that ends in .png, .svg, .pdf\n",
        ),
        (["--lr-csv", "none/lr.csv"], "ds-pretrain: none/lr.csv: cannot be written (No such file or directory)\n"),
    ],
)
def test_a_bad_option_is_one_message(run: Run, recipe_file: RecipeFile, arguments: list[str], words: str) -> None:
    assert run("plan", recipe_file(), *arguments) == Answer(2, "", words)


@pytest.mark.parametrize("arguments", [["--worldsize", "2"], ["--world-size", "0"], ["--world-size", "two"]])
def test_a_mistyped_option_is_exit_code_2(run: Run, recipe_file: RecipeFile, arguments: list[str]) -> None:
    answer = run("plan", recipe_file(), *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert arguments[0] in answer.err


def test_plan_without_a_recipe_says_what_to_name(run: Run) -> None:
    answer = run("plan")
    assert (answer.code, answer.out) == (2, "")
    assert "no recipe given; name a YAML file, e.g. ds_configs/quickstart.yaml" in answer.err


def test_no_traceback_from_the_command_itself(recipe_file: RecipeFile) -> None:
    path = recipe_file("optimizer.lr=0", "run.seed=-1")
    command = [sys.executable, "-c", "from ds_pretrain.cli import main; main()", "plan", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=path.parent)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.splitlines() == [
        f"ds-pretrain: {path}: 2 problems",
        "  run.seed: found -1; allowed: a number of at least 0",
        "  optimizer.lr: found 0; allowed: a number above 0",
    ]


def test_every_rank_meets_and_one_prints(recipe_file: RecipeFile) -> None:
    path = recipe_file("curriculum.batch_size=9", "optimizer.lr=0")
    command = deepspeed_command(2, ROOT / "launch/pretrain.py", "--config", str(path))
    found = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=path.parent, timeout=LAUNCH_SECONDS
    )
    assert found.returncode == 2
    assert "Traceback" not in found.stderr
    lines = found.stderr.splitlines()
    first = lines.index(f"ds_pretrain: {path}: 2 problems")
    assert lines[first + 1].startswith("  curriculum.batch_size: found 9, which 2 ranks cannot share equally")
    assert lines[first + 2] == "  optimizer.lr: found 0; allowed: a number above 0"
    assert found.stderr.count("2 problems") == 1
    assert sorted(file.name for file in path.parent.iterdir()) == ["recipe.yaml"]


def test_the_table_shows_every_stage(run: Run) -> None:
    answer = run("plan", ROOT / "ds_configs/quickstart.yaml")
    assert (answer.code, answer.err) == (0, "")
    rows = [line.split() for line in answer.out.splitlines()]
    found = [(row[0], row[3], row[4]) for row in rows if row and row[0].isdigit() and len(row) == 13]
    assert found == [("0", "64", "64"), ("1", "128", "32"), ("2", "256", "16"), ("3", "512", "8")]
    assert max(len(line) for line in answer.out.splitlines()) <= 80


def test_nothing_is_written_unless_asked_for(run: Run, recipe_file: RecipeFile, tmp_path: Path) -> None:
    path = recipe_file(*FOUR_STEPS)
    assert run("plan", path).code == 0
    assert run("plan", path, "--json").code == 0
    assert list(tmp_path.iterdir()) == []
    assert [file.name for file in path.parent.iterdir()] == ["recipe.yaml"]


def test_json_stands_alone_and_warnings_beside_it(run: Run, recipe_file: RecipeFile) -> None:
    path = recipe_file(*FOUR_STEPS, "curriculum.stages=[{step: 0}, {step: 7}]", "deepspeed.zero_stage=0")
    answer = run("plan", path, "--json", "--precision", "fp16")
    assert answer.code == 0
    document = json.loads(answer.out)
    warnings = [
        "curriculum.stages.1 would start at or after the end of the run and is dropped",
        "deepspeed.zero_stage 0 is raised to 1: DeepSpeed 0.19.8 mis-scales fp16 gradients at stage 0",
        "stage 0: the warmup of 2 steps is shorter than the 20 steps, 1 / (1 - beta2), over which Adam averages "
        "squared gradients; lengthen schedule.warmup, or the stage's warmup_steps",
        "stage 0: 4 steps are few for a stage (50 or more); join it with its neighbour",
    ]
    assert answer.err.splitlines() == [f"warning: {warning}" for warning in warnings]
    assert document["warnings"] == warnings
    assert (document["precision"], document["assumed"]) == ("fp16", {})


def test_what_cannot_be_known_is_stated_as_assumed(run: Run, recipe_file: RecipeFile) -> None:
    path = recipe_file(*FOUR_STEPS)
    document = json.loads(run("plan", path, "--json").out)
    assert document["precision"] == "bf16"
    assert list(document["assumed"]) == ["precision"]
    assert "bf16 (assumed)" in run("plan", path).out
    stated = json.loads(run("plan", path, "precision=fp32", "--json").out)
    assert (stated["precision"], stated["assumed"]) == ("fp32", {})


def test_out_writes_what_json_prints(run: Run, recipe_file: RecipeFile, tmp_path: Path) -> None:
    path = recipe_file(*FOUR_STEPS, "curriculum.stages=[{step: 0, seq_len: 8}, {step: 2}]")
    answer = run("plan", path, "--json", "--out", "plans", "--world-size", "2")
    document = json.loads(answer.out)
    assert document["world_size"] == 2
    files = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file())
    assert files == ["plans/deepspeed/stage_00.json", "plans/deepspeed/stage_01.json", "plans/plan.json"]
    assert (tmp_path / "plans/plan.json").read_text(encoding="utf-8") == answer.out
    for stage, name in zip(document["stages"], files, strict=False):
        assert json.loads((tmp_path / name).read_text(encoding="utf-8")) == stage["deepspeed_config"]


def test_lr_csv_has_a_line_for_every_step(run: Run, recipe_file: RecipeFile, tmp_path: Path) -> None:
    path = recipe_file(*FOUR_STEPS, "curriculum.stages=[{step: 0, seq_len: 8}, {step: 3, warmup_steps: 0}]")
    assert run("plan", path, "--lr-csv", "lr.csv").code == 0
    with (tmp_path / "lr.csv").open(encoding="utf-8", newline="") as file:
        heading, *rows = csv.reader(file)
    assert heading == ["step", "tokens", "stage", "lr"]
    # 4 x 8 tokens a step, then 4 x 16; two steps up to 0.01, then a line from 64 tokens down to 0 at 160
    assert [row[:3] for row in rows] == [["0", "0", "0"], ["1", "32", "0"], ["2", "64", "0"], ["3", "96", "1"]]
    assert [float(row[3]) for row in rows] == pytest.approx([0.005, 0.01, 0.01, 0.01 * (1 - 32 / 96)], rel=1e-15)


def test_recipes_as_arguments_and_by_option(run: Run, recipe_file: RecipeFile) -> None:
    first = recipe_file(*FOUR_STEPS)
    second = recipe_file(name="second.yaml")
    second.write_text("optimizer: {lr: 0.5}\nrun: {name: second}\n", encoding="utf-8")
    third = recipe_file(name="third.yaml")
    third.write_text("run: {name: third}\n", encoding="utf-8")
    override = "curriculum.total_steps=9"
    answers = {
        run("plan", "--json", *arguments)
        for arguments in (
            [first, second, third, override],
            [override, first, second, third],
            ["--config", first, "--config", second, "--config", third, override],
            ["--config", first, second, override, third],
            [second, third, override, "--config", first],
        )
    }
    (answer,) = answers
    document = json.loads(answer.out)
    assert (answer.code, document["total_steps"], document["stages"][0]["peak_lr"]) == (0, 9, 0.5)
    assert run("plan", first, second, third).out.startswith("third: ")
    assert run("plan", first, third, second).out.startswith("second: ")


def test_groups_show_rates_and_what_was_assumed(run: Run, recipe_file: RecipeFile) -> None:
    path = recipe_file(
        *FOUR_STEPS,
        "model.config={n_layer: 2, n_embd: 32, n_head: 2}",
        "curriculum.stages=[{step: 0, lr_multiplier: 4}, {step: 2, lr_multiplier: 2}]",
        "param_groups={kind: layerwise, decay: 0.5}",
    )
    answer = run("plan", path, "--groups")
    assert answer.code == 0
    table = [line.split() for line in answer.out.splitlines() if ".decay" in line or ".no_decay" in line]
    # a GPT-2 layer of width 32: 12 x 32^2 weights, 9 x 32 biases and 4 x 32 of norms; 16 positions
    assert table == [
        ["head.no_decay", "head", "64", "1", "0.04", "0.02", "0"],
        ["layer_1.decay", "1", "12.3k", "0.5", "0.02", "0.01", "0.1"],
        ["layer_1.no_decay", "1", "416", "0.5", "0.02", "0.01", "0"],
        ["layer_0.decay", "0", "12.3k", "0.25", "0.01", "0.005", "0.1"],
        ["layer_0.no_decay", "0", "416", "0.25", "0.01", "0.005", "0"],
        ["embeddings.no_decay", "embeddings", "1.61M", "0.125", "0.005", "0.0025", "0"],
    ]
    assert "vocabulary assumed: 50304: the model's default, as no tokenizer is at hand yet" in answer.out
    assert max(len(line) for line in answer.out.splitlines()) <= 80


def test_groups_in_json_name_every_parameter(run: Run, recipe_file: RecipeFile) -> None:
    path = recipe_file(
        *FOUR_STEPS,
        "model.config={n_layer: 2, n_embd: 32, n_head: 2}",
        "data.train={text: nowhere}",
        "tokenizer.train.vocab_size=500",
        "param_groups={kind: two_group, backbone_multiplier: 0}",
    )
    document = json.loads(run("plan", path, "--groups", "--json").out)
    assert document["assumed"]["vocab_size"].startswith("512: tokenizer.train.vocab_size")
    head, backbone = document["groups"]
    assert head == {
        "name": "head.no_decay",
        "layers": "head",
        "parameters": 64,
        "multiplier": 1.0,
        "peak_lrs": [0.01],
        "trained_since": [[0]],
        "weight_decay": 0.0,
        "parameter_names": ["transformer.ln_f.weight", "transformer.ln_f.bias"],
    }
    assert (backbone["name"], backbone["layers"], backbone["peak_lrs"]) == ("backbone.frozen", "embeddings, 0-1", [0.0])
    assert backbone["parameters"] == (512 + 16) * 32 + 2 * (12 * 32**2 + 13 * 32)
    assert len(backbone["parameter_names"]) == 2 + 2 * 12
    assert "groups" not in json.loads(run("plan", path, "--json").out)


def test_a_pattern_that_names_nothing_is_found_by_the_plan(run: Run, recipe_file: RecipeFile) -> None:
    path = recipe_file(*FOUR_STEPS, "param_groups={kind: patterns, table: {wpe: 0.1}}")
    assert run("plan", path).code == 0
    answer = run("plan", path, "--groups")
    assert (answer.code, answer.out) == (2, "")
    assert "param_groups.table: found pattern 'wpe', which decides nothing" in answer.err


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_plans(run: Run, path: Path) -> None:
    answer = run("plan", path, "--json")
    assert answer.code == 0
    # nothing worse than a table that is not the rule's
    assert all(line.startswith("note: ") for line in answer.err.splitlines())
    document: dict[str, Any] = json.loads(answer.out)
    assert document["stages"][-1]["end_tokens"] == document["total_tokens"]


def test_plan_refuses_layers_that_there_are_not(run: Run, recipe_file: RecipeFile) -> None:
    path = recipe_file(
        *FOUR_STEPS,
        "model.config={n_layer: 2, n_embd: 32, n_head: 2}",
        "curriculum.stages=[{step: 0, trainable_layers: 1}, {step: 2, trainable_layers: 3}]",
    )
    message = "stage 1: trainable_layers: found 3, but this gpt2 has 2 layers; allowed: 0 to 2, or leave it out"
    answer = run("plan", path, "--groups")
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    launched = ["launch", str(path), "data.train={text: python-stdlib}", "tokenizer.train.vocab_size=300"]
    command = [sys.executable, "-c", "from ds_pretrain.cli import main; main()", *launched]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=path.parent)
    assert (found.returncode, found.stdout) == (2, "")
    assert message in found.stderr
    assert [file.name for file in path.parent.iterdir()] == ["recipe.yaml"]


def test_groups_say_where_they_are_frozen(run: Run, recipe_file: RecipeFile) -> None:
    path = recipe_file(
        *FOUR_STEPS,
        "model.config={n_layer: 2, n_embd: 32, n_head: 2}",
        "curriculum.stages=[{step: 0, trainable_layers: 1}, {step: 2}]",
        "param_groups={kind: layerwise, decay: 0.5}",
    )
    answer = run("plan", path, "--groups", "--plot", "plan.svg")
    table = [line.split() for line in answer.out.splitlines() if ".decay" in line or ".no_decay" in line]
    assert [row[4:-1] for row in table] == [
        *(["0.01"], ["0.005"], ["0.005"], ["frozen", "0.0025"], ["frozen", "0.0025"], ["frozen", "0.0013"]),
    ]
    assert "embeddings (x 0.125, from stage 1)" in Path("plan.svg").read_text(encoding="utf-8")
    # one group of two ages, where nothing tells layers apart
    document = json.loads(run("plan", path, "param_groups={kind: none, decay: 0.95}", "--groups", "--json").out)
    assert {row["name"]: row["trained_since"] for row in document["groups"]} == {
        "decay": [[0], [0, 1]],
        "no_decay": [[0], [0, 1]],
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["curriculum.stages=[{step: 0, lr_multiplier: 0}]"],
            "curriculum.stages: found lr_multiplier 0 in every stage, so that nothing would be learned; give one of "
            "them more than 0",
        ),
        (
            ["schedule={type: custom, function: useless.zero, min_lr_ratio: 0, warmup: {steps: 0}}"],
            "schedule.type: found custom, whose learning rate is 0 at every step, so that nothing would be learned; "
            "give min_lr_ratio, or another type",
        ),
        (
            ["schedule={type: custom, function: leaves.shape}"],
            "schedule.function: found 'leaves.shape', which cannot be imported: SystemExit: 0",
        ),
        (
            ["schedule={type: custom, function: later.shape}"],
            "schedule.function: found 'later.shape', which cannot be used at 0.5: SystemExit: 7",
        ),
    ],
)
def test_plan_refuses_a_schedule_that_does_nothing(
    run: Run, recipe_file: RecipeFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: list[str], message: str
) -> None:
    (tmp_path / "useless.py").write_text("def zero(progress): return 0.0\n", encoding="utf-8")
    (tmp_path / "leaves.py").write_text("print('gone')\nexit(0)\n", encoding="utf-8")
    (tmp_path / "later.py").write_text(
        "def shape(progress): return exit(7) if progress == 0.5 else 1.0\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    answer = run("plan", recipe_file(*FOUR_STEPS[:3], *changes), "--json")
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err.splitlines()[-1]


def test_plan_refuses_a_schedule_function_that_cannot_be_used(run: Run, recipe_file: Callable[..., Path]) -> None:
    answer = run("plan", recipe_file("schedule={type: custom, function: no_such_package.shape}"))
    assert answer.code == 2
    assert "schedule.function: found 'no_such_package.shape', which cannot be imported: ModuleNotFoundErr" in answer.err


def test_checkpoints_lists_verifies_and_tells_by_its_exit_code(run: Run, tmp_path: Path) -> None:
    refused = run("checkpoints", "nowhere")
    assert (refused.code, refused.err) == (
        2,
        "ds-pretrain: nowhere: not a run's folder (it has no checkpoints); give <run.output_dir>/<run.name>\n",
    )
    folder = tmp_path / "runs/a/checkpoints/.step_00000007.partial"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text('{"step": 7, "tokens": 1234, "world_size": 2}', encoding="utf-8")
    final = folder.with_name("step_00000007")
    publish(folder, final, 7, record_files(folder, ["state.json"]), {"world_size": 2})
    whole = run("checkpoints", "runs/a")
    assert whole.code == 0
    assert whole.out.splitlines()[-2].split("│")[1:-1] == [
        "    7 ",
        "  1,234 ",
        " 44 B ",
        "     2 ",
        "          ",
        " whole     ",
    ]
    (final / "state.json").write_text("{", encoding="utf-8")
    damaged = run("checkpoints", "runs/a")
    assert damaged.code == 1
    assert "runs/a/checkpoints/step_00000007/state.json has 1 bytes instead of 44" in damaged.out
    as_json = run("checkpoints", "runs/a", "--json")
    assert as_json.code == 1
    (document,) = json.loads(as_json.out)
    assert (document["step"], document["whole"], len(document["damage"])) == (7, False, 1)
