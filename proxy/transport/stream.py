"""A connection up to the end of its login: octets over a non-blocking socket, awaited on trio.

After the login the socket (and its TLS state) leaves the stream and belongs to the relay engine; from then
on nothing may wait on the descriptor through trio.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Protocol

from trio.lowlevel import wait_readable, wait_writable

# A whole TLS record (RFC 8446 §5.1): less per read would leave octets inside OpenSSL while the socket stays silent.
RECORD_BYTES = 16384


class ConnectionLost(Exception):
    """The connection broke without a proper end. The text is for the log."""


class Transport(Protocol):
    """What the relay engine calls: a socket or a TLS connection on one. Neither method waits.

    Would-block shows as BlockingIOError or one of OpenSSL's Want errors, an end as b"" or ZeroReturnError.
    """

    def recv(self, bufsize: int, /) -> bytes: ...
    def send(self, data: bytes | memoryview, /) -> int: ...


class Stream(Protocol):
    """A connection that its login still owns."""

    socket: socket.socket

    @property
    def transport(self) -> Transport: ...
    @property
    def secure(self) -> bool: ...

    async def receive(self) -> bytes:
        """Some octets, b"" when the peer has ended properly. Raises ConnectionLost."""
        ...

    async def send(self, data: bytes) -> None:
        """All of `data`. After a cancellation the stream is only good for closing. Raises ConnectionLost."""
        ...

    def end_sending(self) -> None:
        """Say that nothing more will be sent, and go on receiving. Never fails, never waits."""
        ...

    def close(self) -> None:
        """Close at once; may be called twice."""
        ...


class PlainStream:
    """Octets on the bare socket."""

    __slots__ = ("socket",)
    secure = False

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    @property
    def transport(self) -> Transport:
        return self.socket

    async def receive(self) -> bytes:
        while True:
            try:
                return self.socket.recv(RECORD_BYTES)
            except BlockingIOError:
                await wait_readable(self.socket)
            except OSError as exc:
                raise ConnectionLost(exc.strerror or str(exc)) from exc

    async def send(self, data: bytes) -> None:
        rest: bytes | memoryview = data
        while rest:
            try:
                sent = self.socket.send(rest)
            except BlockingIOError:
                await wait_writable(self.socket)
            except OSError as exc:
                raise ConnectionLost(exc.strerror or str(exc)) from exc
            else:
                rest = memoryview(rest)[sent:]

    def end_sending(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()
