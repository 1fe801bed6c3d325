"""Keeps keys and tokens out of recipes: a recipe is kept in the run's folder, shown by trackers, and passed around.

What looks like a secret, or is the value of an environment variable that holds one, is refused wherever it stands in
a recipe or an override, and is not repeated in messages, which may end in a log.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ds_pretrain.errors import Problem

_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)$")
_KEY = re.compile(r"(^|[_-])(api_?key|access_?key|secret(_?key)?|password|passwd|(auth|access)_?token)$", re.IGNORECASE)
_FORMS = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}"
    r"|\bwandb_v\d_[A-Za-z0-9_]{20,}"
    r"|\bgithub_pat_[A-Za-z0-9_]{20,}|\bgh[opsur]_[A-Za-z0-9]{20,}|\bglpat-[A-Za-z0-9_-]{16,}"
    r"|\bsk-[A-Za-z0-9_-]{20,}|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|\bAKIA[0-9A-Z]{16}\b"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"
    r"|(?<=://)[^/\s:@]+:[^/\s:@]+(?=@)"
    r"|(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")  # the form of W&B's older keys, and that of a git commit
_SHORTEST = 12
_HIDDEN = "***"


def secret_problems(data: Mapping[str, Any]) -> list[Problem]:
    """Where a recipe holds what looks like a secret.

    Args:
        data: the recipe as plain data, before it is checked.

    Returns:
        One problem for every place; the secret is not in it.
    """
    return [
        Problem(
            path,
            "holds what looks like a key or token, and a recipe is kept in the run's folder and shown by trackers; "
            "take it out and set it in the environment (WANDB_API_KEY, HF_TOKEN, …)",
        )
        for path, key, text in _texts(data, "", "")
        if _holds_secret(path, key, text)
    ]


def without_secrets(problems: Sequence[Problem]) -> list[Problem]:
    """The same problems with three stars in the place of every secret."""
    return [Problem(_hide(problem.path), _hide(problem.message)) for problem in problems]


def _holds_secret(path: str, key: str, text: str) -> bool:
    if text and _KEY.search(key):
        return True
    if any(value in text for value in _in_environment()):
        return True
    # a commit of a model on the hub may stand anywhere but among the trackers
    return any(path.startswith("tracking.") or not _COMMIT.fullmatch(found) for found in _FORMS.findall(text))


def _hide(text: str) -> str:
    for value in _in_environment():
        text = text.replace(value, _HIDDEN)
    return _FORMS.sub(_HIDDEN, text)


def _in_environment() -> list[str]:
    """Longest first, so that no part of one stays."""
    values = {value for name, value in os.environ.items() if len(value) >= _SHORTEST and _VARIABLE.search(name)}
    return sorted(values, key=len, reverse=True)


def _texts(value: Any, path: str, key: str) -> Iterator[tuple[str, str, str]]:
    """Every text of the data, keys of mappings included, with its path and the key that it stands under."""
    if isinstance(value, str):
        yield path, key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            below = f"{path}.{name}" if path else str(name)
            yield path, "", str(name)
            yield from _texts(inner, below, str(name))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _texts(inner, f"{path}.{index}", key)
