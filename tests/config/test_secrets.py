from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support import TINY

from ds_pretrain.config import load_recipe
from ds_pretrain.errors import RecipeError

# made up, in the forms of real ones
HF = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz012345"
WANDB = "0123456789abcdef" * 2 + "01234567"
SECRETS = [
    HF,
    "wandb_v1_" + "Ab3" * 12,
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1B2" * 9,
    "sk-" + "a1B2" * 10,
    "AKIA" + "ABCDEFGH12345678",
    "https://user:pa55word@example.org/x",
]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(dict(TINY)), encoding="utf-8")
    return path


def refused(recipe: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe([recipe], overrides)
    return str(error.value)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "key", ["tracking.wandb.notes", "run.name", "data.train", "tracking.wandb.api_key", "deepspeed.extra.x"]
)
def test_what_looks_like_a_secret_is_refused_and_not_repeated(recipe: Path, secret: str, key: str) -> None:
    message = refused(recipe, f"{key}={secret}")
    assert "holds what looks like a key or token" in message
    assert secret not in message
    assert "pa55word" not in message


def test_an_override_that_cannot_be_read_does_not_show_its_secret(recipe: Path) -> None:
    assert HF not in refused(recipe, HF)
    assert HF not in refused(recipe, f"a=[{HF}")
    assert HF not in refused(recipe, f"optimizer.lr={HF}")


def test_a_secret_in_a_broken_file_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(f"run: [\n{HF}: {{{HF}\n", encoding="utf-8")
    assert HF not in refused(path)


def test_the_value_of_a_secret_variable_is_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "correct-horse-battery")
    message = refused(recipe, "tracking.wandb.notes=by correct-horse-battery staple")
    assert "tracking.wandb.notes: holds what looks like" in message
    assert "horse" not in message


def test_keys_that_name_secrets_are_refused(recipe: Path) -> None:
    assert "deepspeed.extra.api_key: holds" in refused(recipe, "deepspeed.extra.api_key=anything")


def test_a_bare_hexadecimal_key_is_refused_where_trackers_are_told(recipe: Path) -> None:
    assert "tracking.wandb.project: holds" in refused(recipe, f"tracking.wandb.project={WANDB}")


@pytest.mark.parametrize(
    "override",
    [
        f"tokenizer.path=data/{WANDB}",  # a commit
        "tokenizer.path=hf_internal/tokenizer",
        "tracking.wandb.notes=the token budget is a secret",
        "model.config={eos_token_id: 0}",
        "data.cache_dir=s3://bucket/key",
    ],
)
def test_what_only_sounds_like_a_secret_is_taken(recipe: Path, override: str) -> None:
    load_recipe([recipe], [override])
