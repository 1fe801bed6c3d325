"""The container's files: linted, in agreement with one another and with the recipe's grace, their commands run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from launches import ROOT

from ds_pretrain.config.runtime import Checkpoint
from ds_pretrain.supervise import LAUNCHER_SECONDS

DOCKERFILE = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker/compose.yaml").read_text(encoding="utf-8"))
SCRIPTS = ("docker/install.sh", "launch/slurm.sbatch", ".ci/run")
PREFIX = "/opt/ds_pretrain"
# what a stop may take: the ranks' grace, then the launcher's end
STOP_SECONDS = Checkpoint().grace_seconds + LAUNCHER_SECONDS


def tool(name: str) -> str:
    """A command of this environment."""
    return str(Path(sys.executable).parent / name)


def instruction(name: str) -> list[str]:
    """What stands behind every instruction of this name in the Dockerfile, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return re.findall(rf"^\s*{name} (.*)$", joined, re.MULTILINE)


def exec_form(name: str) -> list[str]:
    (text,) = instruction(name)
    words: list[str] = json.loads(text[text.index("[") :])
    return words


@pytest.mark.parametrize("command", [["hadolint", "docker/Dockerfile"], ["shellcheck", *SCRIPTS]], ids=lambda c: c[0])
def test_linters_find_nothing(command: list[str]) -> None:
    name, *files = command
    result = subprocess.run([tool(name), *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_shell_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


def test_everything_the_image_copies_exists_and_is_let_through() -> None:
    let_through = set(re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE))
    copied = {source for line in instruction("COPY") for source in line.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    assert copied == let_through


def test_the_image_runs_as_a_user_without_rights() -> None:
    (user,) = instruction("USER")
    assert int(user) > 0
    assert any(f"useradd --uid {user} " in line for line in instruction("RUN"))


@pytest.mark.parametrize("service", COMPOSE["services"].values(), ids=lambda service: service["profiles"][0])
def test_compose_agrees_with_the_image(service: dict[str, Any]) -> None:
    build = service["build"]
    assert (ROOT / "docker" / build["context"] / build["dockerfile"]).samefile(ROOT / "docker/Dockerfile")
    assert set(build.get("args", {})) <= {line.split("=")[0] for line in instruction("ARG")}
    assert service["stop_signal"] == instruction("STOPSIGNAL")[0]
    assert int(service["stop_grace_period"].removesuffix("s")) > STOP_SECONDS
    (user,) = instruction("USER")
    assert service["user"] == f"${{RUN_AS:-{user}:{user}}}"
    # every folder the image writes to is on a volume that outlives the container
    mounts = dict(
        re.fullmatch(r"(?:\$\{\w+:-)?(.+?)\}?:(/[^:]+)(?::ro)?", volume).groups() for volume in service["volumes"]
    )
    assert set(exec_form("VOLUME")) == {mounts[name] for name in COMPOSE["volumes"]}
    # which are the folders that recipes write to unless told otherwise
    (folder,) = instruction("WORKDIR")
    assert {mounts["data"], mounts["runs"]} == {f"{folder}/data", f"{folder}/runs"}


def test_slurm_warns_early_enough_to_save() -> None:
    script = (ROOT / "launch/slurm.sbatch").read_text(encoding="utf-8")
    (seconds,) = re.findall(r"^#SBATCH --signal=B:USR1@(\d+)$", script, re.MULTILINE)
    assert int(seconds) > STOP_SECONDS


def test_the_health_check_plans_the_recipe_of_the_image(tmp_path: Path) -> None:
    name, *words = [word.replace(PREFIX, str(ROOT)) for word in exec_form("HEALTHCHECK")]
    result = subprocess.run([tool(name), *words], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(json.loads(result.stdout)["stages"]) == 4


def test_the_entry_point_takes_a_recipe_and_checks_it(tmp_path: Path) -> None:
    (folder,) = instruction("WORKDIR")
    assert folder == PREFIX  # the recipe of CMD is found from there
    assert (ROOT / exec_form("CMD")[0]).is_file()
    name, *words = exec_form("ENTRYPOINT")
    command = [tool(name), *words, str(ROOT / "ds_configs/my_data.yaml")]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    # without its data the run is refused before any rank starts
    assert refused.returncode == 2
    assert "data.train.0.path: data/mine.idx: not found" in refused.stderr
