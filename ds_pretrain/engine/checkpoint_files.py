"""Checkpoints as folders on disk: names, manifest, verification and retention. Needs neither torch nor deepspeed.

A checkpoint is written beside its final name and becomes visible by one rename, after a manifest with the size and
checksum of every file; so a folder that stands under its final name is whole unless the disk damaged it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ds_pretrain.errors import CheckpointError

MANIFEST = "manifest.json"
STATE = "state.json"
_NAME = re.compile(r"step_(\d{8,})")
_ASIDE = re.compile(r"(damaged|rejected)_step_(\d{8,})")
_READ_BYTES = 1 << 20
# DeepSpeed finds what it unpickles by patterns of names
_UNPICKLED = "engine/**/*.pt"


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """Final name of the checkpoint after ``step`` steps."""
    return checkpoints / f"step_{step:08d}"


def partial_folder(checkpoints: Path, step: int) -> Path:
    """Where that checkpoint is written before it is whole."""
    return checkpoints / f".step_{step:08d}.partial"


def list_checkpoints(checkpoints: Path) -> list[tuple[int, Path]]:
    """Visible checkpoints as (step, folder), oldest first."""
    if not checkpoints.is_dir():
        return []
    found = ((_NAME.fullmatch(path.name), path) for path in checkpoints.iterdir() if path.is_dir())
    return sorted((int(match.group(1)), path) for match, path in found if match)


def list_set_aside(checkpoints: Path) -> list[tuple[int, str, Path]]:
    """Checkpoints that were taken out of the list, as (step, why, folder), oldest first."""
    if not checkpoints.is_dir():
        return []
    found = ((_ASIDE.fullmatch(path.name), path) for path in checkpoints.iterdir() if path.is_dir())
    return sorted((int(match.group(2)), match.group(1), path) for match, path in found if match)


def files_of(folder: Path) -> list[str]:
    """Every file of a checkpoint but the manifest, as sorted relative paths."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if path != MANIFEST)


def record_files(folder: Path, names: Sequence[str]) -> dict[str, FileRecord]:
    """Flushes files to the disk and takes their sizes and checksums.

    Args:
        folder: the checkpoint.
        names: relative paths; ranks share the work by passing different ones.

    Returns:
        A record for every name.
    """
    records = {}
    for name in names:
        _sync(folder / name)
        records[name] = _measure(folder / name)
    return records


def publish(partial: Path, final: Path, step: int, files: Mapping[str, FileRecord], about: Mapping[str, Any]) -> None:
    """Writes the manifest and makes the checkpoint visible by one rename.

    Args:
        partial: where every file lies, already flushed.
        final: the visible name; must not exist.
        step: steps done.
        files: a record of every file.
        about: what else the manifest states, such as world size.
    """
    document = {
        "format": 1,
        "step": step,
        **about,
        "files": {name: {"size": files[name].size, "sha256": files[name].sha256} for name in sorted(files)},
    }
    write_durably(partial / MANIFEST, json.dumps(document, indent=2) + "\n")
    for folder in sorted({parent for name in files for parent in Path(name).parents}):
        _sync(partial / folder)
    os.replace(partial, final)
    _sync(final.parent)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: it is missing or unreadable.
    """
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        for name, record in document["files"].items():
            if not isinstance(record["size"], int) or not isinstance(record["sha256"], str):
                raise ValueError(f"no size and checksum of {name}")
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{name} lies outside the checkpoint")
        if STATE not in document["files"] or not isinstance(document["step"], int):
            raise ValueError(f"{STATE} or the step is missing")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        # RuntimeError: a loop of links, or nesting without end
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{path}: not a checkpoint's manifest ({reason})") from error
    return document  # type: ignore[no-any-return]


def damage(folder: Path, share: int = 0, shares: int = 1) -> list[str]:
    """What is wrong with a checkpoint's files; an empty list where nothing is.

    Args:
        folder: the checkpoint.
        share: which part of the files to read, 0 to shares - 1.
        shares: into how many parts ranks divide the reading.

    Returns:
        One sentence for every file that is missing, differs from the manifest, or would be opened without standing
        in it. Other files that do not stand in it are never opened.
    """
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return [str(error)]
    files = manifest["files"]
    problems = [_harm(folder / name, files[name]) for name in sorted(files)[share::shares]]
    if share == 0:
        foreign = sorted({path.relative_to(folder).as_posix() for path in folder.glob(_UNPICKLED)} - set(files))
        problems += [f"{folder / name} does not stand in {MANIFEST}; remove it" for name in foreign]
    named = _NAME.fullmatch(folder.name)
    if named and int(named.group(1)) != manifest["step"]:
        problems.append(f"{folder / MANIFEST} is that of step {manifest['step']}")
    return [problem for problem in problems if problem is not None]


def _harm(path: Path, record: Mapping[str, Any]) -> str | None:
    """What is wrong with one file; None where nothing is."""
    try:
        found = path.stat().st_size
        if not path.is_file() or found != record["size"]:
            return f"{path} has {found} bytes instead of {record['size']}"
        return None if _measure(path).sha256 == record["sha256"] else f"{path} does not match its checksum"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"


def superseded(steps: Sequence[int], keep_last: int, keep_every_steps: int | None) -> list[int]:
    """Steps whose checkpoints retention gives up.

    Args:
        steps: steps of all visible checkpoints.
        keep_last: how many of the newest stay.
        keep_every_steps: checkpoints at multiples of this stay for good; None for none.

    Returns:
        The steps to delete, oldest first.
    """
    kept = set(sorted(steps)[-keep_last:])
    return [
        step for step in sorted(steps) if step not in kept and not (keep_every_steps and step % keep_every_steps == 0)
    ]


def delete_checkpoint(folder: Path) -> None:
    """Removes a checkpoint; it stops being visible before its first file goes."""
    doomed = folder.with_name(f".{folder.name}.deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed)


def set_aside(folder: Path, why: Literal["damaged", "rejected"]) -> None:
    """Takes a checkpoint out of the list, where retention would count it and its step be saved again.

    Args:
        folder: the checkpoint.
        why: goes before its name.
    """
    hidden = folder.with_name(f"{why}_{folder.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(folder, hidden)


def clear_leftovers(checkpoints: Path) -> None:
    """Removes what a killed save or deletion left behind."""
    if checkpoints.is_dir():
        for path in checkpoints.glob(".step_*"):
            shutil.rmtree(path, ignore_errors=True)


def write_durably(path: Path, text: str) -> None:
    """Writes a text file and flushes it to the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, text: str) -> None:
    """Replaces a text file as a whole: after a crash it is either the old one or the new one."""
    beside = path.with_name(f".{path.name}.partial")
    write_durably(beside, text)
    os.replace(beside, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _measure(path: Path) -> FileRecord:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return FileRecord(path.stat().st_size, digest.hexdigest())
