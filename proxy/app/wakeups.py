"""Signals as entries of a list, and a descriptor that becomes readable with them, for a `selectors` loop."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterable
from types import FrameType
from typing import Any


class Wakeups:
    """The signals of a process without threads, between open() and close()."""

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        """Nothing is changed yet."""
        self._numbers = tuple(numbers)
        self._came: list[int] = []
        self._before: dict[int, Any] = {}
        self._ear, self._bell = socket.socketpair()
        for end in (self._ear, self._bell):
            end.setblocking(False)

    def fileno(self) -> int:
        """Readable once a signal has come."""
        return self._ear.fileno()

    def open(self) -> None:
        """Take the signals from here on, those too that came while they were blocked."""
        signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        for number in self._numbers:
            self._before[number] = signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)

    def take(self) -> list[int]:
        """The signals that have come since the last call, in their order."""
        with contextlib.suppress(BlockingIOError):
            while self._ear.recv(4096):
                pass
        came, self._came = self._came, []
        return came

    def block(self) -> None:
        """From here on they wait; a program that takes our place by execv() gets them."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)

    def unblock(self) -> None:
        """Undo block()."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)

    def close(self) -> None:
        """Undo open(); from here on they wait, so that none is the last word of a process that has done its work."""
        self.block()
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._ear.close()
        self._bell.close()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        # The octet in the socket pair only wakes: it is lost where there is no room, this is not.
        self._came.append(number)
