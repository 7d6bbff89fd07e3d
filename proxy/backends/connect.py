"""Connections to backends: name to address, TCP."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
from collections.abc import Sequence
from typing import Any

import trio
from trio.lowlevel import wait_writable

from proxy.model import Endpoint
from proxy.outcome import Outcome, Refused
from proxy.transport.listen import tune
from proxy.transport.stream import PlainStream
from proxy.transport.tls_client import is_address

# Data that a backend does not acknowledge for so long means that it is gone (tcp(7), TCP_USER_TIMEOUT). It also counts
# the time that a backend is alive and does not read, and in a session that may be minutes: a mailbox lock, a slow disk.
_LOGIN_USER_TIMEOUT_MILLISECONDS = 30_000
_SESSION_USER_TIMEOUT_MILLISECONDS = 300_000
# What we are short of ourselves: descriptors, local ports, memory (connect(2), socket(2)).
_OUR_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_RESOLVED_SECONDS = 30.0
_PATIENCE_SECONDS = 1.0  # with a resolver, where an older answer is at hand
_UNRESOLVED_SECONDS = 2.0  # how long a failed lookup stands for those who come next


class Address:
    """Where a backend listens: a literal address, or a name that is looked up off the loop and remembered."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._known: list[tuple[int, Any]] = []
        self._known_until = -math.inf
        self._told: list[tuple[int, Any]] | None = None
        self._error = ""
        self._lookup = trio.Lock()
        if is_address(endpoint.host):
            self._known = [_candidate(endpoint.host, endpoint.port)]
            self._known_until = math.inf

    def tell(self, hosts: Sequence[str] | None) -> None:
        """Somebody else knows the IP addresses, and is asked no question from here.

        Args:
            hosts: None: nobody does, the name is looked up.
        """
        self._told = None if hosts is None else [_candidate(host, self.endpoint.port) for host in hosts]

    async def resolve(self) -> list[tuple[int, Any]]:
        """Socket family and address of each candidate, best first.

        Raises:
            Refused: UNAVAILABLE, the name has no address and none was known before.
        """
        if self._told is not None:
            if not self._told:
                raise Refused(Outcome.UNAVAILABLE, f"DNS lists no address for {self.endpoint.host}", step="resolve")
            return self._told
        if trio.current_time() >= self._known_until:
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
        Refused: UNAVAILABLE at step `resolve` or `connect`; at `local` where we were short of something for one of the
            candidates, which says nothing about the backend.
    """
    candidates = await address.resolve()
    error, step = "", "connect"
    for number, (family, candidate) in enumerate(candidates):
        left = len(candidates) - number
        reason, ours = "no answer", False
        try:
            if left == 1:
                return await _connect_one(family, candidate)
            now = trio.current_time()
            with trio.CancelScope(deadline=now + (deadline - now) / left):
                return await _connect_one(family, candidate)
        except OSError as exc:
            reason, ours = exc.strerror or str(exc), _is_ours(exc, family)
        if ours or step == "connect":  # of several reasons our own is told
            error = reason
        if ours:
            step = "local"
    raise Refused(Outcome.UNAVAILABLE, f"cannot connect to {address.endpoint}: {error}", step=step)


def _is_ours(error: OSError, family: int) -> bool:
    """Whether this machine was short of something, which says nothing about the backend."""
    if error.errno == errno.EADDRNOTAVAIL:  # no port is left; or, where IPv6 is switched off, no address
        return family == socket.AF_INET
    return error.errno in _OUR_SHORTAGES


async def _connect_one(family: int, candidate: Any) -> PlainStream:
    """Raises: OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        tune(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _LOGIN_USER_TIMEOUT_MILLISECONDS)
        number = sock.connect_ex(candidate)
        if number == errno.EINPROGRESS:
            await wait_writable(sock)
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
    except BaseException:
        sock.close()
        raise
    return PlainStream(sock)


def settle(sock: socket.socket) -> None:
    """The login is done: from here on the backend may take its time."""
    with contextlib.suppress(OSError):  # of a connection that has ended since, the relay is told anyway
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SESSION_USER_TIMEOUT_MILLISECONDS)


def _candidate(host: str, port: int) -> tuple[int, Any]:
    return (socket.AF_INET6 if ":" in host else socket.AF_INET), (host, port)
