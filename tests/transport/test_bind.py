"""Whose an address is: one socket, several of ours, somebody else's."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from proxy.model import Endpoint
from proxy.transport.listen import BindFailed, bind, listen

LOOPBACK = "127.0.0.1"


@pytest.fixture
def sockets() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def endpoint_of(sock: socket.socket) -> Endpoint:
    return Endpoint(*sock.getsockname()[:2])


def queued(sock: socket.socket) -> int:
    """How many clients wait there."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.accept()[0].close()
            count += 1
    return count


def call(endpoint: Endpoint, count: int) -> None:
    for _ in range(count):
        socket.create_connection((endpoint.host, endpoint.port)).close()


def test_several_of_ours_share_the_clients(sockets: contextlib.ExitStack) -> None:
    first = sockets.enter_context(bind(Endpoint(LOOPBACK, 0), reuse_port=True))
    here = endpoint_of(first)
    others = [sockets.enter_context(bind(here, beside=True)) for _ in range(3)]
    call(here, 80)
    assert all(queued(sock) > 3 for sock in (first, *others))


def test_one_that_does_not_listen_yet_takes_none(sockets: contextlib.ExitStack) -> None:
    first = sockets.enter_context(bind(Endpoint(LOOPBACK, 0), reuse_port=True))
    here = endpoint_of(first)
    second = sockets.enter_context(bind(here, beside=True, listening=False))
    call(here, 40)
    assert queued(first) == 40
    listen(second, here)
    call(here, 80)
    assert queued(first) > 10
    assert queued(second) > 10


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("reuse_port", [False, True])
def test_a_second_proxy_is_refused(sockets: contextlib.ExitStack, shared: bool, reuse_port: bool) -> None:
    first = sockets.enter_context(bind(Endpoint(LOOPBACK, 0), reuse_port=shared))
    with pytest.raises(BindFailed, match="already in use"):
        bind(endpoint_of(first), reuse_port=reuse_port)


def test_nobody_joins_one_that_is_alone(sockets: contextlib.ExitStack) -> None:
    first = sockets.enter_context(bind(Endpoint(LOOPBACK, 0)))
    with pytest.raises(BindFailed, match="already in use"):
        bind(endpoint_of(first), beside=True)


def test_somebody_comes_before_we_listen(sockets: contextlib.ExitStack) -> None:
    ours = sockets.enter_context(bind(Endpoint(LOOPBACK, 0), reuse_port=True, listening=False))
    here = endpoint_of(ours)
    sockets.enter_context(bind(here))
    with pytest.raises(BindFailed, match=f"cannot listen on {here}: Address already in use"):
        listen(ours, here)
