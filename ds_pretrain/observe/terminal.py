"""Standard output and error that outlive whoever reads them.

A run may outlive its terminal, or the ``tee`` that Ctrl-C ended first; a line that nobody can read any more must not
cost the checkpoint that is about to be saved.
"""

from __future__ import annotations

import io
import sys
from typing import Any, TextIO


class _LastingFile(io.FileIO):
    """A file whose failing writes are dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """Lets this process go on where its output is closed, hung up, or a file on a full disk."""
    sys.stdout = _lasting(sys.stdout)
    sys.stderr = _lasting(sys.stderr)


def _lasting(stream: TextIO) -> TextIO:
    stream.flush()
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:  # not a file: nobody who may go away reads it
        return stream
    file = io.BufferedWriter(_LastingFile(descriptor, "w", closefd=False))
    return io.TextIOWrapper(file, stream.encoding, stream.errors, line_buffering=True)
