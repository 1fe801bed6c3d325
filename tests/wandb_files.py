"""Reads what W&B wrote in an offline run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2


def records(path: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file.

    The file is LevelDB's log format: a header of 7 bytes, then blocks of 32 KiB of fragments, each with a
    checksum (4 bytes), a length (2) and a type (1: whole, 2: first, 3: middle, 4: last).
    """
    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def key_of(item: Any) -> str:
    return ".".join(item.nested_key) or item.key


def rows(log: list[Any]) -> list[dict[str, object]]:
    """The history, without W&B's own columns."""
    found = []
    for record in log:
        if record.WhichOneof("record_type") == "history":
            row = {key_of(item): json.loads(item.value_json) for item in record.history.item}
            found.append({key: value for key, value in row.items() if not key.startswith("_")})
    return found
