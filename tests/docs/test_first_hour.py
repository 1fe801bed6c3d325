"""The first-hour page, command by command, as a reader would run it; only model and run are made small."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from launches import ROOT, free_port
from records import metrics
from texts import write_texts

PAGE = ROOT / "docs/first-hour.md"
# 10 steps of a model that a CPU trains in seconds
SMALL = [
    *("model.config.hidden_size=32", "model.config.intermediate_size=64", "model.config.num_hidden_layers=1"),
    *("model.config.num_attention_heads=2", "model.config.num_key_value_heads=2"),
    *("curriculum.total_tokens=163_840", "evaluation.batches=1"),
]
# a limit for what hangs, not for what a busy machine delays
SECONDS = 900


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def environment() -> dict[str, str]:
    # what activating the environment does
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def arguments(command: str) -> list[str]:
    words = shlex.split(command)
    small = SMALL if words[0] in ("deepspeed", "ds-pretrain") and "ds_configs/my_data.yaml" in words else []
    if words[0] == "deepspeed":
        words[1:1] = ["--master_port", str(free_port())]
    if words[:2] == ["ds-pretrain", "launch"]:
        return [*words, *small, "--", "--master_port", str(free_port())]
    return [*words, *small]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments(command), cwd=folder, env=environment(), capture_output=True, text=True, timeout=SECONDS, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with a folder of the reader's own text, prepared by the page's first command."""
    clone = tmp_path_factory.mktemp("clone")
    for part in ("ds_configs", "launch"):
        shutil.copytree(ROOT / part, clone / part)
    write_texts(clone / "my_texts", 1_500_000)
    done = run(commands()[1].replace("--validation 0.01", "--validation 0.1"), clone)
    assert done.returncode == 0, done.stderr
    assert "data/mine-val:" in done.stdout
    return clone


def test_the_page_has_the_commands_that_these_tests_run() -> None:
    assert [" ".join(shlex.split(command)[:2]) for command in commands()] == [
        ". .venv/bin/activate",
        "ds-pretrain prepare",
        "ds-pretrain plan",
        "ds-pretrain plan",
        "deepspeed launch/pretrain.py",
        "ds-pretrain launch",
        "ds-pretrain plan",
        "deepspeed --num_gpus",
        "ds-pretrain export",
        "ds-pretrain sample",
    ]


def test_plan_shows_the_stages_and_refuses_mistakes_at_once(folder: Path) -> None:
    _, _, plan, wrong, *_ = commands()
    shown = run(plan, folder)
    assert shown.returncode == 0, shown.stderr
    assert "10 steps, 163,840 tokens" in shown.stdout
    refused = run(wrong, folder)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[1:] == [
        "  curriculum.stages.1.seq_len: found 1024; allowed: up to data.max_seq_len, 512; shorten it or raise "
        "data.max_seq_len",
        "  optimizer.lrr: unknown key; allowed: type, lr, betas, eps, weight_decay, momentum, adam_multiplier, "
        "decay_embeddings (did you mean 'lr'?)",
    ]
    assert not (folder / "runs").exists()


def wait_for_steps(run_folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until so many steps stand in metrics.jsonl, as a person watching would wait."""
    deadline = time.monotonic() + SECONDS
    path = run_folder / "metrics.jsonl"
    while not path.is_file() or path.read_text(encoding="utf-8").count('"loss"') < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ranks_of(name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if f"run.name={name}" in words:
            found.append(process)
    return found


def stop(command: str, folder: Path, number: signal.Signals, steps: int) -> str:
    """Starts a run under ``ds-pretrain launch``, stops it, and gives what it printed."""
    process = subprocess.Popen(
        arguments(command), cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wait_for_steps(folder / "runs/stopped", steps, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert ranks_of("stopped") == []
    return output


def test_train_stop_continue_and_export(folder: Path) -> None:
    *_, train, launch, plan_two, train_two, export, sample = commands()
    trained = run(train, folder)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    for name in (
        "config.yaml",
        "plan.json",
        "deepspeed/stage_00.json",
        "metrics.jsonl",
        "events.jsonl",
        "deepspeed.log",
    ):
        assert (folder / "runs/mine" / name).is_file(), name
    again = run(train, folder)
    assert again.returncode == 0
    assert "runs/mine: finished at step 10, nothing left to train" in again.stdout

    first = stop(launch, folder, signal.SIGTERM, 2)
    saved = int(re.findall(r"saved at step (\d+) of 10", first)[0])
    assert (folder / f"runs/stopped/checkpoints/step_{saved:08d}").is_dir()
    second = stop(launch, folder, signal.SIGINT, saved + 1)
    (continued,) = re.findall(r"to continue: (.*)", second)
    assert shlex.split(continued)[:4] == ["deepspeed", "--num_gpus", "1", "launch/pretrain.py"]
    done = run(continued, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    # the run that was stopped twice is the run that never was
    assert metrics(folder / "runs/stopped") == metrics(folder / "runs/mine")

    assert run(plan_two, folder).returncode == 0
    two = run(train_two, folder)
    assert two.returncode == 0, two.stdout + two.stderr
    losses = [[line["loss"] for line in metrics(folder / "runs" / name) if "loss" in line] for name in ("mine", "two")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)

    exported = run(export, folder)
    assert exported.returncode == 0, exported.stderr
    sampled = run(sample, folder)
    assert sampled.returncode == 0, sampled.stderr
    assert sampled.stdout.startswith("Once upon a time")
