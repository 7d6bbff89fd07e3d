"""A worker's end of the link, and a steward at the other end who says what a test has him say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
import trio.testing

from proxy.app.link import Link
from proxy.ledger.session import Session
from proxy.model import Endpoint, Identity
from proxy.outcome import Outcome, Refused
from proxy.routing.cluster import Cluster
from proxy.settings.addresses import parse_backend_url
from proxy.settings.models import Backends, Routing, Server
from proxy.transport.packets import Packets, packet_pair

CLIENT = Endpoint("192.0.2.7", 4711)
ABOUT = {"index": 0, "generation": 1, "pid": 1, "accepting": True}
Message = list[Any]


def backends() -> Backends:
    names = ("d1", "d2", "d3")
    servers = tuple(Server(name=name, url=parse_backend_url(f"imap://{name}.test.example")) for name in names)
    return Backends(servers=servers)


class Closings:
    """In place of the engine's closer."""

    def __init__(self) -> None:
        self.closed: list[tuple[list[str], Outcome, float]] = []

    def close(self, session_ids: list[str], outcome: Outcome, *, patience: float) -> None:
        self.closed.append((list(session_ids), outcome, patience))


class Stage:
    """A link, and the steward's end of it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        ours, theirs = packet_pair()
        self.steward = Packets(theirs)
        self.cluster = Cluster(backends(), Routing(), 0.0)
        self.closings = Closings()
        self.ours = Packets(ours)
        self.link = Link(self.ours, self.cluster, self.closings, "pool", ABOUT)  # type: ignore[arg-type]
        self._nursery = nursery
        self.raw = theirs
        self._heard: list[Message] = []
        nursery.start_soon(self.steward.run)
        nursery.start_soon(self.link.run)

    async def hear(self, *kinds: str) -> Message:
        """The next message of these kinds; others are passed over."""
        while True:
            while self._heard:
                message = self._heard.pop(0)
                if message[0] in kinds:
                    return message
            with trio.fail_after(60):
                self._heard += await self.steward.receive()

    async def silence(self) -> None:
        """Nothing has been said that was not heard."""
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.2):
            self._heard += await self.steward.receive()
        assert self._heard == []

    def ask(self, session: Session, identity: Identity) -> Callable[[], Any]:
        """Begin a login; what it gives is asked for later: a backend, or a refusal."""
        ends: list[Any] = []

        async def admit() -> None:
            session.name = identity.name
            try:
                ends.append(await self.link.admit(session, identity))
            except Refused as refusal:
                ends.append(refusal)

        self._nursery.start_soon(admit)
        return lambda: ends[0] if ends else None

    async def log_in(self, name: str, backend: str, *, room: int = 3, verified: bool = True) -> Session:
        """A login that is admitted as it should be."""
        session = Session(CLIENT, "[::]:993")
        end = self.ask(session, Identity(name, "file", verified=verified))
        _, number, *_ = await self.hear("admit")
        self.steward.post(["admitted", number, backend, "e1", "hash", room])
        await trio.testing.wait_all_tasks_blocked()
        assert end() == backend
        return session

    async def greet(self, nonce: str = "n") -> list[Message]:
        """The steward begins; gives the lodgers that he is told of."""
        self.steward.post(["hello", nonce])
        return await self.hear_report(nonce)

    async def hear_report(self, nonce: str = "n") -> list[Message]:
        """What is reported; gives the lodgers."""
        assert (await self.hear("report"))[1] == nonce
        lodgers: list[Message] = []
        while (message := await self.hear("lodgers", "reported"))[0] == "lodgers":
            assert message[1] == nonce
            lodgers += message[2]
        assert message == ["reported", nonce]
        return lodgers

    async def settle(self) -> None:
        await trio.testing.wait_all_tasks_blocked()
