"""Looking on at a session: what is told of it, and that nothing else changes by that."""

from __future__ import annotations

import socket

import pytest
import trio

from proxy.imap.observer import State
from proxy.imap.protocol_lines import Conversation
from proxy.limits.meters import Meters
from proxy.outcome import Outcome
from proxy.relay import tracing as room
from proxy.relay.tracing import LINES_PER_SECOND, MOST_TAPS, MOST_TRACES, Tracing
from proxy.settings.limit_models import ByteRate, CommandRate, Limits
from tests.relay.stage import Splicer, Wire

REFUSED = b"x BAD Command not allowed after login.\r\n"


class Audience:
    """What is told by a worker's traces, in a time that goes on when told."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.tracing = Tracing(lambda: self.now)
        self.tracing.on_line = self._tell
        self.heard: list[tuple[str, str, str, str]] = []
        self.hears = True

    def _tell(self, trace_id: str, session_id: str, side: str, text: str) -> bool:
        if self.hears:
            self.heard.append((trace_id, session_id, side, text))
        return self.hears

    def take(self) -> list[tuple[str, str]]:
        heard, self.heard = self.heard, []
        return [(side, text) for _, _, side, text in heard]

    def look_at(self, wire: Wire, name: str = "ann", seconds: float = 60.0) -> None:
        wire.relay.session.name = name
        self.tracing.begin("t1", name, seconds, [wire.relay])


@pytest.fixture
def audience() -> Audience:
    return Audience()


async def exchange(wire: Wire, command: bytes, answer: bytes) -> None:
    await wire.client.send_all(command)
    assert await wire.backend.exactly(len(command)) == command
    await wire.backend.send_all(answer)
    assert await wire.client.exactly(len(answer)) == answer


LIMITS = [
    pytest.param(None, id="no limits"),
    pytest.param(Limits(commands_per_session={"all": CommandRate(rate=100, per=1.0)}), id="commands"),
    pytest.param(Limits(bytes_per_user=ByteRate(rate=10**9, per=1.0)), id="octets"),
]


@pytest.mark.parametrize("limits", LIMITS)
async def test_a_session_that_lives(splice: Splicer, audience: Audience, limits: Limits | None) -> None:
    wire = splice(meter=Meters(limits).open("ann") if limits else None)
    await exchange(wire, b"a NOOP\r\n", b"a OK done\r\n")
    usual = wire.relay.transfers
    audience.look_at(wire)
    assert wire.relay.transfers != usual
    await exchange(wire, b"b NOOP\r\n", b"* 1 EXISTS\r\nb OK done\r\n")
    await exchange(wire, b"c APPEND INBOX {6}\r\n", b"+ OK\r\n")
    await exchange(wire, b"secret\r\n", b"c OK done\r\n")
    await wire.client.send_all(b"x LOGIN ann secret\r\nd NOOP\r\n")
    assert await wire.client.exactly(len(REFUSED)) == REFUSED
    assert await wire.backend.exactly(8) == b"d NOOP\r\n"
    assert audience.take() == [
        ("client", "b NOOP"),
        ("backend", "* 1 EXISTS"),
        ("backend", "b OK done"),
        ("client", "c APPEND INBOX {6} …6 octets left out"),
        ("backend", "+ OK"),
        ("backend", "c OK done"),
        ("note", "answered here: (tag) BAD Command not allowed after login."),
        ("client", "d NOOP"),
    ]
    audience.tracing.end("t1")
    assert wire.relay.transfers == usual, "all is as before"
    await wire.backend.send_all(b"d OK done\r\n")
    await wire.client.exactly(11)
    await exchange(wire, b"e NOOP\r\n", b"e OK done\r\n")
    assert audience.take() == []


async def test_one_in_the_middle_of_something(splice: Splicer, audience: Audience) -> None:
    wire = splice()
    await wire.client.send_all(b"a FETCH 1 BODY[]\r\n")
    await wire.backend.exactly(18)
    await wire.backend.send_all(b"* 1 FETCH (BODY[] {20}\r\na OK secret\r\n")
    await wire.client.exactly(37)
    audience.look_at(wire)
    await wire.backend.send_all(b"secret\r\n)\r\na OK done\r\n")
    await wire.client.exactly(22)
    await exchange(wire, b"b NOOP\r\n", b"b OK done\r\n")
    assert audience.take() == [
        ("note", "in the middle of a command: shown from its end"),
        ("client", "b NOOP"),
        ("backend", "b OK done"),
    ]


async def test_one_in_idle(splice: Splicer, audience: Audience) -> None:
    wire = splice()
    await exchange(wire, b"a IDLE\r\n", b"+ idling\r\n")
    audience.look_at(wire)
    await wire.backend.send_all(b"* 1 EXISTS\r\n")
    await wire.client.exactly(12)
    await exchange(wire, b"DONE\r\n", b"a OK done\r\n")
    assert audience.take() == [("backend", "* 1 EXISTS"), ("client", "DONE"), ("backend", "a OK done")]


async def test_compression(splice: Splicer, audience: Audience) -> None:
    wire = splice()
    audience.look_at(wire)
    await exchange(wire, b"a COMPRESS DEFLATE\r\n", b"a OK now\r\n")
    await exchange(wire, b"b OK secret\r\n", b"\x01secret\r\n* secret\r\n")
    assert audience.take() == [
        ("client", "a COMPRESS DEFLATE"),
        ("backend", "a OK now"),
        ("note", "COMPRESS has begun: nothing more is shown of this session"),
    ]
    audience.tracing.end("t1")
    assert wire.relay.observer.state is State.BLIND
    audience.look_at(wire)
    await exchange(wire, b"c NOOP\r\n", b"c OK secret\r\n")
    assert audience.take() == [("note", "not shown: the session is compressed")]


async def test_a_session_that_begins(splice: Splicer, audience: Audience) -> None:
    tracing = audience.tracing
    tracing.begin("t1", "ann", 60.0, [])
    tracing.note("ann", "s1", "PLAIN: known to file")
    tracing.note("bob", "s2", "PLAIN: known to file")
    wire = splice(start=False)
    wire.relay.session.name, wire.relay.session.backend = "ann", "d1"
    tracing.opened(wire.relay, b"* 2 EXISTS\r\n")
    wire.relay.start(b"a NOOP\r\n", b"* 2 EXISTS\r\n")
    await wire.backend.exactly(8)
    await wire.backend.send_all(b"a OK done\r\n")
    assert await wire.client.exactly(23) == b"* 2 EXISTS\r\na OK done\r\n"
    wire.relay.end(Outcome.LOGGED_OUT)
    tracing.closed(wire.relay, Outcome.LOGGED_OUT)
    assert tracing.taps == 0
    assert audience.take() == [
        ("note", "PLAIN: known to file"),
        ("note", "logged in: backend d1"),
        ("backend", "* 2 EXISTS"),
        ("client", "a NOOP"),
        ("backend", "a OK done"),
        ("note", "ended: logged_out"),
    ]


async def test_others_are_not_touched(splice: Splicer, audience: Audience) -> None:
    wire, other = splice(), splice(start=False)
    wire.relay.session.name = other.relay.session.name = "bob"
    before = wire.relay.transfers, other.relay.transfers
    audience.tracing.begin("t1", "ann", 60.0, [wire.relay])
    audience.tracing.opened(other.relay, b"")
    assert (wire.relay.transfers, other.relay.transfers) == before
    assert audience.tracing.taps == 0
    audience.tracing.closed(wire.relay, Outcome.LOGGED_OUT)
    assert audience.take() == []


async def test_a_client_that_does_not_read(splice: Splicer, audience: Audience, nursery: trio.Nursery) -> None:
    """Octets that are kept for the client are the backend's all the same, and not our own words."""
    wire = splice()
    wire.relay.session.name = "ann"
    audience.look_at(wire)
    await wire.client.send_all(b"a FETCH 1 BODY[]\r\n")
    await wire.backend.exactly(18)
    wire.client.raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    body = b"secret\r\n" * 200_000
    answer = b"* 1 FETCH (BODY[] {%d}\r\n%s)\r\na OK done\r\n" % (len(body), body)
    nursery.start_soon(wire.backend.send_all, answer)
    assert await wire.client.exactly(len(answer)) == answer
    assert audience.take() == [
        ("client", "a FETCH 1 BODY[]"),
        ("backend", f"* 1 FETCH (BODY[] {{{len(body)}}} …{len(body)} octets left out"),
        ("backend", ")"),
        ("backend", "a OK done"),
    ]


async def test_two_traces_of_one_user(splice: Splicer, audience: Audience) -> None:
    wire = splice()
    usual = wire.relay.transfers
    audience.look_at(wire)
    audience.tracing.begin("t2", "ann", 30.0, [wire.relay])
    assert audience.tracing.taps == 1
    await exchange(wire, b"a NOOP\r\n", b"a OK done\r\n")
    assert [trace for trace, _, _, _ in audience.heard] == ["t1", "t2", "t1", "t2"]
    audience.now += 31
    audience.take()
    await exchange(wire, b"b NOOP\r\n", b"b OK done\r\n")
    assert [trace for trace, _, _, _ in audience.heard] == ["t1", "t1"], "time is over"
    audience.tracing.tick()
    assert audience.tracing.taps == 1
    audience.now += 30
    audience.tracing.tick()
    assert audience.tracing.taps == len(audience.tracing) == 0
    assert wire.relay.transfers == usual


async def test_many_lines(splice: Splicer, audience: Audience, nursery: trio.Nursery) -> None:
    wire = splice()
    audience.look_at(wire)
    await wire.client.send_all(b"a FETCH 1:* FLAGS\r\n")
    await wire.backend.exactly(19)
    answer = b"* 1 FETCH (FLAGS ())\r\n" * (LINES_PER_SECOND + 50)
    nursery.start_soon(wire.backend.send_all, answer)
    assert await wire.client.exactly(len(answer)) == answer
    assert len(audience.take()) == LINES_PER_SECOND
    audience.now += 1.5
    await wire.backend.send_all(b"a OK done\r\n")
    await wire.client.exactly(11)
    assert audience.take() == [("note", "51 lines left out: too many"), ("backend", "a OK done")]


async def test_nobody_takes_the_lines(splice: Splicer, audience: Audience) -> None:
    wire = splice()
    audience.look_at(wire)
    audience.hears = False
    await exchange(wire, b"a NOOP\r\n", b"a OK done\r\n")
    audience.now += 2
    audience.tracing.tick()
    audience.hears = True
    audience.tracing.tick()
    assert audience.take() == [("note", "2 lines left out: too many")]


async def test_a_bug_ends_the_looking_on(splice: Splicer, audience: Audience, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Conversation, data: bytes) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Conversation, "from_client", fail)
    monkeypatch.setattr(room.log, "exception", lambda event, **keys: audience.heard.append(("", "", "log", event)))
    wire = splice()
    audience.look_at(wire)
    await exchange(wire, b"a NOOP\r\n", b"a OK done\r\n")
    assert audience.take() == [("log", "trace.failed")]


def test_bounds(audience: Audience) -> None:
    for number in range(MOST_TRACES + 1):
        audience.tracing.begin(f"t{number}", f"user{number}", 60.0, [])
    assert len(audience.tracing) == MOST_TRACES
    assert audience.tracing.looks_at(f"user{MOST_TRACES}"), "another steward's trace makes way"
    assert not audience.tracing.looks_at("user0")
    audience.tracing.end("unknown")
    audience.now += 61
    audience.tracing.begin("t9", "ann", 60.0, [])
    assert len(audience.tracing) == 1, "those whose time is over make room"


def test_the_one_that_ends_first_makes_way(audience: Audience) -> None:
    for number in range(MOST_TRACES):
        audience.tracing.begin(f"t{number}", f"user{number}", 10.0 if number == 3 else 60.0, [])
    audience.tracing.begin("t5", "user5", 60.0, [])  # told once more: another steward goes on with it
    assert audience.tracing.looks_at("user3")
    audience.tracing.begin("new", "ann", 60.0, [])
    there = [number for number in range(MOST_TRACES) if audience.tracing.looks_at(f"user{number}")]
    assert there == [number for number in range(MOST_TRACES) if number != 3]
    assert audience.tracing.looks_at("ann")


async def test_many_sessions(splice: Splicer, audience: Audience, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_TAPS > 1
    monkeypatch.setattr(room, "MOST_TAPS", 1)
    wires = [splice(), splice()]
    for wire in wires:
        wire.relay.session.name = "ann"
    audience.tracing.begin("t1", "ann", 60.0, [wire.relay for wire in wires])
    assert audience.tracing.taps == 1
    assert audience.take() == [("note", "not shown: so many sessions are looked at already")]
