"""Groups of their own learning rate on two gloo ranks under the deepspeed launcher, over all ZeRO stages."""

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
FROZEN_CASES = [(1, "bf16"), (3, "fp32")]


@pytest.fixture(scope="module")
def runs(train_many: Many, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("groups")
    output = f"run.output_dir={folder}"
    layerwise = [[output, f"run.name=zero{zero}", f"deepspeed.zero_stage={zero}", *LAYERWISE] for zero in range(4)]
    frozen = [
        [output, f"run.name=frozen{zero}", f"deepspeed.zero_stage={zero}", f"precision={precision}", *FROZEN, *SAVED]
        for zero, precision in FROZEN_CASES
    ]
    started = train_many(2, [*layerwise, *frozen])
    (folder / "output.txt").write_text(started.stdout, encoding="utf-8")
    resumed = []
    for variant, (zero, _) in zip(frozen, FROZEN_CASES, strict=True):
        shutil.copytree(folder / f"frozen{zero}", folder / "stopped" / f"frozen{zero}")
        shutil.rmtree(folder / f"stopped/frozen{zero}/checkpoints/step_00000012")
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
    assert text.count("x0.frozen") == 2


@pytest.mark.parametrize(("zero", "precision"), FROZEN_CASES)
def test_what_is_frozen_is_saved_resumed_and_never_moved(runs: Path, zero: int, precision: str) -> None:
    run = runs / f"frozen{zero}"
    first, last = (whole_weights(run / f"checkpoints/step_{step:08d}") for step in (6, 12))
    assert first.keys() == last.keys()
    same = {name for name in first if bool((first[name] == last[name]).all())}
    assert same == {name for name in first if ".layers.0." in name}
    assert len(same) == 9
    for line in steps(run):
        assert line["lr_groups"] == {
            "x1.decay": line["lr"],
            "x1.no_decay": line["lr"],
            "x0.5.no_decay": line["lr"] / 2,
        }
    # from the checkpoint at step 6 on, the same lines and the same weights
    assert metrics(runs / "stopped" / run.name) == metrics(run)
    resumed = whole_weights(runs / "stopped" / run.name / "checkpoints/step_00000012")
    assert all(bool((resumed[name] == last[name]).all()) for name in last)
