"""Data sets of the ``datasets`` library as a source of text: in a folder or from the hub, streamed or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ds_pretrain.errors import DataError

_ROWS_AT_ONCE = 64
_DEFAULT_ROW_BYTES = 1000  # where a data set does not say how large it is


@dataclass(frozen=True)
class DatasetReference:
    """What to load.

    Args:
        name: a folder that ``save_to_disk`` made, or what ``load_dataset`` takes.
        subset: its configuration, or None.
        split: its split.
        streaming: read as it arrives.
        part: of a stream, which of its shards.
    """

    name: str
    subset: str | None
    split: str | None
    streaming: bool
    part: int = 0


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` made this folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def dataset_parts(
    name: str, split: str | None, subset: str | None, streaming: bool
) -> list[tuple[DatasetReference, int, str]]:
    """What to read one after another of a data set, each with its size in bytes and a stamp of its content.

    Raises:
        DataError: it cannot be loaded, or has several splits and none was chosen.
    """
    whole = DatasetReference(name, subset, split, streaming)
    data = _load(whole)
    if streaming:
        return [
            (DatasetReference(name, subset, split, streaming, part), 1, str(data.info.version))
            for part in range(data.num_shards)
        ]
    return [(whole, data.dataset_size or len(data) * _DEFAULT_ROW_BYTES, str(data._fingerprint))]


def dataset_texts(reference: DatasetReference, field: str, first: int, last: int | None) -> Iterator[tuple[int, Any]]:
    """Number of each row and the value of ``field`` in it, for the rows from ``first`` to before ``last``.

    Raises:
        DataError: the field is missing, or reading fails.
    """
    data = _load(reference)
    columns = data.column_names
    if columns is not None and field not in columns:
        raise DataError(
            f"{reference.name}: no field {field!r}; its fields: {', '.join(map(repr, columns))}; choose the one that "
            "holds the text (--text-field)"
        )
    try:
        if reference.streaming:
            rows = data.shard(num_shards=data.num_shards, index=reference.part)
            yield from ((first + number, row.get(field)) for number, row in enumerate(rows.skip(first)))
            return
        for start in range(first, last if last is not None else len(data), _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, last if last is not None else len(data))
            yield from zip(range(start, stop), data[start:stop][field], strict=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{reference.name}: cannot be read: {error}") from error


def dataset_rows(reference: DatasetReference) -> int:
    """Rows of a data set that is not streamed."""
    return len(_load(reference))


@lru_cache(maxsize=4)
def _open(name: str, subset: str | None, split: str | None, streaming: bool) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        if is_saved_dataset(Path(name)):
            data = datasets.load_from_disk(name)
            data = data.to_iterable_dataset() if streaming and isinstance(data, datasets.Dataset) else data
            if isinstance(data, dict) and split in data:
                return data[split].to_iterable_dataset() if streaming else data[split]
        else:
            data = datasets.load_dataset(name, subset, split=split, streaming=streaming)
    except Exception as error:  # datasets raises anything for what it cannot load
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{name}: cannot be loaded as a data set: {reason}; allowed: a folder of save_to_disk, a folder of "
            "Parquet or JSON, or a name on the hub (--subset, --split)"
        ) from error
    if isinstance(data, dict):
        if split is not None or len(data) != 1:
            raise DataError(f"{name}: found split {split!r}; allowed: {', '.join(data)}; choose one with --split")
        return next(iter(data.values()))
    return data


def _load(reference: DatasetReference) -> Any:
    return _open(reference.name, reference.subset, reference.split, reference.streaming)
