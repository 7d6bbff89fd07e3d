"""Connections to backends: name to address, TCP, implicit TLS."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import math
import os
import socket
from typing import Any

import trio
from trio.lowlevel import wait_writable

from proxy.model import Endpoint
from proxy.outcome import Outcome, Refused
from proxy.transport.listen import tune
from proxy.transport.stream import PlainStream, Stream
from proxy.transport.tls import Context, TlsFailed, connect_tls

# Data that a backend does not acknowledge for so long means that it is gone (tcp(7), TCP_USER_TIMEOUT). It also counts
# the time that a backend is alive and does not read, and in a session that may be minutes: a mailbox lock, a slow disk.
_LOGIN_USER_TIMEOUT_MILLISECONDS = 30_000
_SESSION_USER_TIMEOUT_MILLISECONDS = 300_000
_RESOLVED_SECONDS = 30.0
_PATIENCE_SECONDS = 1.0  # with a resolver, where an older answer is at hand
_UNRESOLVED_SECONDS = 2.0  # how long a failed lookup stands for those who come next


class Address:
    """Where a backend listens: a literal address, or a name that is looked up off the loop and remembered."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._known: list[tuple[int, Any]] = []
        self._known_until = -math.inf
        self._error = ""
        self._lookup = trio.Lock()
        try:
            literal = ipaddress.ip_address(endpoint.host)
        except ValueError:
            self.is_literal = False
        else:
            self.is_literal = True
            family = socket.AF_INET if literal.version == 4 else socket.AF_INET6
            self._known = [(family, (endpoint.host, endpoint.port))]

    async def resolve(self) -> list[tuple[int, Any]]:
        """Socket family and address of each candidate, best first.

        Raises:
            Refused: UNAVAILABLE, the name has no address and none was known before.
        """
        if not self.is_literal and trio.current_time() >= self._known_until:
            async with self._lookup:  # one question for all who wait
                if trio.current_time() >= self._known_until:
                    await self._look_up()
        if not self._known:
            raise Refused(Outcome.UNAVAILABLE, f"no address for {self.endpoint.host}: {self._error}", step="resolve")
        return self._known

    async def _look_up(self) -> None:
        """Ask the system's resolver. The last good answer outlives an outage of DNS, and is not waited past."""
        self._error, lasts = "no answer", _UNRESOLVED_SECONDS
        with trio.move_on_after(_PATIENCE_SECONDS if self._known else math.inf):
            try:
                found = await trio.socket.getaddrinfo(self.endpoint.host, self.endpoint.port, type=socket.SOCK_STREAM)
            except OSError as exc:
                self._error = exc.strerror or str(exc)
            else:
                self._known = [(family, address) for family, _, _, _, address in found]
                lasts = _RESOLVED_SECONDS
        self._known_until = trio.current_time() + lasts


async def connect(address: Address, deadline: float) -> PlainStream:
    """A TCP connection to the first candidate that answers. The caller's scope ends it at the deadline.

    Args:
        deadline: On trio's clock. Each of several candidates gets its share of what is left, so that a silent one
            does not use up the time of the others.
    Raises:
        Refused: UNAVAILABLE at step `resolve` or `connect`.
    """
    candidates = await address.resolve()
    error = ""
    for number, (family, candidate) in enumerate(candidates):
        left = len(candidates) - number
        if left == 1:
            stream = await _connect_one(family, candidate)
        else:
            now = trio.current_time()
            stream = "no answer"
            with trio.CancelScope(deadline=now + (deadline - now) / left):
                stream = await _connect_one(family, candidate)
        if isinstance(stream, PlainStream):
            return stream
        error = stream
    raise Refused(Outcome.UNAVAILABLE, f"cannot connect to {address.endpoint}: {error}", step="connect")


async def _connect_one(family: int, candidate: Any) -> PlainStream | str:
    """A connection, or why there is none."""
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as exc:  # no descriptor left, above all
        return exc.strerror or str(exc)
    try:
        tune(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _LOGIN_USER_TIMEOUT_MILLISECONDS)
        number = sock.connect_ex(candidate)
        if number == errno.EINPROGRESS:
            await wait_writable(sock)
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except OSError as exc:
        sock.close()
        return exc.strerror or str(exc)
    except BaseException:
        sock.close()
        raise
    if number:
        sock.close()
        return os.strerror(number)
    return PlainStream(sock)


def settle(sock: socket.socket) -> None:
    """The login is done: from here on the backend may take its time."""
    with contextlib.suppress(OSError):  # of a connection that has ended since, the relay is told anyway
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SESSION_USER_TIMEOUT_MILLISECONDS)


async def secure(stream: Stream, context: Context, address: Address) -> Stream:
    """TLS on a connection, the certificate checked against the backend's configured host.

    Raises:
        Refused: UNAVAILABLE at step `tls`. The stream is closed by its owner.
    """
    try:
        return await connect_tls(stream.socket, context, address.endpoint.host, is_address=address.is_literal)
    except TlsFailed as exc:
        detail = f"TLS with {address.endpoint} failed: {exc}"
        raise Refused(Outcome.UNAVAILABLE, detail, step="tls") from exc
