"""A run that is killed at the worst moments, in every way, ends with the weights of the run that nobody killed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import yaml
from kills import Kill, Outcome, Run, recipe_of
from records import metrics, steps
from support import TINY

STEPS = 40
SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "0a1b2c3d",
    "HF_TOKEN": "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz012345",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
}
KILLS = {
    "a rank is asked during an evaluation": Kill("evaluation", "rank 1", signal.SIGUSR1),
    "a rank is killed during a save": Kill("save", "rank 1", signal.SIGKILL),
    "ds-pretrain launch is killed at a stage switch": Kill("switch", "launch", signal.SIGKILL),
    "the launcher is killed in a step, and the disk fails": Kill("step", "launcher", signal.SIGKILL, "flip", 2),
}


class Broken:
    """The killed run, what came of each kill, and the unbroken one."""

    def __init__(self, folder: Path, corpus: Path) -> None:
        recipe = recipe_of(corpus, dict(TINY), STEPS, 9) | {"tracking": {"wandb": {"mode": "offline"}}}
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        boundaries = [stage["step"] for stage in recipe["curriculum"]["stages"]][1:]
        self.unbroken = Run(path, folder / "unbroken/run", boundaries)
        self.broken = Run(path, folder / "broken/run", boundaries)
        for run in (self.unbroken, self.broken):
            run.folder.parent.mkdir()
        assert self.unbroken.finish().finished
        self.outcomes: dict[str, Outcome] = {name: self.broken.kill(kill) for name, kill in KILLS.items()}
        self.last = self.broken.finish()


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Broken:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        return Broken(tmp_path_factory.mktemp("chaos"), corpus)


def test_every_moment_was_met_and_nothing_was_left_over(runs: Broken) -> None:
    for name, outcome in runs.outcomes.items():
        assert outcome.met, f"{name}: {outcome}"
        assert outcome.left_over == [], name
    assert runs.last.finished, runs.last.text


def test_a_rank_that_is_asked_takes_all_along(runs: Broken) -> None:
    outcome = runs.outcomes["a rank is asked during an evaluation"]
    assert outcome.code == 0
    assert f"stopped; saved at step {outcome.step}" in outcome.text
    assert "Traceback" not in outcome.text


def test_a_killed_rank_is_named(runs: Broken) -> None:
    outcome = runs.outcomes["a rank is killed during a save"]
    assert outcome.code != 0
    assert "ds_pretrain: rank 1 of this machine ended unexpectedly" in outcome.text
    assert "Traceback" not in outcome.text


@pytest.mark.parametrize(
    "name", ["ds-pretrain launch is killed at a stage switch", "the launcher is killed in a step, and the disk fails"]
)
def test_ranks_whose_launcher_is_killed_save_and_leave(runs: Broken, name: str) -> None:
    text = runs.outcomes[name].text
    assert "the launcher has ended: saving and leaving" in text
    assert "stopped; saved at step" in text


def test_a_damaged_checkpoint_is_passed_over(runs: Broken) -> None:
    assert "is damaged and passed over" in runs.last.text


def test_the_history_is_that_of_the_unbroken_run(runs: Broken) -> None:
    assert [line["step"] for line in steps(runs.broken.folder)] == list(range(1, STEPS + 1))
    assert metrics(runs.broken.folder) == metrics(runs.unbroken.folder)


def test_the_weights_are_those_of_the_unbroken_run(runs: Broken) -> None:
    from ds_pretrain.engine.consolidate import whole_weights

    expected, found = (
        whole_weights(run.folder / f"checkpoints/step_{STEPS:08d}") for run in (runs.unbroken, runs.broken)
    )
    assert expected.keys() == found.keys()
    assert all(bool((expected[name] == found[name]).all()) for name in expected)


def test_no_secret_of_the_environment_is_in_what_a_run_writes_or_prints(runs: Broken) -> None:
    root = runs.broken.folder.parent
    paths = [path for path in root.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in paths)  # the tracker was there
    assert json.loads((runs.broken.folder / "plan.json").read_text(encoding="utf-8"))
    for path in paths:
        content = path.read_bytes()
        for name, value in SECRETS.items():
            assert value.encode() not in content, f"{name} in {path}"
