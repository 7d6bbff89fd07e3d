"""A PROXY header off a real socket: exactly it is taken, and half of one costs no turns."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from proxy.model import Endpoint
from proxy.transport import proxy_reading
from proxy.transport.proxy_header import LOCAL_V1, LOCAL_V2, ProxyHeader, ProxyHeaderError
from proxy.transport.proxy_reading import read_proxy_header
from proxy.transport.stream import ConnectionLost

Pair = tuple[socket.socket, socket.socket]
V1 = b"PROXY TCP4 192.0.2.7 203.0.113.1 40001 993\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c\xc0\0\2\7\xcb\0q\1\x9c\x41\x03\xe1"
TOLD = ProxyHeader(Endpoint("192.0.2.7", 40001), Endpoint("203.0.113.1", 993))
CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01"


@pytest.fixture
def sockets() -> Iterator[Pair]:
    """A connected pair of TCP sockets: the balancer's, and ours, which does not block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        balancer = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    balancer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ours.setblocking(False)
    with balancer, ours:
        yield balancer, ours


def rest(ours: socket.socket) -> bytes:
    try:
        return ours.recv(4096)
    except BlockingIOError:
        return b""


HEADERS = [(V1, TOLD), (V2, TOLD), (LOCAL_V1, ProxyHeader()), (LOCAL_V2, ProxyHeader())]


@pytest.mark.parametrize(("octets", "header"), HEADERS)
@pytest.mark.parametrize("behind", [b"", CLIENT_HELLO, V1])
async def test_what_is_behind_the_header_stays(
    sockets: Pair, octets: bytes, header: ProxyHeader, behind: bytes
) -> None:
    balancer, ours = sockets
    balancer.sendall(octets + behind)
    with trio.fail_after(10):
        assert await read_proxy_header(ours) == header
    assert rest(ours) == behind


@pytest.mark.parametrize(("octets", "header"), HEADERS)
async def test_octet_by_octet(
    sockets: Pair, octets: bytes, header: ProxyHeader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that there is nothing it waits, and it does not wake before there is something."""
    balancer, ours = sockets
    waits = 0

    async def count_and_wait(sock: socket.socket) -> None:
        nonlocal waits
        waits += 1
        await trio.lowlevel.wait_readable(sock)

    monkeypatch.setattr(proxy_reading, "wait_readable", count_and_wait)
    found: list[ProxyHeader] = []

    async def read() -> None:
        found.append(await read_proxy_header(ours))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for octet in octets[:-1]:
                await wait_all_tasks_blocked()
                balancer.sendall(bytes([octet]))
            await wait_all_tasks_blocked()
            balancer.sendall(octets[-1:] + CLIENT_HELLO)
    assert found == [header]
    assert waits <= len(octets)
    assert rest(ours) == CLIENT_HELLO


@pytest.mark.parametrize("early", [b"", b"PRO", V1[:-1], V2[:-1], V2[:14]])
async def test_a_peer_that_ends_first(sockets: Pair, early: bytes) -> None:
    balancer, ours = sockets
    balancer.sendall(early)
    balancer.shutdown(socket.SHUT_WR)
    with trio.fail_after(10), pytest.raises(ConnectionLost, match=r"before its PROXY header"):
        await read_proxy_header(ours)


async def test_a_connection_that_is_reset(sockets: Pair) -> None:
    balancer, ours = sockets
    balancer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    balancer.close()
    with trio.fail_after(10), pytest.raises(ConnectionLost):
        await read_proxy_header(ours)


@pytest.mark.parametrize("octets", [CLIENT_HELLO, b"a NOOP\r\n", V1.replace(b" 993", b" x"), b"PROXY UNKNOWN\n"])
async def test_no_header(sockets: Pair, octets: bytes) -> None:
    """It is known as soon as it can be, while the peer may still be waiting for us."""
    balancer, ours = sockets
    balancer.sendall(octets)
    with trio.fail_after(10), pytest.raises(ProxyHeaderError):
        await read_proxy_header(ours)


async def test_who_says_nothing_is_left_to_the_deadline(sockets: Pair) -> None:
    balancer, ours = sockets
    balancer.sendall(V2[:-1])
    with trio.move_on_after(0.01) as scope:
        await read_proxy_header(ours)
    assert scope.cancelled_caught
