"""The parameter groups of a recipe before its corpus exists: on a model without weights, its vocabulary assumed."""

from __future__ import annotations

from typing import Any

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum import Plan
from ds_pretrain.data.tokenizer import load_tokenizer
from ds_pretrain.errors import DataError
from ds_pretrain.model.build import Vocabulary, default_vocab_size, meta_model, model_config
from ds_pretrain.model.group_rows import group_rows
from ds_pretrain.train.corpus import known_vocabulary


def planned_groups(recipe: Recipe, plan: Plan) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Describes the groups that a recipe will make.

    Args:
        recipe: a checked recipe.
        plan: its resolved stages.

    Returns:
        What ``group_rows`` gives, and what had to be assumed: key and reason.

    Raises:
        UserError: the model or its groups cannot be had as the recipe says.
    """
    vocabulary, reason = _vocabulary(recipe)
    config = model_config(recipe.model, vocabulary, recipe.data.max_seq_len)
    rows = group_rows(meta_model(recipe.model, config), recipe, plan)
    return rows, {} if reason is None else {"vocab_size": f"{config.vocab_size}: {reason}"}


def _vocabulary(recipe: Recipe) -> tuple[Vocabulary, str | None]:
    """The vocabulary, and what it was assumed from; None where it is known."""
    if recipe.model.pretrained is not None:
        return Vocabulary(1), None  # the model brings its own
    known = known_vocabulary(recipe)
    if known is not None:
        return known, None
    tokenizer = recipe.tokenizer
    if tokenizer is not None and tokenizer.train is not None:
        return Vocabulary(tokenizer.train.vocab_size), "tokenizer.train.vocab_size, as the corpus does not exist yet"
    if tokenizer is not None and tokenizer.path is not None:
        try:
            return Vocabulary(len(load_tokenizer(tokenizer.path))), None
        except DataError:
            pass  # it may be fetched by the time of the run
    return Vocabulary(default_vocab_size(recipe.model)), "the model's default, as no tokenizer is at hand yet"
