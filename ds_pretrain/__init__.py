"""Pretraining language models on DeepSpeed with sequence-length curricula."""

__version__ = "0.1.0"
