"""Asks to stop: SIGTERM, SIGINT, SIGUSR1 and SIGHUP set a flag that the ranks agree on at the end of a step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ds_pretrain.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

_PREPARING = "stopped on request while the corpus was prepared; the next start prepares it"


class StopRequest:
    """Remembers that this process was asked to stop; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._interrupted = False
        self._at_once = False

    def listen(self) -> None:
        """Takes over the signals; to be called once, in the main thread."""
        for number in _SIGNALS:
            # under nohup a hangup is ignored, and stays so
            if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN):
                signal.signal(number, self._on_signal)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Lets a request raise ``Stopped`` wherever it comes, for work that may take hours and can be redone."""
        self._at_once = True
        try:
            if self.requested:
                raise Stopped(_PREPARING)
            yield
        finally:
            self._at_once = False

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = self._interrupted or number == signal.SIGINT
        self.requested = True
        if self._at_once:
            self._at_once = False  # what cleans up is not interrupted again
            raise Stopped(_PREPARING)


def ignore_requests() -> None:
    """Lets no signal that asks to stop kill this process while it leaves; to be called when nothing is left to save.

    Another machine's ranks may have been asked first: all leave together, and this machine's own request comes
    when Python, on its way out, has already put the deadly default in place of a handler. To ignore it stays.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
