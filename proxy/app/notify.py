"""What systemd, or whoever else started us and listens, is told of our state.

Source: sd_notify(3), systemd.service(5). Every message is one datagram; where nobody listens, nothing is said.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

# We say so twice as often as we have to: one datagram may come late.
_PINGS_PER_TIMEOUT = 2


class Notifier:
    """The socket that NOTIFY_SOCKET names."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Connect to nothing yet: the service manager may restart while we run."""
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self.ping_seconds = _ping_seconds(environment)  # how often to call ping(); None: never

    def ready(self, status: str) -> None:
        """Clients are served, or a reload has ended, well or not."""
        self._say("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """The settings are read anew; ready() follows."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str, seconds: float) -> None:
        """The end has begun, and may take so long."""
        self._say("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._say(f"STATUS={status}")

    def ping(self) -> None:
        """We are alive (WatchdogSec)."""
        self._say("WATCHDOG=1")

    def _say(self, *lines: str) -> None:
        if not self._address:
            return
        # Never waits, never fails: a service manager that is gone or slow must not take the service along.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), self._address)


def _ping_seconds(environment: Mapping[str, str]) -> float | None:
    """Source: sd_watchdog_enabled(3)."""
    microseconds, process_id = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or process_id not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 1_000_000 / _PINGS_PER_TIMEOUT
