"""Recipes: what a run is, as one checked and frozen value."""

from ds_pretrain.config.curriculum import Curriculum, LrScaling, Pacing, Stage
from ds_pretrain.config.data import Data, Model, Run, Source, Tokenizer
from ds_pretrain.config.load import load_recipe
from ds_pretrain.config.optimization import Optimizer, ParamGroups, Schedule, Warmup
from ds_pretrain.config.parse import Check, dump_recipe, parse_recipe
from ds_pretrain.config.runtime import Checkpoint, DeepSpeed, LrFinder, Offload, Safety, Wandb
from ds_pretrain.config.schema import Recipe

__all__ = [
    "Check",
    "Checkpoint",
    "Curriculum",
    "Data",
    "DeepSpeed",
    "LrFinder",
    "LrScaling",
    "Model",
    "Offload",
    "Optimizer",
    "Pacing",
    "ParamGroups",
    "Recipe",
    "Run",
    "Safety",
    "Schedule",
    "Source",
    "Stage",
    "Tokenizer",
    "Wandb",
    "Warmup",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
]
