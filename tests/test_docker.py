"""The container's files: linted, in agreement with one another, and their commands run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launches import ROOT

DOCKERFILE = ROOT / "docker/Dockerfile"


def test_the_dockerfile_passes_hadolint() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert hadolint is not None
    result = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_everything_copied_exists() -> None:
    for line in re.findall(r"^COPY (.*)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources), line


@pytest.mark.parametrize("script", ["docker/install.sh", "launch/slurm.sbatch", ".ci/run"])
def test_shell_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


def test_compose_agrees_with_the_image_and_gives_time_to_save() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text(encoding="utf-8"))["services"]
    arguments = set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
    for service in services.values():
        assert (ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]).samefile(DOCKERFILE)
        assert set(service["build"]["args"]) <= arguments
        # longer than checkpoint.grace_seconds, 120 unless a recipe says otherwise
        assert int(service["stop_grace_period"].removesuffix("s")) > 120
        assert service["stop_signal"] == "SIGTERM"
    assert "USER 10001" in text


def test_the_health_check_and_the_entry_point_run(tmp_path: Path) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    (check,) = re.findall(r"CMD (\[\"ds-pretrain\", \"plan\".*\])", text)
    words = [word.replace("/opt/ds_pretrain", str(ROOT)) for word in json.loads(check)]
    command = str(Path(sys.executable).parent / words[0])
    result = subprocess.run([command, *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(json.loads(result.stdout)["stages"]) == 4
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    assert json.loads(entry) == ["ds-pretrain", "launch"]
    # without its data the run is refused before any rank starts
    recipe = str(ROOT / "ds_configs/my_data.yaml")
    refused = subprocess.run([command, "launch", recipe], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "data.train.0.path: data/mine.idx: not found" in refused.stderr
