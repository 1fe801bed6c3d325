"""Groups of their own learning rate on two gloo ranks, over all ZeRO stages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from launches import Many
from records import metrics, steps

from ds_pretrain.engine.consolidate import whole_weights

LAYERWISE = ["param_groups.kind=layerwise", "param_groups.decay=0.5"]
FROZEN = ["param_groups.kind=patterns", "param_groups.table={'*.layers.0.*': 0, '*norm*': 0.5}"]
SAVED = ["checkpoint.every_steps=6", "checkpoint.keep_last=9"]
FROZEN_CASES = [(1, "fp32"), (1, "bf16"), (3, "bf16")]


@pytest.fixture(scope="module")
def runs(train_many: Many, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("groups")
    output = f"run.output_dir={folder}"
    layerwise = [[output, f"run.name=zero{zero}", f"deepspeed.zero_stage={zero}", *LAYERWISE] for zero in range(4)]
    frozen = [
        [
            output,
            f"run.name=frozen{zero}-{precision}",
            f"deepspeed.zero_stage={zero}",
            f"precision={precision}",
            *FROZEN,
            *SAVED,
        ]
        for zero, precision in FROZEN_CASES
    ]
    started = train_many(2, [*layerwise, *frozen])
    (folder / "output.txt").write_text(started.stdout, encoding="utf-8")
    resumed = []
    for variant, (zero, precision) in zip(frozen, FROZEN_CASES, strict=True):
        name = f"frozen{zero}-{precision}"
        shutil.copytree(folder / name, folder / "stopped" / name)
        shutil.rmtree(folder / f"stopped/{name}/checkpoints/step_00000012")
        resumed.append([*variant, f"run.output_dir={folder / 'stopped'}", "checkpoint.resume=must"])
    train_many(2, resumed)
    return folder


@pytest.mark.parametrize("zero", range(4))
def test_every_group_has_its_rate_in_every_step(runs: Path, zero: int) -> None:
    lines = steps(runs / f"zero{zero}")
    assert len(lines) == 12
    for line in lines:
        lr = line["lr"]
        # halving is exact, so these are too
        assert line["lr_groups"] == {
            "head.no_decay": lr,
            "layer_1.decay": lr / 2,
            "layer_1.no_decay": lr / 2,
            "layer_0.decay": lr / 4,
            "layer_0.no_decay": lr / 4,
            "embeddings.no_decay": lr / 8,
        }
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize("zero", [0, 2])
def test_zero_stages_train_alike(runs: Path, zero: int) -> None:
    found, reference = ([line["loss"] for line in steps(runs / name)] for name in (f"zero{zero}", "zero1"))
    assert found == pytest.approx(reference, abs=1e-4)


def test_one_rank_tells_of_the_groups_at_the_start(runs: Path) -> None:
    text = (runs / "output.txt").read_text(encoding="utf-8")
    tables = [line.split() for line in text.splitlines() if line.strip().startswith("embeddings.no_decay")]
    # 400 x 32 numbers; the peaks of three stages, 1, 0.5 and 0.7 times 0.01, all divided by 8
    expected = ["embeddings.no_decay", "embeddings", "12.8k", "0.125", "0.0013", "0.00063", "0.00087", "0"]
    assert tables == [expected] * 4
    assert text.count("x0.frozen") == 3


@pytest.mark.parametrize(("zero", "precision"), FROZEN_CASES)
def test_a_run_with_frozen_layers_resumes_with_the_same_lines(runs: Path, zero: int, precision: str) -> None:
    name = f"frozen{zero}-{precision}"
    for line in steps(runs / name):
        assert line["lr_groups"] == {
            "x1.decay": line["lr"],
            "x1.no_decay": line["lr"],
            "x0.5.no_decay": line["lr"] / 2,
        }
    assert metrics(runs / "stopped" / name) == metrics(runs / name)


@pytest.mark.parametrize("name", ["frozen1-fp32", "frozen1-bf16", "frozen3-bf16"])
def test_what_is_frozen_is_saved_and_never_moved(runs: Path, name: str) -> None:
    first, last = (whole_weights(runs / name / f"checkpoints/step_{step:08d}") for step in (6, 12))
    assert first.keys() == last.keys()
    same = {key for key in first if bool((first[key] == last[key]).all())}
    assert same == {key for key in first if ".layers.0." in key}
    assert len(same) == 9
    resumed = whole_weights(runs / "stopped" / name / "checkpoints/step_00000012")
    assert all(bool((resumed[key] == last[key]).all()) for key in last)
