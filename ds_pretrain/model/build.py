"""Builds the transformers model that a recipe names, from its config or from a pretrained folder."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ds_pretrain.config import Model
from ds_pretrain.errors import Problem, RecipeError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


_CAUSAL_EXAMPLES = "causal language model of transformers, e.g. gpt2, llama, gpt_neox"


@dataclass(frozen=True)
class Vocabulary:
    """What the model has to know of the tokenizer.

    Args:
        size: number of token ids.
        eos_id: id of the end-of-document token, where there is one.
        pad_id: id of the padding token, where there is one; encoders give it no embedding.
    """

    size: int
    eos_id: int | None = None
    pad_id: int | None = None

    def padded(self, multiple: int) -> int:
        """``size`` rounded up: rows of the embedding in whole multiples run faster on tensor cores."""
        return -(-self.size // multiple) * multiple


def model_config(model: Model, vocabulary: Vocabulary, max_seq_len: int) -> PretrainedConfig:
    """The transformers config of a recipe's model.

    Vocabulary and positions come from the recipe, dropout is 0 unless asked for, since a pretraining run sees
    every token about once.

    Args:
        model: the recipe's ``model`` section.
        vocabulary: size and special ids of the tokenizer.
        max_seq_len: longest sequence of the run, in tokens.

    Returns:
        A config for ``AutoModelForCausalLM``, or ``AutoModelForMaskedLM`` where that is the objective.

    Raises:
        RecipeError: unknown architecture or config key, or a pretrained model too small for the data.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    if model.pretrained is not None:
        config = _pretrained_config(model)
        _check_pretrained(model, config, vocabulary, max_seq_len)
        return config
    assert model.architecture is not None
    _check_architecture(model.architecture, model.objective)
    defaults = AutoConfig.for_model(model.architecture)
    _check_keys(model, defaults)
    settings: dict[str, Any] = _without_dropout(defaults)
    settings |= {
        "vocab_size": vocabulary.padded(model.pad_vocab_multiple),
        "max_position_embeddings": max_seq_len,
        "bos_token_id": vocabulary.eos_id,
        "eos_token_id": vocabulary.eos_id,
        "pad_token_id": vocabulary.pad_id if model.objective == "masked_lm" else None,
        **_looking_back(model, defaults),
    }
    aliases = dict(getattr(defaults, "attribute_map", {}))
    settings = {aliases.get(key, key): value for key, value in settings.items()}
    settings |= {aliases.get(key, key): value for key, value in model.config.items()}
    try:
        config = AutoConfig.for_model(model.architecture, **settings)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise _refused("model.config", error) from error
    problems = _size_problems("model.config", config, vocabulary, max_seq_len)
    if problems:
        raise RecipeError(problems)
    return config


def build_model(
    model: Model,
    config: PretrainedConfig,
    dtype: torch.dtype | None = None,
    zero3_config: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """A causal or masked language model in fp32, on the current default device.

    Args:
        model: the recipe's ``model`` section.
        config: what ``model_config`` gave.
        dtype: dtype of the weights; fp32 where None.
        zero3_config: DeepSpeed JSON of a ZeRO 3 run, whose weights are built partitioned; None builds them whole.

    Returns:
        The model in training mode.

    Raises:
        RecipeError: transformers cannot build or load it.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.integrations import HfDeepSpeedConfig

    # transformers builds partitioned weights for as long as this object is alive
    partitioned = HfDeepSpeedConfig(dict(zero3_config)) if zero3_config is not None else None
    kind = AutoModelForMaskedLM if model.objective == "masked_lm" else AutoModelForCausalLM
    attention = None if model.attn_implementation == "auto" else model.attn_implementation
    options: dict[str, Any] = {
        "dtype": dtype or torch.float32,
        "attn_implementation": attention,
        "trust_remote_code": model.trust_remote_code,
    }
    try:
        if model.pretrained is not None:
            built = kind.from_pretrained(model.pretrained, config=config, **options)
        else:
            built = kind.from_config(config, **options)
    except (ValueError, ImportError, OSError) as error:
        raise _refused("model", error) from error
    del partitioned
    built.config.use_cache = False
    if model.gradient_checkpointing:
        built.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return built.train()


def meta_model(model: Model, config: PretrainedConfig) -> PreTrainedModel:
    """The same model on the meta device: names and shapes without weights.

    Args:
        model: the recipe's ``model`` section; nothing of a pretrained model but its config is read.
        config: what ``model_config`` gave.

    Raises:
        RecipeError: transformers cannot build it.
    """
    with torch.device("meta"):
        return build_model(model.model_copy(update={"pretrained": None}), config)


def default_vocab_size(model: Model) -> int:
    """Number of token ids that the recipe's architecture has unless told.

    Raises:
        RecipeError: unknown architecture.
    """
    from transformers import AutoConfig

    assert model.architecture is not None
    _check_architecture(model.architecture, model.objective)
    return int(model.config.get("vocab_size", AutoConfig.for_model(model.architecture).vocab_size))


def _pretrained_config(model: Model) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model.pretrained, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(
            [
                Problem(
                    "model.pretrained",
                    f"found {model.pretrained!r}, which transformers cannot load ({reason})",
                )
            ]
        ) from error
    _check_keys(model, config)
    for key, value in {**_looking_back(model, config), **model.config}.items():
        setattr(config, key, value)
    return config


def _check_pretrained(model: Model, config: PretrainedConfig, vocabulary: Vocabulary, max_seq_len: int) -> None:
    problems = _size_problems("model.pretrained", config, vocabulary, max_seq_len)
    if problems:
        raise RecipeError(problems)


def _size_problems(path: str, config: PretrainedConfig, vocabulary: Vocabulary, max_seq_len: int) -> list[Problem]:
    problems = []
    if config.vocab_size < vocabulary.size:
        problems.append(
            Problem(
                path,
                f"found a model of {config.vocab_size} token ids, but the corpus uses {vocabulary.size}; "
                "use the model's own tokenizer, or a model with a larger vocab_size",
            )
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions < max_seq_len:
        problems.append(
            Problem(
                path,
                f"found a model of {positions} positions, but data.max_seq_len is {max_seq_len}; "
                f"allowed: data.max_seq_len up to {positions}, or a model with more positions",
            )
        )
    return problems


def _check_architecture(architecture: str, objective: str) -> None:
    from transformers.models.auto import modeling_auto

    masked = objective == "masked_lm"
    known = sorted(
        modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES if masked else modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    )
    examples = "masked language model of transformers, e.g. bert, distilbert" if masked else _CAUSAL_EXAMPLES
    if architecture not in known:
        raise RecipeError(
            [
                Problem(
                    "model.architecture",
                    f"found {architecture!r}; allowed: a {examples}{_nearest(architecture, known)}",
                )
            ]
        )


def _check_keys(model: Model, known: PretrainedConfig) -> None:
    """A config key that transformers does not know would be stored and silently ignored."""
    names = sorted({*known.to_dict(), *getattr(known, "attribute_map", {})})
    unknown = [key for key in model.config if not hasattr(known, key)]
    if unknown:
        raise RecipeError(
            [
                Problem(
                    f"model.config.{key}",
                    f"unknown key for {known.model_type}; allowed: the fields of {type(known).__name__}"
                    f"{_nearest(key, names)}",
                )
                for key in unknown
            ]
        )


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _looking_back(model: Model, config: PretrainedConfig) -> dict[str, bool]:
    """Types that serve as encoders too see the tokens to come unless told to be decoders."""
    return {"is_decoder": model.objective == "causal_lm"} if hasattr(config, "is_decoder") else {}


def _refused(path: str, error: Exception) -> RecipeError:
    return RecipeError([Problem(path, f"transformers refuses it: {' '.join(str(error).split())}")])


def _without_dropout(defaults: PretrainedConfig) -> dict[str, float]:
    return {key: 0.0 for key, value in defaults.to_dict().items() if "drop" in key and isinstance(value, float)}
