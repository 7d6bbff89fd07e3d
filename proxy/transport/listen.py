"""Listening sockets and the loop that accepts from them."""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Callable
from typing import Any, Protocol

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
# At the limit each client that leaves makes room for one more: that is one spell.
_FULL_TOLD_SECONDS = 60.0

_PAUSES = metrics.counter(
    "porter_accept_pauses_total", "Times that accepting paused, for want of descriptors or memory."
)

KEEPALIVE_IDLE_SECONDS = 180
# A client that does not read may keep this much in the kernel before back-pressure reaches the backend.
NOT_SENT_LOW_WATER_BYTES = 262144


class BindFailed(Exception):
    """An address cannot be listened on. The text says which and why."""


def bind(
    endpoint: Endpoint, *, reuse_port: bool = False, beside: bool = False, listening: bool = True
) -> socket.socket:
    """A non-blocking TCP socket on an address.

    Accepted sockets inherit what is set here (Linux), so that a connection costs no further system calls.

    Args:
        reuse_port: Further sockets may join it on this address (SO_REUSEPORT, socket(7)).
        beside: It joins such a socket. Without this, an address that anybody listens on is taken, be it by sockets
            that could be joined.
        listening: Whether clients can connect at once; otherwise from listen() on.
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
        prepare(sock)
        if beside:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((endpoint.host, endpoint.port))
        if reuse_port:
            # Only now: with it, bind() would succeed beside another proxy of the same user, and share its clients.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if listening:
            sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise BindFailed(f"cannot listen on {endpoint}: {exc.strerror}") from exc
    return sock


def listen(sock: socket.socket, endpoint: Endpoint) -> None:
    """Let clients connect to what bind() has made.

    Raises:
        BindFailed: Somebody else has come to listen there.
    """
    try:
        sock.listen(BACKLOG)
    except OSError as exc:
        raise BindFailed(f"cannot listen on {endpoint}: {exc.strerror}") from exc


def prepare(sock: socket.socket) -> None:
    """What every listening TCP socket of ours has set, whoever made it."""
    tune(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_LOW_WATER_BYTES)
    sock.setblocking(False)


def tune(sock: socket.socket) -> None:
    """No waiting for delayed acknowledgements, and peers that vanished are noticed."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)


def plain_host(host: str) -> str:
    """An address as people write it: IPv4 on a socket for both (RFC 4291 §2.5.5.2) as IPv4, no zone."""
    return host.removeprefix("::ffff:").partition("%")[0]


class Room(Protocol):
    """Where clients are counted that there are descriptors for."""

    clients: int  # how many

    def is_free(self) -> bool:
        """Whether there is room for one more."""
        ...

    async def wait(self) -> None:
        """Until there may be room again."""
        ...


async def accept_forever(
    listener: socket.socket, accepted: Callable[[socket.socket, Any], None], room: Room | None = None
) -> None:
    """Hand every new connection (non-blocking socket, peer's socket address) to `accepted`, which must not wait.

    Args:
        room: While it has none, clients wait in the kernel: whoever is here already needs descriptors too. None: each
            client is welcome until there is no descriptor left.
    """
    pausing, told_at = False, -math.inf
    while True:
        await trio.lowlevel.wait_readable(listener)
        if room is not None and not room.is_free():
            told_at = _tell_full(room, told_at)
            await room.wait()
            continue
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
            if room is not None and not room.is_free():
                break


def _tell_full(room: Room, told_at: float) -> float:
    """A client waits for descriptors. Gives when that was last told."""
    _PAUSES.inc()
    now = trio.current_time()
    if now - told_at < _FULL_TOLD_SECONDS:
        return told_at
    log.warning("listener.full", clients=room.clients)
    return now
