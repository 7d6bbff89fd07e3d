"""A relay on real socket pairs, and both outer ends of it."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from proxy.imap.commands import REFUSED_AFTER_LOGIN
from proxy.imap.observer import Observer
from proxy.ledger.session import Session
from proxy.limits.meters import Meter
from proxy.model import Endpoint
from proxy.outcome import Outcome
from proxy.relay.engine import Engine
from proxy.relay.metered import MeteredRelay
from proxy.relay.partings import Partings
from proxy.relay.relay import Relay
from proxy.relay.splice import Carriage
from proxy.transport.stream import PlainStream


class Tally:
    """Counts what the observer and the relay report."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.idling = 0
        self.blinded: list[str] = []
        self.bytes_from_client = self.bytes_from_backend = 0

    def finished(self, command: str, seconds: float) -> None:
        self.commands.append(command)

    def idle(self, change: int) -> None:
        self.idling += change

    def blind(self, reason: str) -> None:
        self.blinded.append(reason)


@dataclass
class Wire:
    """Both outer ends of one relayed session."""

    client: PairStream
    backend: PairStream
    relay: Relay
    tally: Tally
    ended: list[Outcome]
    parted: list[str]  # ids of sessions that go on without their backend


def socket_pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


@dataclass
class Splicer:
    """Makes relayed sessions on one running engine, and closes what a test left open."""

    engine: Engine
    partings: Partings
    wires: list[Wire] = field(default_factory=list)

    def __call__(
        self,
        *,
        refused: frozenset[bytes] = REFUSED_AFTER_LOGIN,
        early: tuple[bytes, bytes] = (b"", b""),
        meter: Meter | None = None,
        start: bool = True,
    ) -> Wire:
        client, client_end = socket_pair()
        backend, backend_end = socket_pair()
        tally, ended, parted = Tally(), [], []
        permits = meter.permits if meter is not None and meter.counts_commands else None
        parts = (
            self.engine,
            Session(Endpoint("192.0.2.1", 4711), "test"),
            PlainStream(client),
            PlainStream(backend),
            Observer(tally, time.monotonic, refused=refused, permits=permits),
            Carriage(
                tally,
                1860.0,
                lambda relay, outcome: ended.append(outcome),
                lambda relay: parted.append(relay.id),
                self.partings,
            ),
        )
        relay = Relay(*parts) if meter is None else MeteredRelay(*parts, meter)
        if start:
            relay.start(*early)
        wire = Wire(PairStream(client_end), PairStream(backend_end), relay, tally, ended, parted)
        self.wires.append(wire)
        return wire

    def close(self) -> None:
        for wire in self.wires:
            wire.relay.end(Outcome.DRAINED)
            wire.client.close()
            wire.backend.close()


class PairStream:
    """The few methods of a stream that these tests use, on a UNIX socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = trio.socket.from_stdlib_socket(sock)
        self.raw = sock

    async def send_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self.sock.send(view) :]

    async def receive(self, count: int = 65536) -> bytes:
        with trio.fail_after(10):
            return await self.sock.recv(count)

    async def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = await self.receive(count - len(data))
            assert more, f"the stream ended after {data!r}"
            data += more
        return data

    def end(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()


async def nothing_arrives(stream: PairStream) -> None:
    with trio.move_on_after(0.1) as scope:
        data = await stream.sock.recv(100)
        pytest.fail(f"{data!r} arrived")
    assert scope.cancelled_caught
