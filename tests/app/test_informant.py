"""What a worker tells of its sessions: of real ones, on real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from proxy.app.informant import Informant
from proxy.auth.names import NameRules
from proxy.ledger.session import Session
from proxy.limits.meters import Meters
from proxy.model import Endpoint
from proxy.outcome import Outcome, Refused
from proxy.relay.engine import Engine
from proxy.relay.partings import Partings
from proxy.session.house import House
from proxy.session.refusals import Refusals
from proxy.settings.limit_models import CommandRate, Limits
from proxy.settings.models import Names
from tests.relay.stage import Splicer, Wire

LIMITS = Limits(commands_per_user={"all": CommandRate(rate=100, per=60.0, action="refuse")})


class Worker:
    """A worker's rooms, as far as the informant looks into them."""

    def __init__(self, splice: Splicer) -> None:
        self.splice = splice
        self.now = 1000.0
        self.refusals = Refusals()
        rooms = {
            "engine": splice.engine,
            "meters": Meters(LIMITS),
            "refusals": self.refusals,
        }
        self.informant = Informant(cast("House", SimpleNamespace(**rooms)), lambda: self.now)

    def carry(self, name: str, backend: str = "d1") -> Wire:
        """A session that is logged in."""
        wire = self.splice()
        session = wire.relay.session
        session.name, session.backend, session.mechanism, session.source = name, backend, "PLAIN", "file"
        return wire

    def ask(self, what: str, *arguments: Any) -> Any:
        """The answer, as JSON brings it."""
        return json.loads(json.dumps(self.informant.answer(what, [*arguments])))

    def top(self, most: int = 20) -> tuple[float, dict[str, list[int]], dict[str, list[int]]]:
        told = self.ask("top", most)
        return told["seconds"], *({row[0]: row[1:] for row in told[key]} for key in ("users", "backends"))


@pytest.fixture
async def worker(nursery: trio.Nursery) -> AsyncIterator[Worker]:
    engine, partings = Engine(), Partings(10.0, trio.current_time, lambda: 0.5)
    nursery.start_soon(engine.run)
    nursery.start_soon(partings.run)
    splice = Splicer(engine, partings)
    yield Worker(splice)
    splice.close()


async def command(wire: Wire, line: bytes = b"a NOOP\r\n", answer: bytes = b"a OK done\r\n") -> None:
    """One that is answered."""
    await wire.client.send_all(line)
    assert await wire.backend.exactly(len(line)) == line
    await wire.backend.send_all(answer)
    assert await wire.client.exactly(len(answer)) == answer


async def test_one_session(worker: Worker) -> None:
    wire = worker.carry("ann")
    known = {"mechanism": "PLAIN", "source": "file", "secure": False}
    assert worker.ask("session", wire.relay.id) == {
        **known,
        "commands": 0,
        "octets_up": 0,
        "octets_down": 0,
        "activity": "between",
    }
    await command(wire)
    told = worker.ask("session", wire.relay.id)
    assert (told["commands"], told["octets_up"], told["octets_down"]) == (1, 8, 11)
    wire.relay.end(Outcome.DRAINED)
    await trio.testing.wait_all_tasks_blocked()
    assert worker.ask("session", wire.relay.id) is None


ACTIVITIES = [
    (b"a NOOP\r\n", b"", "busy"),
    (b"a IDLE\r\n", b"+ idling\r\n", "idle"),
    (b"a NOOP\r\n", b"a OK done\r\n", "between"),
]


@pytest.mark.parametrize(("line", "answer", "activity"), ACTIVITIES)
async def test_what_it_does(worker: Worker, line: bytes, answer: bytes, activity: str) -> None:
    wire = worker.carry("ann")
    await wire.client.send_all(line)
    await wire.backend.exactly(len(line))
    if answer:
        await wire.backend.send_all(answer)
        await wire.client.exactly(len(answer))
    assert worker.ask("session", wire.relay.id)["activity"] == activity


async def test_the_busiest(worker: Worker) -> None:
    ann, other, bob = worker.carry("ann"), worker.carry("ann"), worker.carry("bob", "d2")
    await command(ann)
    assert worker.top() == (0.0, {"ann": [2, 0, 0, 0], "bob": [1, 0, 0, 0]}, {"d1": [2, 0, 0, 0], "d2": [1, 0, 0, 0]})
    worker.now += 5
    await command(ann)
    await command(other)
    await command(bob, b"b FETCH 1 X\r\n", b"* 1 FETCH (X)\r\nb OK\r\n")
    cid = worker.carry("cid", "d2")
    await command(cid)
    seconds, users, backends = worker.top()
    assert seconds == 5.0
    assert users == {"ann": [2, 2, 16, 22], "bob": [1, 1, 13, 21], "cid": [1, 1, 8, 11]}
    assert backends == {"d1": [2, 2, 16, 22], "d2": [2, 2, 21, 32]}


async def test_whoever_else_asks_takes_nothing_away(worker: Worker) -> None:
    wire = worker.carry("ann")
    worker.top()
    worker.now += 0.5
    assert worker.top()[0] == 0.0, "too soon to say"
    await command(wire)
    for _ in range(19):
        worker.now += 0.5
        seconds, users, _ = worker.top()
        assert seconds >= 1
        assert users["ann"] == [1, 1, 8, 11]
    for _ in range(20):
        worker.now += 0.5
        worker.top()
    assert worker.top()[1]["ann"] == [1, 0, 0, 0], "that is long ago"


async def test_as_many_as_are_asked_for(worker: Worker) -> None:
    wires = [worker.carry(f"u{number}") for number in range(4)]
    worker.top()
    worker.now += 1
    for number, wire in enumerate(wires):
        for _ in range(number):
            await command(wire)
    _, users, backends = worker.top(2)
    assert [*users] == ["u3", "u2"]
    assert backends == {"d1": [4, 6, 48, 66]}, "of all"
    assert worker.top(0)[1] == {}


async def test_who_comes_where_nobody_was(worker: Worker) -> None:
    assert worker.top() == (0.0, {}, {})
    worker.now += 2
    wire = worker.carry("ann")
    await command(wire)
    assert worker.top()[:2] == (2.0, {"ann": [1, 1, 8, 11]})


async def test_what_was_counted_long_ago_is_no_beginning(worker: Worker) -> None:
    wire = worker.carry("ann")
    worker.top()
    await command(wire)
    worker.now += 3600
    assert worker.top()[:2] == (0.0, {"ann": [1, 0, 0, 0]})
    worker.now += 1
    await command(wire)
    assert worker.top()[:2] == (1.0, {"ann": [1, 1, 8, 11]})


async def test_limits(worker: Worker) -> None:
    row = {"limit": "commands_per_user", "most": 100, "left": 100, "per_seconds": 60.0}
    assert worker.ask("limits", "ann") == [row]


def known_as(spelled: str) -> str:
    """As an authenticator says it."""
    try:
        return NameRules(Names()).canonical(spelled)
    except Refused:
        return spelled


def refused(
    name: str, *, authentication: str = "", authorization: str = "", outcome: Outcome = Outcome.AUTHENTICATION_FAILED
) -> tuple[Session, Refused, Callable[[str], str]]:
    session = Session(Endpoint("192.0.2.7", 4711), "l")
    session.name, session.mechanism = name, "PLAIN"
    session.authentication_identity, session.authorization_identity = authentication, authorization
    return session, Refused(outcome, "file: wrong password"), known_as


FAILURES: list[tuple[dict[str, Any], str, bool]] = [
    ({"name": "ann"}, "ann", True),
    ({"name": "ann"}, "bob", False),
    ({"name": "", "authentication": "ann"}, "ann", True),
    ({"name": "", "authentication": "ANN"}, "ann", True),
    ({"name": "", "authentication": "ops", "authorization": "ann"}, "ann", True),
    ({"name": "ann", "authentication": "ops"}, "ops", True),
    ({"name": "", "authentication": "\x00 no name"}, "ann", False),
    ({"name": ""}, "", False),
    ({"name": "", "authentication": "x" * 5000}, "x" * 5000, False),
]


@pytest.mark.parametrize(("who", "name", "found"), FAILURES, ids=[str(number) for number in range(len(FAILURES))])
async def test_failures(worker: Worker, who: dict[str, Any], name: str, found: bool) -> None:
    worker.refusals.note(*refused(**who))
    told = worker.ask("failures", name)
    if not found:
        assert told == []
        return
    (failure,) = told
    assert failure.pop("time") > 0
    assert failure == {
        "client": "192.0.2.7:4711",
        "mechanism": "PLAIN",
        "outcome": "authentication_failed",
        "detail": "file: wrong password",
    }


async def test_the_last_failures(worker: Worker) -> None:
    for number in range(60):
        worker.refusals.note(
            *refused("ann", outcome=[Outcome.AUTHENTICATION_FAILED, Outcome.UNAVAILABLE][number // 59])
        )
        worker.refusals.note(*refused("bob"))
    told = worker.ask("failures", "ann")
    assert len(told) == 50
    assert [failure["outcome"] for failure in told[:2]] == ["unavailable", "authentication_failed"], "the last first"


UNKNOWN: list[tuple[str, list[Any]]] = [
    ("what is this", []),
    ("", ["ann"]),
    ("session", []),
    ("session", [None]),
    ("session", [5]),
    ("session", [["s1"]]),
    ("session", [{}]),
    ("session", ["s1", "s2"]),
    ("session", ["nobody"]),
    ("top", []),
    ("top", ["many"]),
    ("top", [None]),
    ("limits", []),
    ("limits", [["ann"]]),
    ("failures", []),
    ("failures", ["ann", "bob"]),
]


@pytest.mark.parametrize(("what", "arguments"), UNKNOWN, ids=str)
async def test_questions_that_nobody_understands(worker: Worker, what: str, arguments: list[Any]) -> None:
    worker.carry("ann")
    worker.refusals.note(*refused("ann"))
    assert worker.ask(what, *arguments) is None
