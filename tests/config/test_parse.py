"""Bad recipes and their exact messages; problems reported together; nothing false behind a mistyped field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from omegaconf import OmegaConf

from ds_pretrain.config import Recipe, parse_recipe
from ds_pretrain.errors import Problem, RecipeError

ROOT_KEYS = (
    "run, model, tokenizer, data, curriculum, optimizer, param_groups, schedule, precision, deepspeed, train, "
    "safety, checkpoint, evaluation, lr_finder, tracking"
)
STAGE_KEYS = (
    "step, tokens, fraction, seq_len, batch_size, micro_batch_size, lr_multiplier, peak_lr, warmup_steps, "
    "grad_clip, data_weights, trainable_layers"
)
ONE_TOTAL = "needs exactly one of total_steps, total_tokens, total_epochs"


def recipe_data(*changes: str, without: Sequence[str] = ()) -> dict[str, Any]:
    """A small sound recipe under changes such as ``curriculum.total_steps=5``."""
    sound = {
        "model": {"architecture": "gpt2"},
        "data": {"train": "data/x"},
        "curriculum": {"total_steps": 100},
        "optimizer": {"lr": 1e-3},
    }
    config = OmegaConf.create({key: value for key, value in sound.items() if key not in without})
    config.merge_with_dotlist(list(changes))
    data: dict[str, Any] = OmegaConf.to_container(config)
    return data


def found_problems(data: dict[str, Any], *checks: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(data, checks)
    return [str(problem) for problem in caught.value.problems]


# one change to a sound recipe, and all that is to be said about it
BAD = [
    ("rnu={}", f"rnu: unknown key; allowed: {ROOT_KEYS} (did you mean 'run'?)"),
    ("lr=1", f"lr: unknown key; allowed: {ROOT_KEYS} (did you mean 'optimizer.lr'?)"),
    (
        "train.microbatch=3",
        "train.microbatch: unknown key; allowed: micro_batch_size, max_tokens_per_micro_batch "
        "(did you mean 'micro_batch_size'?)",
    ),
    (
        "curriculum.stages=[{step: 0, seqlen: 64}]",
        f"curriculum.stages.0.seqlen: unknown key; allowed: {STAGE_KEYS} (did you mean 'seq_len'?)",
    ),
    ("run=3", "run: found 3; allowed: a mapping of keys"),
    ("run=null", "run: found null; allowed: a mapping of keys"),
    (
        "run.name=a/b",
        "run.name: found 'a/b'; allowed: letters, digits, dot, dash and underscore, not starting with a dot",
    ),
    ("run.name=12", "run.name: found 12; allowed: text (in quotes where it looks like a number)"),
    ("run.deterministic=1", "run.deterministic: found 1; allowed: true or false"),
    ("run.deterministic='yes'", "run.deterministic: found 'yes'; allowed: true or false"),
    ("run.seed=-1", "run.seed: found -1; allowed: a number of at least 0"),
    ("evaluation.batches=true", "evaluation.batches: found true; allowed: a number"),
    ("checkpoint.every_steps=1.5", "checkpoint.every_steps: found 1.5; allowed: a whole number"),
    ("optimizer.lr=fast", "optimizer.lr: found 'fast'; allowed: a number"),
    ("optimizer.lr=.nan", "optimizer.lr: found nan; allowed: a finite number"),
    ("optimizer.lr=.inf", "optimizer.lr: found inf; allowed: a finite number"),
    ("optimizer.lr=0", "optimizer.lr: found 0; allowed: a number above 0"),
    ("optimizer.betas=[0.9, 1]", "optimizer.betas.1: found 1; allowed: a number below 1"),
    ("schedule.min_lr_ratio=2", "schedule.min_lr_ratio: found 2; allowed: a number of at most 1"),
    ("precision=bf61", "precision: found 'bf61'; allowed: auto, bf16, fp16, fp32 (did you mean 'bf16'?)"),
    ("deepspeed.zero_stage=4", "deepspeed.zero_stage: found 4; allowed: 0, 1, 2, 3"),
    ("deepspeed.zero_stage=true", "deepspeed.zero_stage: found true; allowed: a number"),
    (
        "data.validation={path: a, weight: 3}",
        "data.validation.0.weight: found 3; only training sources are weighed, leave it out",
    ),
    ("model.compile=true", "model.compile: found true, which is not built yet; allowed: false"),
    (
        "data.reset_positions=true",
        "data.reset_positions: needs data.sequence_mode mask, found chunk, where every sequence begins at 0",
    ),
    (
        "train.micro_batch_size=atuo",
        "train.micro_batch_size: found 'atuo'; allowed: a whole number or auto (did you mean 'auto'?)",
    ),
    (
        "curriculum.grad_clip=by_lenght",
        "curriculum.grad_clip: found 'by_lenght'; allowed: a number or by_length (did you mean 'by_length'?)",
    ),
    ("curriculum.grad_clip=-1", "curriculum.grad_clip: found -1; allowed: a number above 0 or by_length"),
    ("curriculum.total_tokens=5", f"curriculum: {ONE_TOTAL}; found total_steps and total_tokens"),
    ("curriculum.total_steps=null", f"curriculum: {ONE_TOTAL}; found none"),
    ("model.pretrained=x", "model: needs exactly one of architecture, pretrained; found architecture and pretrained"),
    ("tokenizer={}", "tokenizer: needs exactly one of path, train; found none"),
    ("data.train=[]", "data.train: found []; allowed: at least 1 item"),
    ("data.train={pth: a}", "data.train.0.pth: unknown key; allowed: path, text, name, weight (did you mean 'path'?)"),
    ("data.train={weight: 2}", "data.train.0: needs exactly one of path, text; found none"),
    (
        "data.train={text: a}",
        "tokenizer: is required with a text source; give path, or train: {vocab_size: 8192}",
    ),
    (
        "data.validation_fraction=0.1",
        "data.validation_fraction: needs a text source in data.train; for token files give data.validation",
    ),
    (
        "tokenizer.train.vocab_size=300",
        "tokenizer.train: needs a text source in data.train; a prepared corpus has its tokenizer already",
    ),
    (
        "curriculum.stages=[]",
        "curriculum.stages: found an empty list; allowed: at least one stage, or leave it out",
    ),
    ("curriculum.stages=[{step: 5}]", "curriculum.stages.0.step: found 5; the first stage starts at 0"),
    (
        "curriculum.stages=[{step: 0}, {step: 9}, {step: 9}]",
        "curriculum.stages.2.step: found 9; allowed: more than the stage before it, 9",
    ),
    (
        "curriculum.stages=[{step: 0}, {seq_len: 64}]",
        "curriculum.stages.1: does not say where it starts; give step, tokens or fraction",
    ),
    (
        "curriculum.stages=[{step: 0, fraction: 0}]",
        "curriculum.stages.0: states step and fraction; allowed: one of step, tokens, fraction",
    ),
    (
        "curriculum.stages=[{step: 0, seq_len: 2048}]",
        "curriculum.stages.0.seq_len: found 2048; allowed: up to data.max_seq_len, 1024; "
        "shorten it or raise data.max_seq_len",
    ),
    (
        "curriculum.stages=[{step: 0, lr_multiplier: 2, peak_lr: 1}]",
        "curriculum.stages.0.peak_lr: excludes lr_multiplier; give one of the two",
    ),
    (
        "curriculum={stages: [{step: 0}], pacing: {start_seq_len: 8, fraction: 0.3}}",
        "curriculum.pacing: excludes curriculum.stages; give one of the two",
    ),
    (
        "curriculum.pacing={start_seq_len: 8, fraction: 0.3, multiple: 12}",
        "curriculum.pacing.multiple: found 12; allowed: a multiple of 8",
    ),
    (
        "curriculum.pacing.start_seq_len=8",
        "curriculum.pacing: needs exactly one of fraction, steps, tokens; found none",
    ),
    (
        "schedule.warmup={tokens: 5, steps: 3}",
        "schedule.warmup: states tokens and steps; allowed: one of tokens, steps, fraction",
    ),
    (
        "param_groups.decay=0.9",
        "param_groups.decay: does nothing without param_groups.kind; give kind: layerwise, or leave it out",
    ),
    (
        "schedule.power=2",
        "schedule.power: found 2.0, which does nothing for type cosine; allowed with type polynomial; leave it out",
    ),
    (
        "schedule={type: [noam]}",
        "schedule.type: found ['noam']; allowed: constant, step, multistep, exponential, linear, polynomial, cosine, "
        "cosine_restarts, triangular, triangular2, exp_range, one_cycle, noam, inverse_sqrt, wsd, plateau, custom "
        "(did you mean 'noam'?)",
    ),
    ("schedule={type: step, gamma: 1.5}", "schedule.gamma: found 1.5; allowed: a number of at most 1"),
    (
        "schedule={type: exponential, k: 0.1, gamma: 0.5}",
        "schedule.k: excludes gamma and decay_every; give one of the two forms",
    ),
    (
        "schedule={type: one_cycle, base_momentum: 0.9, max_momentum: 0.8}",
        "schedule.base_momentum: found 0.9; allowed: up to schedule.max_momentum, 0.8",
    ),
    (
        "schedule={type: one_cycle, cycle_momentum: false, max_momentum: 0.9}",
        "schedule.max_momentum: found 0.9, which does nothing with cycle_momentum false; leave it out",
    ),
    (
        "schedule={type: one_cycle, three_phase: true, pct_start: 0.5}",
        "schedule.pct_start: found 0.5; allowed with three_phase: less than 0.5",
    ),
    ("schedule.type=custom", "schedule.function: found null; type custom needs package.module.function"),
    ("param_groups.kind=patterns", "param_groups.table: is required for kind patterns, e.g. {'*.wte.*': 0.1}"),
    (
        "param_groups.no_decay=['*.wte.*', 3]",
        "param_groups.no_decay.1: found 3; allowed: text (in quotes where it looks like a number)",
    ),
    (
        "deepspeed.offload_param={device: cpu}",
        "deepspeed.offload_param: needs deepspeed.zero_stage 3, found 1",
    ),
    (
        "param_groups={kind: layerwise, backbone_multiplier: 0.5}",
        "param_groups.backbone_multiplier: found 0.5, which does nothing for kind layerwise; allowed with kind "
        "two_group; leave it out",
    ),
    (
        "param_groups={kind: none, decay: 0.5}",
        "param_groups.decay: found 0.5, which does nothing for kind none; allowed with kind layerwise; leave it out",
    ),
    (
        "deepspeed.offload_optimizer={device: nvme}",
        "deepspeed.offload_optimizer.nvme_path: is required for device nvme",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[change for change, _ in BAD])
def test_one_mistake_gives_one_message(change: str, message: str) -> None:
    assert found_problems(recipe_data(change)) == [message]


def test_fp16_settings_without_fp16() -> None:
    data = recipe_data("precision=bf16", "deepspeed.fp16.hysteresis=4")
    assert found_problems(data) == ["deepspeed.fp16: needs precision fp16 or auto, found bf16"]


def test_an_empty_recipe_names_all_that_is_required() -> None:
    assert found_problems({}) == [
        "model: needs exactly one of architecture, pretrained; found none",
        "data.train: is required: Training corpora",
        f"curriculum: {ONE_TOTAL}; found none",
        "optimizer.lr: is required: Base learning rate; a stage's peak is this times its multiplier",
    ]


def test_many_problems_at_once_in_the_order_of_the_schema() -> None:
    data = recipe_data(
        "precision=half",
        "tracking.tensorboard=true",
        "optimizer.lr=-1",
        "curriculum.stages=[{step: 0, seq_len: x}, {step: 0, seq_len: 4096}, 7]",
        "run.seed=x",
        "nonsense=1",
    )
    assert [problem.split(":")[0] for problem in found_problems(data)] == [
        "run.seed",
        "curriculum.stages.0.seq_len",
        "curriculum.stages.2",
        "curriculum.stages.1.step",
        "curriculum.stages.1.seq_len",
        "optimizer.lr",
        "precision",
        "tracking.tensorboard",
        "nonsense",
    ]


def test_the_heading_names_source_and_number() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe_data("run.seed=-1", "optimizer.lr=0"), source="my.yaml")
    assert str(caught.value).splitlines()[0] == "my.yaml: 2 problems"


# a mistake in one field, and another that must be seen all the same
@pytest.mark.parametrize(
    "mistake",
    [
        "optimizer.betas=[0.9, x]",
        "tracking.wandb.tags=[1]",
        "deepspeed.offload_param.pin_memory=true",
        "curriculum.pacing={fraction: 0.3}",
        "curriculum.grad_clip=wide",
        "param_groups={kind: patterns, table: {a: x}}",
        "model=gpt2",
        "data=mine",
        "curriculum.foo=1",
    ],
)
def test_a_mistyped_field_hides_no_other_problem(mistake: str) -> None:
    alone = found_problems(recipe_data(mistake))
    assert len(alone) == 1
    both = found_problems(recipe_data(mistake, "schedule.warmup={tokens: 5, steps: 3}"))
    assert sorted(both) == sorted(
        [*alone, "schedule.warmup: states tokens and steps; allowed: one of tokens, steps, fraction"]
    )


@pytest.mark.parametrize("key", ["foo=1", "grad_clip=wide", "lr_scaling=3"])
def test_a_mistake_in_a_section_does_not_hide_what_the_section_lacks(key: str) -> None:
    problems = found_problems(recipe_data("curriculum.total_steps=null", f"curriculum.{key}"))
    assert f"curriculum: {ONE_TOTAL}; found none" in problems
    assert len(problems) == 2


# a wrong or misspelled key is not reported again as a missing one, nor by a check that saw its stand-in
@pytest.mark.parametrize(
    ("data", "path"),
    [
        (recipe_data("optimizer.lrr=1", "data.max_seq_len=64", without=["optimizer"]), "optimizer.lrr"),
        (recipe_data("curriculum.total_step=9", without=["curriculum"]), "curriculum.total_step"),
        (recipe_data("curriculum.total_steps=many"), "curriculum.total_steps"),
        (recipe_data("data.max_seq_len=2o48", "curriculum.stages=[{step: 0, seq_len: 2000}]"), "data.max_seq_len"),
        (recipe_data("deepspeed={zero_stage: x, offload_param: {device: cpu}}"), "deepspeed.zero_stage"),
        (recipe_data("curriculum.stages=[{step: 0}, {step: x}, {step: 5}]"), "curriculum.stages.1.step"),
        (recipe_data("tokenizer=3", "data.train={text: a}"), "tokenizer"),
        (recipe_data("tokenizer.train={}", "data.train={text: a}"), "tokenizer.train.vocab_size"),
    ],
)
def test_no_false_problem_follows(data: dict[str, Any], path: str) -> None:
    problems = found_problems(data)
    assert [problem.split(":")[0] for problem in problems] == [path]


def test_checks_of_the_caller_run_on_what_is_valid() -> None:
    seen: list[Recipe] = []

    def check(recipe: Recipe) -> list[Problem]:
        seen.append(recipe)
        return [Problem("train.micro_batch_size", "does not divide"), Problem("run.seed", "is not liked")]

    problems = found_problems(recipe_data("run.seed=x", "optimizer.weight_decay=0.3"), check)
    assert [problem.split(":")[0] for problem in problems] == ["run.seed", "train.micro_batch_size"]
    assert seen[0].optimizer.weight_decay == 0.3


def test_parsing_leaves_its_input_alone() -> None:
    data = recipe_data("run.seed=x", "data.train=a")
    before = recipe_data("run.seed=x", "data.train=a")
    found_problems(data)
    assert data == before
