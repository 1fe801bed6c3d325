"""The schema: a full recipe, defaults, kinds of numbers, and a description under every field."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from ds_pretrain.config import Recipe, load_recipe, parse_recipe
from ds_pretrain.config.base import Section

FULL = Path(__file__).with_name("full.yaml")

MINIMAL: dict[str, Any] = {
    "model": {"architecture": "gpt2"},
    "data": {"train": "data/x"},
    "curriculum": {"total_steps": 100},
    "optimizer": {"lr": 1e-3},
}


def sections(model: type[Section] = Recipe) -> Iterator[type[Section]]:
    yield model
    for field in model.model_fields.values():
        yield from within(field.annotation)


def within(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield from sections(annotation)
    for inner in get_args(annotation):
        yield from within(inner)


def test_full_recipe_loads() -> None:
    recipe = load_recipe([FULL])
    assert recipe.curriculum.stages is not None
    assert [stage.lr_multiplier for stage in recipe.curriculum.stages] == [11.3, 7.0, 3.5, 1.5, 0.7]
    assert recipe.data.train[0].path == "data/owt"
    assert recipe.schedule.warmup.tokens == 100_000_000
    assert recipe.schedule.warmup.fraction is None
    assert recipe.tracking.wandb.mode == "disabled"


def test_defaults() -> None:
    recipe = parse_recipe(MINIMAL)
    assert recipe.run.name == "run"
    assert recipe.run.seed == 1234
    assert recipe.data.max_seq_len == 1024
    assert recipe.curriculum.lr_scaling.kind == "none"
    assert recipe.curriculum.stages is None
    assert recipe.schedule.type == "cosine"
    assert recipe.schedule.scope == "run"
    assert recipe.schedule.warmup.fraction == 0.02
    assert recipe.deepspeed.zero_stage == 1
    assert recipe.checkpoint.every_steps == 1000


@pytest.mark.parametrize("length", [{"tokens": 5}, {"steps": 0}, {"fraction": 0.5}])
def test_any_stated_warmup_takes_the_place_of_the_default(length: dict[str, float]) -> None:
    warmup = parse_recipe({**MINIMAL, "schedule": {"warmup": length}}).schedule.warmup
    assert {key: getattr(warmup, key) for key in ("tokens", "steps", "fraction")} == {
        "tokens": None,
        "steps": None,
        "fraction": None,
        **length,
    }


@pytest.mark.parametrize("section", sorted(set(sections()), key=lambda found: found.__name__))
def test_every_field_is_described(section: type[Section]) -> None:
    assert section.__doc__
    assert [name for name, field in section.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("value", "whole"), [(1e5, 100_000), ("1e5", 100_000), ("1_000", 1000), ("9007199254740993", 9007199254740993)]
)
def test_whole_numbers_as_people_write_them(value: object, whole: int) -> None:
    recipe = parse_recipe({**MINIMAL, "curriculum": {"total_tokens": value}})
    assert recipe.curriculum.total_tokens == whole


def test_text_number() -> None:
    assert parse_recipe({**MINIMAL, "optimizer": {"lr": "1e-3"}}).optimizer.lr == 1e-3


def test_recipe_is_frozen() -> None:
    recipe = parse_recipe(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.run.name = "other"  # type: ignore[misc]


def test_sections_do_not_share_mutable_defaults() -> None:
    first, second = parse_recipe(MINIMAL), parse_recipe(MINIMAL)
    first.deepspeed.extra["key"] = 1
    assert second.deepspeed.extra == {}


def test_a_plain_string_is_a_source() -> None:
    recipe = parse_recipe({**MINIMAL, "data": {"train": ["a", {"path": "b"}]}})
    assert [source.path for source in recipe.data.train] == ["a", "b"]
    recipe = parse_recipe({**MINIMAL, "data": {"train": {"path": "a"}, "validation": "b"}})
    assert [source.path for source in (*recipe.data.train, *recipe.data.validation)] == ["a", "b"]


def test_loading_imports_nothing_heavy() -> None:
    code = "import sys, ds_pretrain.config; print({'torch', 'deepspeed', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
