"""Asks to stop: SIGTERM, SIGINT and SIGUSR1 set a flag that the ranks agree on at the end of a step."""

from __future__ import annotations

import signal
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Remembers that this process was asked to stop; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        """Takes over the signals; to be called once, in the main thread."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        self.requested = True
