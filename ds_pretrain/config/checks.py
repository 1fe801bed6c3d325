"""Checks across the fields of a recipe, each a pure function of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ds_pretrain.config import rate_checks
from ds_pretrain.config.data import Masking
from ds_pretrain.config.runtime import Fp16
from ds_pretrain.config.schema import Recipe
from ds_pretrain.errors import Problem


def model_source(recipe: Recipe) -> Sequence[Problem]:
    """A model is drawn anew or pretrained."""
    return _exactly_one("model", {key: getattr(recipe.model, key) for key in ("architecture", "pretrained")})


def sources(recipe: Recipe) -> Sequence[Problem]:
    """A source is a token file or text; text needs a tokenizer, and a trained tokenizer needs text."""
    problems: list[Problem] = []
    for key in ("train", "validation"):
        for index, source in enumerate(getattr(recipe.data, key)):
            path = f"data.{key}.{index}"
            problems += _exactly_one(path, {"path": source.path, "text": source.text})
            if source.weight != 1 and key == "validation":
                problems.append(
                    Problem(
                        f"{path}.weight", f"found {source.weight:g}; only training sources are weighed, leave it out"
                    )
                )
            if source.text is not None and key == "validation":
                problems.append(
                    Problem(
                        f"{path}.text",
                        f"found {source.text!r}; allowed: path of a prepared corpus, "
                        "or data.validation_fraction of the training text",
                    )
                )
        labels = [source.label for source in getattr(recipe.data, key)]
        for index, label in enumerate(labels):
            if label in labels[:index]:
                problems.append(
                    Problem(
                        f"data.{key}.{index}.name", f"is {label!r} like another's; give each source a name of its own"
                    )
                )
    has_text = any(source.text is not None for source in recipe.data.train)
    if has_text and recipe.tokenizer is None:
        problems.append(Problem("tokenizer", "is required with a text source; give path, or train: {vocab_size: 8192}"))
    if recipe.tokenizer is not None:
        given = {key: getattr(recipe.tokenizer, key) for key in ("path", "train")}
        problems += _exactly_one("tokenizer", given)
        if recipe.tokenizer.train is not None and not has_text:
            problems.append(
                Problem(
                    "tokenizer.train",
                    "needs a text source in data.train; a prepared corpus has its tokenizer already",
                )
            )
    if recipe.data.validation_fraction is not None:
        if not has_text:
            problems.append(
                Problem(
                    "data.validation_fraction",
                    "needs a text source in data.train; for token files give data.validation",
                )
            )
        if recipe.data.validation:
            problems.append(Problem("data.validation_fraction", "excludes data.validation; give one of the two"))
    return problems


def run_length(recipe: Recipe) -> Sequence[Problem]:
    """A run's length is stated once."""
    keys = ("total_steps", "total_tokens", "total_epochs")
    return _exactly_one("curriculum", {key: getattr(recipe.curriculum, key) for key in keys})


def stages(recipe: Recipe) -> Sequence[Problem]:
    """Stages begin at 0, follow one another, fit the windows, and state each thing once."""
    curriculum, limit = recipe.curriculum, recipe.data.max_seq_len
    if curriculum.stages is None:
        return ()
    if curriculum.pacing is not None:
        return [Problem("curriculum.pacing", "excludes curriculum.stages; give one of the two")]
    if not curriculum.stages:
        return [Problem("curriculum.stages", "found an empty list; allowed: at least one stage, or leave it out")]
    problems: list[Problem] = []
    before: dict[str, float] = {}
    for index, stage in enumerate(curriculum.stages):
        path = f"curriculum.stages.{index}"
        starts = {key: getattr(stage, key) for key in ("step", "tokens", "fraction")}
        given = {key: value for key, value in starts.items() if value is not None}
        if len(given) > 1:
            problems.append(Problem(path, f"states {' and '.join(given)}; allowed: one of step, tokens, fraction"))
        elif not given and index > 0:
            problems.append(Problem(path, "does not say where it starts; give step, tokens or fraction"))
        for key, value in given.items():
            if index == 0 and value != 0:
                problems.append(Problem(f"{path}.{key}", f"found {value:g}; the first stage starts at 0"))
            elif index > 0 and value <= before.get(key, 0):
                problems.append(
                    Problem(
                        f"{path}.{key}",
                        f"found {value:g}; allowed: more than the stage before it, {before.get(key, 0):g}",
                    )
                )
        before |= given
        if stage.seq_len is not None and stage.seq_len > limit:
            problems.append(_too_long(f"{path}.seq_len", stage.seq_len, limit))
        if stage.lr_multiplier is not None and stage.peak_lr is not None:
            problems.append(Problem(f"{path}.peak_lr", "excludes lr_multiplier; give one of the two"))
    return problems


def data_weights(recipe: Recipe) -> Sequence[Problem]:
    """A stage weighs sources that there are, and at least one of them."""
    names = [source.label for source in recipe.data.train]
    problems: list[Problem] = []
    for index, stage in enumerate(recipe.curriculum.stages or ()):
        if stage.data_weights is None:
            continue
        path = f"curriculum.stages.{index}.data_weights"
        for name in stage.data_weights:
            if name not in names:
                problems.append(
                    Problem(f"{path}.{name}", f"no source of data.train has this name; allowed: {', '.join(names)}")
                )
        if not any(stage.data_weights.values()):
            problems.append(Problem(path, "gives no source a weight; at least one must be more than 0"))
    return problems


def pacing(recipe: Recipe) -> Sequence[Problem]:
    """A pacing function states its duration once and fits the windows."""
    found = recipe.curriculum.pacing
    if found is None:
        return ()
    path, limit = "curriculum.pacing", recipe.data.max_seq_len
    keys = ("fraction", "steps", "tokens")
    problems = list(_exactly_one(path, {key: getattr(found, key) for key in keys}))
    for key in ("start_seq_len", "end_seq_len"):
        value = getattr(found, key)
        if value is not None and value > limit:
            problems.append(_too_long(f"{path}.{key}", value, limit))
    return problems


def positions(recipe: Recipe) -> Sequence[Problem]:
    """Only blocks of a row have positions to reset."""
    if not recipe.data.reset_positions or recipe.data.sequence_mode == "mask":
        return ()
    return [
        Problem(
            "data.reset_positions",
            f"needs data.sequence_mode mask, found {recipe.data.sequence_mode}, where every sequence begins at 0",
        )
    ]


def masking(recipe: Recipe) -> Sequence[Problem]:
    """Only a masked language model has tokens hidden."""
    if recipe.data.masking == Masking() or recipe.model.objective == "masked_lm":
        return ()
    return [Problem("data.masking", f"needs model.objective masked_lm, found {recipe.model.objective}")]


def offload(recipe: Recipe) -> Sequence[Problem]:
    """What is offloaded must be partitioned, and NVMe needs a folder."""
    problems: list[Problem] = []
    settings = recipe.deepspeed
    for key, least in (("offload_optimizer", 1), ("offload_param", 3)):
        value = getattr(settings, key)
        if value is None:
            continue
        if settings.zero_stage < least:
            problems.append(
                Problem(
                    f"deepspeed.{key}",
                    f"needs deepspeed.zero_stage {least}{' or more' if least < 3 else ''}, found {settings.zero_stage}",
                )
            )
        if value.device == "nvme" and value.nvme_path is None:
            problems.append(Problem(f"deepspeed.{key}.nvme_path", "is required for device nvme"))
    if settings.offload_optimizer is not None and recipe.optimizer.type not in ("adamw", "adam"):
        problems.append(
            Problem(
                "deepspeed.offload_optimizer",
                "DeepSpeed offloads Adam only; use optimizer.type adamw or adam",
            )
        )
    return problems


def unfreezing(recipe: Recipe) -> Sequence[Problem]:
    """Where the trained layers change, the optimizer's state is carried over in memory."""
    offloaded = (recipe.deepspeed.offload_optimizer, recipe.deepspeed.offload_param)
    changes = any(stage.trainable_layers is not None for stage in recipe.curriculum.stages or ())
    if not changes or not any(offload is not None and offload.device == "nvme" for offload in offloaded):
        return ()
    return [
        Problem(
            "curriculum.stages",
            "trainable_layers cannot be combined with offloading to nvme; offload to cpu, or leave it out",
        )
    ]


def loss_scaling(recipe: Recipe) -> Sequence[Problem]:
    """Loss scaling is a matter of fp16."""
    if recipe.precision in ("fp16", "auto") or recipe.deepspeed.fp16 == Fp16():
        return ()
    return [Problem("deepspeed.fp16", f"needs precision fp16 or auto, found {recipe.precision}")]


def checkpoints(recipe: Recipe) -> Sequence[Problem]:
    """The best checkpoint can be told, and what is written meanwhile is copied first."""
    problems = []
    settings, evaluated = recipe.checkpoint, recipe.evaluation.every_steps
    if settings.keep_best and not (recipe.data.validation or recipe.data.validation_fraction):
        problems.append(Problem("checkpoint.keep_best", "needs data.validation or data.validation_fraction"))
    elif settings.keep_best and (
        settings.every_steps is None or evaluated is None or settings.every_steps % evaluated != 0
    ):
        problems.append(
            Problem(
                "checkpoint.keep_best",
                "needs the validation loss of every checkpoint: checkpoint.every_steps must be a multiple of "
                f"evaluation.every_steps; found {settings.every_steps} and {evaluated}",
            )
        )
    offload = recipe.deepspeed.offload_optimizer
    if settings.asynchronous and offload is not None and offload.device == "nvme":
        problems.append(
            Problem(
                "checkpoint.asynchronous",
                "does not go with deepspeed.offload_optimizer.device nvme, whose files DeepSpeed copies itself",
            )
        )
    return problems


CHECKS: tuple[Callable[[Recipe], Sequence[Problem]], ...] = (
    model_source,
    sources,
    run_length,
    stages,
    data_weights,
    pacing,
    positions,
    masking,
    offload,
    unfreezing,
    loss_scaling,
    checkpoints,
    *rate_checks.CHECKS,
)


def _exactly_one(path: str, values: dict[str, object]) -> Sequence[Problem]:
    given = [key for key, value in values.items() if value is not None]
    if len(given) == 1:
        return ()
    found = f"found {' and '.join(given)}" if given else "found none"
    return [Problem(path, f"needs exactly one of {', '.join(values)}; {found}")]


def _too_long(path: str, value: int, limit: int) -> Problem:
    return Problem(
        path, f"found {value}; allowed: up to data.max_seq_len, {limit}; shorten it or raise data.max_seq_len"
    )
