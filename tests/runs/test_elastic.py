"""A run goes on with another number of ranks, or at another ZeRO stage, as if nothing had happened."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from launches import Many
from records import steps

from ds_pretrain.engine.checkpoint_files import files_of

# inside the second stage; what follows is four steps of it and the whole third stage
STOP = 5
LAST = 12
FROZEN = (
    "curriculum.stages=["
    "{step: 0, seq_len: 16, batch_size: 24, warmup_steps: 2, trainable_layers: 1}, "
    "{step: 4, seq_len: 32, batch_size: 8, warmup_steps: 2, trainable_layers: 2}, "
    "{step: 8, seq_len: 64, batch_size: 12, warmup_steps: 4}]"
)
# name: ranks that save, ranks that go on, overrides, and more that come when it goes on
CASES: dict[str, tuple[int, int, list[str], list[str]]] = {
    "zero1": (2, 1, ["deepspeed.zero_stage=1"], []),
    "zero2": (2, 1, ["deepspeed.zero_stage=2"], []),
    "zero3": (2, 1, ["deepspeed.zero_stage=3"], []),
    "bf16": (2, 1, ["precision=bf16"], []),
    "frozen1": (2, 1, [FROZEN, "deepspeed.zero_stage=1"], []),
    "frozen3": (2, 1, [FROZEN, "deepspeed.zero_stage=3"], []),
    "from1to3": (2, 1, ["deepspeed.zero_stage=1"], ["deepspeed.zero_stage=3"]),
}
COMMON = [f"checkpoint.every_steps={STOP}", "checkpoint.keep_last=99", "evaluation.every_steps=null"]


def tree(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_of(folder)}


@pytest.fixture(scope="module")
def runs(train_many: Many, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    train_many(
        2,
        [
            [*COMMON, f"run.output_dir={folder / 'unbroken'}", f"run.name={name}", *overrides]
            for name, (_, _, overrides, _) in CASES.items()
        ],
    )
    broken = []
    for name, (_, _, overrides, more) in CASES.items():
        shutil.copytree(folder / "unbroken" / name, folder / "moved" / name)
        for later in (10, LAST):
            shutil.rmtree(folder / f"moved/{name}/checkpoints/step_{later:08d}")
        common = [*COMMON, f"run.output_dir={folder / 'moved'}", f"run.name={name}", "checkpoint.resume=must"]
        broken.append([*common, *overrides, *more])
    result = train_many(1, broken)
    (folder / "output.txt").write_text(result.stdout, encoding="utf-8")
    return folder


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in steps(run)]


@pytest.mark.parametrize("name", CASES)
def test_the_losses_go_on(runs: Path, name: str) -> None:
    expected, found = losses(runs / "unbroken" / name), losses(runs / "moved" / name)
    assert len(found) == LAST
    tolerance = 2e-2 if name == "bf16" else 1e-3
    worst = max(abs(a - b) for a, b in zip(expected, found, strict=True))
    assert worst < tolerance
    # a comparison that can fail: the same losses one step off are further away than that, taken over all the steps
    assert max(abs(a - b) for a, b in zip(expected[STOP:-1], found[STOP + 1 :], strict=True)) > tolerance
