"""Models: built from transformers, wrapped with their loss, grouped for the optimizer, exported again."""
