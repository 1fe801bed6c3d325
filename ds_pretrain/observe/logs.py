"""Where libraries log: DeepSpeed's and transformers' own messages go to a file in the run's folder."""

from __future__ import annotations

import logging
from pathlib import Path

LOG_FILE = "deepspeed.log"
_FORMAT = "%(asctime)s %(levelname)s %(name)s %(filename)s:%(lineno)d %(message)s"


def quiet_imports() -> None:
    """Keeps DeepSpeed from telling on every import, on standard output, that it found no GPU; to be called before."""
    logging.getLogger("DeepSpeed").addFilter(_tells_something)


def _tells_something(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Setting accelerator to CPU")


def quiet_libraries(run_dir: Path | None) -> None:
    """Sends the libraries' messages to a file; only errors still reach the terminal.

    Args:
        run_dir: the run's folder on rank 0; None on other ranks, which keep their errors alone.
    """
    handlers: list[logging.Handler] = []
    if run_dir is not None:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(run_dir / LOG_FILE, encoding="utf-8")
        file.setFormatter(logging.Formatter(_FORMAT))
        handlers.append(file)
    for name in ("DeepSpeed", "transformers", "datasets", "accelerate"):
        library = logging.getLogger(name)
        for handler in library.handlers:
            handler.setLevel(logging.ERROR)
        for handler in handlers:
            library.addHandler(handler)
    logging.captureWarnings(True)
    warnings_logger = logging.getLogger("py.warnings")
    warnings_logger.propagate = False
    for handler in handlers or [logging.NullHandler()]:
        warnings_logger.addHandler(handler)
