"""Loopback ports for servers that must be told one before they start."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

LOOPBACK = "127.0.0.1"
_LISTEN = "0A"
# Below the range from which Linux takes the ports of outgoing connections, so none of those can get in between.
_FIRST, _LAST = 20000, 31999


class Ports:
    """Hands out free ports.

    The kernel keeps no promise about a port that nobody has bound yet. Two test runs on one machine are kept
    apart by an abstract Unix socket named after the port: it is held until close(), and vanishes with the process.
    """

    def __init__(self) -> None:
        self._claims: list[socket.socket] = []

    def take(self) -> int:
        """A port that was free a moment ago and that no other test run will take."""
        for _ in range(1000):
            port = random.randint(_FIRST, _LAST)
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                claim.bind(f"\0imap-porter-test-port-{port}")
                with socket.socket() as probe:
                    probe.bind((LOOPBACK, port))
            except OSError:
                claim.close()
                continue
            self._claims.append(claim)
            return port
        raise RuntimeError("no free port on loopback")

    def close(self) -> None:
        """Give all ports back."""
        for claim in self._claims:
            claim.close()
        self._claims.clear()


def listening() -> set[int]:
    """The ports on which somebody listens, read from the kernel: asking by connecting would leave a session behind."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            _, local, _, state, *_ = line.split()
            if state == _LISTEN:
                found.add(int(local.rpartition(":")[2], 16))
    return found


def wait_until_listening(ports: set[int], seconds: float, check_alive: Callable[[], None]) -> None:
    """Return when every port accepts.

    Args:
        check_alive: Called while waiting; raises when the server has died meanwhile.
    """
    deadline = time.monotonic() + seconds
    while missing := ports - listening():
        check_alive()
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody listens on {sorted(missing)} after {seconds} s")
        time.sleep(0.02)
