"""Backends on loopback that play one part, and names that resolve as a test says."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

LOOPBACK = "127.0.0.1"
Part = Callable[[trio.SocketStream], Awaitable[None]]
Served = Callable[[Part], Awaitable["Server"]]


@dataclass
class Server:
    """A listening server; `gone` counts the connections that the other side has ended."""

    port: int
    accepted: int = 0
    gone: int = 0

    async def wait_until_accepted(self, count: int = 1) -> None:
        with trio.fail_after(5):
            while self.accepted < count:  # noqa: ASYNC110 - nothing here says when
                await trio.sleep(0.001)

    async def wait_until_gone(self, count: int = 1) -> None:
        with trio.fail_after(5):
            while self.gone < count:  # noqa: ASYNC110 - nothing here says when
                await trio.sleep(0.001)


@pytest.fixture
async def serve(nursery: trio.Nursery) -> Served:
    """Starts a server that plays a part to everybody and then waits for the end."""

    async def start(part: Part) -> Server:
        (listener,) = await trio.open_tcp_listeners(0, host=LOOPBACK)
        server = Server(listener.socket.getsockname()[1])

        async def play(stream: trio.SocketStream) -> None:
            server.accepted += 1
            async with stream:
                try:
                    await part(stream)
                    await stream.send_eof()
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass
                server.gone += 1

        nursery.start_soon(trio.serve_listeners, play, [listener])
        return server

    return start


@dataclass
class Resolver(trio.abc.HostnameResolver):
    """Stands in for the system's resolver. `answer`: what it says, or raises; None: it never answers."""

    answer: list[tuple[str, int]] | OSError | None = field(default_factory=list)
    asked: int = 0

    async def getaddrinfo(self, host: Any, port: Any, family: int = 0, *rest: Any, **more: Any) -> Any:
        self.asked += 1
        if self.answer is None:
            await trio.sleep_forever()
        if isinstance(self.answer, OSError):
            raise self.answer
        assert self.answer is not None
        await trio.lowlevel.checkpoint()
        return [
            (socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))
            for host, port in self.answer
        ]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        pytest.fail("nobody asks for the name of an address")


@pytest.fixture
async def resolver() -> Resolver:
    made = Resolver()
    trio.socket.set_custom_hostname_resolver(made)
    return made


@pytest.fixture
def refusing() -> Iterator[int]:
    """A port of 127.0.0.1 on which nobody listens, and nobody will."""
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        yield sock.getsockname()[1]


@pytest.fixture
def mute() -> Iterator[int]:
    """A port that does not even answer: its queue is full, so the kernel drops whoever knocks (listen(2))."""
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        sock.listen(0)
        queued = []
        for _ in range(3):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(sock.getsockname())
            queued.append(waiting)
        yield sock.getsockname()[1]
        for waiting in queued:
            waiting.close()
