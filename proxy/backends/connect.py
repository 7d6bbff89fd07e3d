"""Connections to backends: name to address, TCP, implicit TLS."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from typing import Any

import trio
from OpenSSL.SSL import Context
from trio.lowlevel import wait_writable

from proxy.model import Endpoint
from proxy.outcome import Outcome, Refused
from proxy.transport.listen import tune
from proxy.transport.stream import PlainStream, Stream
from proxy.transport.tls import TlsFailed, connect_tls

# Data that a backend does not acknowledge for so long means that it is gone (tcp(7), TCP_USER_TIMEOUT).
_USER_TIMEOUT_MILLISECONDS = 30_000
_RESOLVED_SECONDS = 30.0


class Address:
    """Where a backend listens: a literal address, or a name that is looked up off the loop and remembered."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._known: list[tuple[int, Any]] = []
        self._known_until = 0.0
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
        if self.is_literal or trio.current_time() < self._known_until:
            return self._known
        async with self._lookup:  # one question for all who wait
            if trio.current_time() < self._known_until:
                return self._known
            try:
                found = await trio.socket.getaddrinfo(self.endpoint.host, self.endpoint.port, type=socket.SOCK_STREAM)
            except OSError as exc:
                if not self._known:  # the last good answer outlives an outage of DNS
                    detail = f"no address for {self.endpoint.host}: {exc.strerror}"
                    raise Refused(Outcome.UNAVAILABLE, detail, step="resolve") from exc
            else:
                self._known = [(family, address) for family, _, _, _, address in found]
            self._known_until = trio.current_time() + _RESOLVED_SECONDS
        return self._known


async def connect(address: Address) -> PlainStream:
    """A TCP connection to the first candidate that answers. The caller owns the deadline.

    Raises:
        Refused: UNAVAILABLE at step `connect`.
    """
    error: OSError | None = None
    for family, candidate in await address.resolve():
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            tune(sock)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MILLISECONDS)
            number = sock.connect_ex(candidate)
            if number == errno.EINPROGRESS:
                await wait_writable(sock)
                number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise OSError(number, os.strerror(number))
        except OSError as exc:
            sock.close()
            error = exc
        except BaseException:
            sock.close()
            raise
        else:
            return PlainStream(sock)
    detail = f"cannot connect to {address.endpoint}: {error.strerror if error else 'no address'}"
    raise Refused(Outcome.UNAVAILABLE, detail, step="connect") from error


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
