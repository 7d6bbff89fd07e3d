"""Listening sockets and the loop that accepts from them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

import trio

from proxy.model import Endpoint
from proxy.observe import metrics
from proxy.observe.log import get_logger

log = get_logger()

BACKLOG = 4096
_ACCEPTS_PER_TURN = 64
# Of one connection that ended before it was accepted (accept(2)). Any other error, EMFILE and ENOMEM above all, makes
# accepting pause: what is missing will be given back, and nothing that a network reports may end the service.
_ONE_CONNECTION = frozenset({errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ETIMEDOUT})
_EXHAUSTED_PAUSE_SECONDS = 0.1

_PAUSES = metrics.counter(
    "porter_accept_pauses_total", "Times that accepting paused, for want of descriptors or memory."
)

KEEPALIVE_IDLE_SECONDS = 180
# A client that does not read may keep this much in the kernel before back-pressure reaches the backend.
NOT_SENT_LOW_WATER_BYTES = 262144


class BindFailed(Exception):
    """An address cannot be listened on. The text says which and why."""


def bind(endpoint: Endpoint) -> socket.socket:
    """A listening, non-blocking TCP socket.

    Accepted sockets inherit what is set here (Linux), so that a connection costs no further system calls.

    Raises:
        BindFailed: The address is taken, not this machine's, or not permitted.
    """
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as exc:
        raise BindFailed(f"cannot listen on {endpoint}: {exc.strerror}") from exc
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # [::] takes IPv4 as well, as administrators expect of one line; any other address is what it says.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if endpoint.host == "::" else 1)
        tune(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_LOW_WATER_BYTES)
        sock.bind((endpoint.host, endpoint.port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise BindFailed(f"cannot listen on {endpoint}: {exc.strerror}") from exc
    return sock


def tune(sock: socket.socket) -> None:
    """No waiting for delayed acknowledgements, and peers that vanished are noticed."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)


def plain_host(host: str) -> str:
    """An address as people write it: IPv4 on a socket for both (RFC 4291 §2.5.5.2) as IPv4, no zone."""
    return host.removeprefix("::ffff:").partition("%")[0]


async def accept_forever(listener: socket.socket, accepted: Callable[[socket.socket, Any], None]) -> None:
    """Hand every new connection (non-blocking socket, peer's socket address) to `accepted`, which must not wait."""
    pausing = False
    while True:
        await trio.lowlevel.wait_readable(listener)
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno in _ONE_CONNECTION:
                    continue
                if not pausing:  # once per spell
                    log.warning("listener.exhausted", error=exc.strerror, pause_seconds=_EXHAUSTED_PAUSE_SECONDS)
                pausing = True
                _PAUSES.inc()
                await trio.sleep(_EXHAUSTED_PAUSE_SECONDS)
                break
            pausing = False
            sock.setblocking(False)
            accepted(sock, address)
