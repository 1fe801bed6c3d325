"""A run goes on with another number of ranks, or at another ZeRO stage, as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launches import LAUNCH_SECONDS, ROOT
from records import metrics, steps

from ds_pretrain.engine.consolidate import whole_weights
from ds_pretrain.train.export import export_run

# inside the second stage; what follows is the rest of it and the whole third stage
STOP, AGAIN, LAST = 5, 10, 12
UNFREEZING = (
    "curriculum.stages=["
    "{step: 0, seq_len: 16, batch_size: 24, warmup_steps: 2, trainable_layers: 1}, "
    "{step: 4, seq_len: 32, batch_size: 8, warmup_steps: 2, trainable_layers: 2}, "
    "{step: 8, seq_len: 64, batch_size: 12, warmup_steps: 4}]"
)
BY_TWELVE = "curriculum.stages=[{step: 0, seq_len: 16, batch_size: 24}, {step: 4, seq_len: 32, batch_size: 12}]"
# overrides, and what is given besides when the run goes on; two ranks save, one goes on
FROM_TWO: dict[str, tuple[list[str], list[str]]] = {
    "zero1": ([UNFREEZING, "deepspeed.zero_stage=1"], []),
    "zero3": ([UNFREEZING, "deepspeed.zero_stage=3"], []),
    "bf16": (["precision=bf16"], ["deepspeed.zero_stage=3"]),
}
# and back to two
BACK = ("zero1", "zero3")
# four save, three go on
FROM_FOUR = [BY_TWELVE, "deepspeed.zero_stage=2"]
# a layer turns NaN one step after these; the run goes back to what other ranks saved, weights alone at step 0
BACK_TO = (0, STOP)
NO_PATIENCE = ["safety.max_consecutive_bad_steps=1", "deepspeed.zero_stage=1", UNFREEZING]
# two ranks, of which one is killed half-way through the save of this step
TORN = {"torn": [], "torn-later": ["checkpoint.asynchronous=true"]}
COMMON = [f"checkpoint.every_steps={STOP}", "checkpoint.keep_last=99", "evaluation.every_steps=null"]


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")

    def run(output: str, name: str, *overrides: str) -> list[Any]:
        return [[str(base)], [*COMMON, f"run.output_dir={folder / output}", f"run.name={name}", *overrides]]

    def cut(output: str, copy: str, name: str, step: int) -> dict[str, Any]:
        return {"cut": [str(folder / output / name), str(folder / copy / name), step]}

    must = "checkpoint.resume=must"
    jobs: list[dict[str, Any]] = [
        {"ranks": 2, "runs": [run("unbroken", name, *first) for name, (first, _) in FROM_TWO.items()]},
        {"ranks": 4, "runs": [run("unbroken", "four", *FROM_FOUR)]},
        *(cut("unbroken", "moved", name, STOP) for name in [*FROM_TWO, "four"]),
        {"ranks": 1, "runs": [run("moved", name, *first, *then, must) for name, (first, then) in FROM_TWO.items()]},
        {"ranks": 3, "runs": [run("moved", "four", *FROM_FOUR, must)]},
        *(cut("moved", "back", name, AGAIN) for name in BACK),
        {"ranks": 2, "runs": [run("back", name, *FROM_TWO[name][0], must) for name in BACK]},
    ]
    for step in BACK_TO:
        fault = {"kind": "nan", "rank": 0, "step": step + 1}
        jobs += [
            {"ranks": 2, "runs": [run(f"stayed{step}", "zero1", *NO_PATIENCE)], "fault": fault},
            cut("unbroken", f"nan{step}", "zero1", step),
            {"ranks": 1, "runs": [run(f"nan{step}", "zero1", *NO_PATIENCE)], "fault": fault},
        ]
    for name, more in TORN.items():
        torn = run("torn", name, *FROM_TWO["zero1"][0], *more)
        jobs += [
            {"ranks": 2, "runs": [torn], "fault": {"kind": "torn", "rank": 1, "step": AGAIN}},
            cut("torn", "found", name, AGAIN),
            {"ranks": 2, "runs": [torn]},
        ]
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    command = [sys.executable, str(ROOT / "tests/runs/worlds.py"), str(folder / "jobs.json")]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=LAUNCH_SECONDS, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "output.txt").write_text(result.stdout, encoding="utf-8")
    return folder


def resumed(run: Path) -> list[tuple[int, int]]:
    """Step and number of ranks of every time that a run was continued."""
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [(event["step"], event["world_size"]) for event in map(json.loads, lines) if event["event"] == "resume"]


@pytest.mark.parametrize(
    ("output", "name", "continued"),
    [
        *(("moved", name, [(STOP, 1)]) for name in FROM_TWO),
        ("moved", "four", [(STOP, 3)]),
        *(("back", name, [(STOP, 1), (AGAIN, 2)]) for name in BACK),
    ],
)
def test_losses_rates_and_tokens_go_on(runs: Path, output: str, name: str, continued: list[tuple[int, int]]) -> None:
    assert resumed(runs / output / name) == continued
    expected, found = steps(runs / "unbroken" / name), steps(runs / output / name)
    assert len(found) == LAST
    for key in ("step", "tokens", "stage", "seq_len", "batch_size", "lr", "lr_groups", "epoch"):
        assert [line[key] for line in found] == [line[key] for line in expected]
    before, after = ([line["loss"] for line in lines] for lines in (expected, found))
    tolerance = 2e-2 if name == "bf16" else 1e-3
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) < tolerance
    # the comparison can fail: one step off, the losses of all these steps are not as close as that
    assert max(abs(a - b) for a, b in zip(before[STOP:-1], after[STOP + 1 :], strict=True)) > tolerance


@pytest.mark.parametrize("step", BACK_TO)
def test_a_run_that_moved_goes_back_to_what_the_other_ranks_saved(runs: Path, step: int) -> None:
    run, stayed = runs / f"nan{step}/zero1", runs / f"stayed{step}/zero1"
    recovery = json.loads((run / "recovery.json").read_text(encoding="utf-8"))
    assert [rollback["target_step"] for rollback in recovery["rollbacks"]] == [step]
    assert resumed(run) == [(step, 1)]
    found, expected = ([line for line in steps(where) if line["loss"] is not None] for where in (run, stayed))
    assert [line["step"] for line in found] == [*range(1, step + 2), *range(step + 1, LAST + 1)]
    for key in ("step", "tokens", "lr", "lr_groups", "epoch"):
        assert [line[key] for line in found] == [line[key] for line in expected]
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(found, expected, strict=True)) < 1e-3


@pytest.mark.parametrize("name", TORN)
def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(runs: Path, name: str) -> None:
    found = {path.name for path in (runs / "found" / name / "checkpoints").iterdir()}
    assert found == {"step_00000000", f"step_{STOP:08d}", f".step_{AGAIN:08d}.partial"}
    run = runs / "torn" / name
    assert resumed(run) == [(STOP, 2)]
    assert metrics(run) == metrics(runs / "unbroken/zero1")
    weights, expected = (
        whole_weights(where / f"checkpoints/step_{LAST:08d}") for where in (run, runs / "unbroken/zero1")
    )
    assert weights.keys() == expected.keys()
    assert all(bool((weights[key] == expected[key]).all()) for key in expected)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        f"step_{step:08d}" for step in (0, STOP, AGAIN, LAST)
    }


def test_the_start_tells_what_is_different(runs: Path) -> None:
    output = (runs / "output.txt").read_text(encoding="utf-8")
    assert "note: saved by 2 rank(s) at ZeRO 1, continued by 1 at ZeRO 3: " in output
    assert "note: saved by 4 rank(s) at ZeRO 2, continued by 3 at ZeRO 2: " in output
    assert "note: changed since the checkpoint: deepspeed.zero_stage: 1 in the run, 3 now" in output


@pytest.mark.parametrize(("output", "name"), [("moved", "four"), ("back", "zero3"), ("moved", "bf16")])
def test_a_run_that_moved_is_exported(runs: Path, tmp_path: Path, output: str, name: str) -> None:
    from transformers import AutoModelForCausalLM

    export_run(runs / output / name, tmp_path / "export")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    weights = whole_weights(runs / output / name / f"checkpoints/step_{LAST:08d}")
    for key, parameter in model.named_parameters():
        assert bool((parameter == weights[f"model.{key}"]).all()), key
