"""Memory that a storm of clients has taken goes back to the system when they are gone.

The C library keeps what is freed, a few octets in use here and there in it: after thousands of handshakes at once that
is hundreds of MiB. Where there is no malloc_trim(3), it does.
"""

from __future__ import annotations

import ctypes

# Fewer clients than this are not worth the while.
LEAST = 500


class Ebb:
    """Notices when most of those that were there have gone."""

    def __init__(self) -> None:
        self._most = 0

    def is_out(self, clients: int) -> bool:
        """Whether there are less than half of the most that there were since this was true the last time."""
        self._most = max(self._most, clients)
        if self._most < LEAST or clients > self._most // 2:
            return False
        self._most = clients
        return True


def give_back() -> None:
    """Give free memory back. It takes some milliseconds, without Python's lock."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
