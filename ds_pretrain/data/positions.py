"""How long an epoch is."""

from __future__ import annotations

from pathlib import Path

from ds_pretrain.config import Recipe
from ds_pretrain.data.indexed import TokenFile, idx_path
from ds_pretrain.errors import DataError


def epoch_positions(prefix: Path, max_seq_len: int) -> int:
    """Positions of one epoch: those of the whole windows of a token file.

    Args:
        prefix: the token file.
        max_seq_len: positions of a window.

    Raises:
        DataError: it holds no whole window.
    """
    tokens = TokenFile.open(prefix).num_tokens
    windows = (tokens - 1) // max_seq_len
    if windows < 1:
        raise DataError(
            f"{prefix}: has {tokens} tokens, but one window needs {max_seq_len + 1}; "
            "use more text, or a smaller data.max_seq_len"
        )
    return windows * max_seq_len


def known_positions(recipe: Recipe) -> int | None:
    """Positions of one epoch of a recipe's training corpus; None where it is still to be prepared."""
    path = recipe.data.train[0].path
    if path is None or not idx_path(Path(path)).is_file():
        return None
    return epoch_positions(Path(path), recipe.data.max_seq_len)
