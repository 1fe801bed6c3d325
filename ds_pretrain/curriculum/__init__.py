"""Curriculum: from a recipe's stages to an exact plan. Pure Python, no torch, no deepspeed."""

from ds_pretrain.curriculum.plan import Plan, StagePlan, build_plan, plan_problems

__all__ = ["Plan", "StagePlan", "build_plan", "plan_problems"]
