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


def ignore_requests() -> None:
    """Lets no signal that asks to stop kill this process while it leaves; to be called when nothing is left to save.

    Another machine's ranks may have been asked first: all leave together, and this machine's own request comes
    when Python, on its way out, has already put the deadly default in place of a handler. To ignore it stays.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
