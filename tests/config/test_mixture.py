"""What a recipe may say of several training sources."""

from __future__ import annotations

import pytest
from support import recipe

from ds_pretrain.curriculum import build_plan
from ds_pretrain.errors import RecipeError

TWO = [{"path": "data/web", "weight": 3}, {"path": "data/code.v2", "name": "code"}]
STAGES = [
    {"step": 0, "seq_len": 16},
    {"step": 4, "seq_len": 64, "data_weights": {"code": 2, "web": 1}},
    {"step": 8, "data_weights": {"code": 1}},
]


def mixed(train: object = TWO, stages: object = STAGES) -> object:
    curriculum = {"total_steps": 12, "batch_size": 8, "stages": stages}
    return recipe(data={"train": train}, curriculum=curriculum)


def test_stages_take_the_weights_of_the_sources_or_their_own_by_name() -> None:
    plan = build_plan(mixed())  # type: ignore[arg-type]
    assert [stage.data_weights for stage in plan.stages] == [(3, 1), (1, 2), (0, 1)]


def test_sources_are_named_after_their_last_part() -> None:
    assert [source.label for source in mixed().data.train] == ["web", "code"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("train", "stages", "message"),
    [
        (["a/x", "b/x"], [{"step": 0}], r"data.train.1.name: is 'x' like another's; give each source a name"),
        (
            TWO,
            [{"step": 0, "data_weights": {"cod": 1, "web": 1}}],
            r"data_weights.cod: no source .* allowed: web, code",
        ),
        (TWO, [{"step": 0, "data_weights": {"web": 0}}], r"data_weights: gives no source a weight"),
        (TWO, [{"step": 0, "data_weights": {"web": -1}}], r"data_weights.web: found -1"),
    ],
)
def test_what_cannot_be_mixed_is_refused(train: object, stages: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        mixed(train, stages)
