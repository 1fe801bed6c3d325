"""Weights & Biases: the records of a run as charts over tokens.

W&B counts its own history rows and refuses one that goes back, which a resumed or rolled-back run would ask
for. So no row number is ever passed: ``tokens`` is a column like the others, and ``define_metric`` makes it
the x axis. A run keeps its W&B id in the file ``wandb_id`` of its folder, and a resumed run continues under
it. Console output is not captured and nothing of the environment is recorded.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from ds_pretrain.errors import UserError
from ds_pretrain.observe.tracker import SafeTracker, warn_dropped

if TYPE_CHECKING:
    import wandb

ID_FILE = "wandb_id"

# Below the time a stopped run is given to leave (checkpoint.grace_seconds), so that an upload over a dead
# network does not turn a clean stop into a killed one. What is not uploaded stays on disk for `wandb sync`.
FINISH_SECONDS = 60.0


class WandbSettings(Protocol):
    """The recipe's section ``tracking.wandb``."""

    @property
    def mode(self) -> Literal["online", "offline", "disabled"]: ...
    @property
    def project(self) -> str | None: ...
    @property
    def entity(self) -> str | None: ...
    @property
    def group(self) -> str | None: ...
    @property
    def tags(self) -> Sequence[str]: ...
    @property
    def notes(self) -> str | None: ...
    @property
    def name(self) -> str | None: ...


class WandbTracker:
    """One W&B run, online or offline.

    Args:
        settings: the recipe's ``tracking.wandb``; its mode is not ``disabled``.
        run_dir: the run's folder; W&B writes to ``wandb/`` inside it.
        run_name: the name shown where the settings have none.
        config: the recipe as plain values, shown with the run.
        run_id: the W&B id; the same id continues the same W&B run.

    Raises:
        UserError: the mode is ``online`` and no W&B key is configured.
        wandb.Error: W&B could not start the run.
    """

    def __init__(
        self, settings: WandbSettings, run_dir: Path, run_name: str, config: dict[str, object], run_id: str
    ) -> None:
        import wandb

        # wandb.init would ask for a key on a terminal, and every other rank would wait for the answer.
        if settings.mode == "online" and not wandb.login(prompt=False):
            raise UserError(
                "tracking.wandb.mode: online needs a W&B key; run `wandb login`, set WANDB_API_KEY, or choose offline"
            )
        run_dir.mkdir(parents=True, exist_ok=True)
        self._run: wandb.Run = wandb.init(
            id=run_id,
            resume="allow",
            mode=settings.mode,
            dir=str(run_dir),
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            tags=list(settings.tags),
            notes=settings.notes,
            name=settings.name or run_name,
            config=config,
            settings=wandb.Settings(console="off", finish_timeout=FINISH_SECONDS),
        )
        self._run.define_metric("tokens")
        self._run.define_metric("*", step_metric="tokens")

    def log_metrics(self, record: Mapping[str, object]) -> None:
        self._run.log(validation_row(record) if "val_loss" in record else step_row(record))

    def log_event(self, record: Mapping[str, object]) -> None:
        """Keep the latest event of each kind in the run's summary, as text."""
        self._run.summary[f"event/{record['event']}"] = json.dumps(dict(record), default=str)

    def close(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


def start_wandb(settings: WandbSettings, run_dir: Path, run_name: str, config: dict[str, object]) -> SafeTracker | None:
    """Start or continue the W&B run of a run folder.

    Args:
        settings: the recipe's ``tracking.wandb``.
        run_dir: the run's folder.
        run_name: the name shown where the settings have none.
        config: the recipe as plain values.

    Returns:
        The tracker, or None where W&B is disabled or could not be started, which is warned of.
    """
    if settings.mode == "disabled":
        return None
    try:
        run_id = load_or_create_run_id(run_dir)
        return SafeTracker("W&B", WandbTracker(settings, run_dir, run_name, config, run_id))
    except Exception as error:
        warn_dropped("W&B", error)
        return None


def load_or_create_run_id(run_dir: Path) -> str:
    """The W&B id of a run folder, made at its first use.

    Args:
        run_dir: the run's folder; made if it does not exist.

    Returns:
        Eight characters or more, the same at every call for the same folder.
    """
    path = run_dir / ID_FILE
    if path.exists() and (run_id := path.read_text(encoding="utf-8").strip()):
        return run_id
    run_dir.mkdir(parents=True, exist_ok=True)
    run_id = secrets.token_hex(4)
    path.write_text(run_id + "\n", encoding="utf-8")
    return run_id


def step_row(record: Mapping[str, object]) -> dict[str, object]:
    """The columns of a step: its numbers under their own names, and ``lr/<group>`` for every group and
    ``epoch/<source>`` for every training source.

    Args:
        record: a step's line of ``metrics.jsonl``.

    Returns:
        Names to numbers; what is None is left out.
    """
    row: dict[str, object] = {}
    for key, value in record.items():
        if key == "lr_groups" and isinstance(value, Mapping):
            row.update({f"lr/{group}": lr for group, lr in value.items()})
        elif key == "epochs" and isinstance(value, Mapping):
            row.update({f"epoch/{source}": epoch for source, epoch in value.items()})
        else:
            row[key] = value
    return _numbers(row)


def validation_row(record: Mapping[str, object]) -> dict[str, object]:
    """The columns of a validation, one pair for each source and length.

    Args:
        record: a validation line of ``metrics.jsonl``.

    Returns:
        ``step``, ``tokens``, and ``val_loss/<source>@<seq_len>`` and ``val_perplexity/<source>@<seq_len>``
        (without ``/<source>`` where the record names none); what is None is left out.
    """
    source = record.get("source")
    place = f"/{source}" if source else ""
    row = {key: record.get(key) for key in ("step", "tokens")}
    for key in ("val_loss", "val_perplexity"):
        row[f"{key}{place}@{record['seq_len']}"] = record.get(key)
    return _numbers(row)


def _numbers(row: Mapping[str, object]) -> dict[str, object]:
    """The numbers of a row, flags as 0 and 1 so that they can be drawn."""
    numbers: dict[str, object] = {}
    for key, value in row.items():
        if isinstance(value, bool):
            numbers[key] = int(value)
        elif isinstance(value, (int, float)):
            numbers[key] = value
    return numbers
