"""Sessions of which commands or octets are limited: on real socket pairs, in a time that jumps to what is next."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.limits import meters as limits_room
from proxy.limits.meters import Meter, Meters
from proxy.outcome import FAREWELLS, Outcome
from proxy.relay.engine import Engine
from proxy.relay.metered import MeteredRelay
from proxy.relay.partings import Partings
from proxy.relay.waiting import Events
from proxy.settings.limit_models import ByteRate, CommandRate, Limits
from tests.relay.stage import PairStream, Splicer, Wire, nothing_arrives

NO = b" NO [LIMIT] Too many commands; try again later.\r\n"


class CountingEngine(Engine):
    """Counts how often it is woken."""

    wakes = 0
    most = 100_000

    def hand_out(self, events: Events, end: float = math.inf) -> bool:
        self.wakes += 1
        assert self.wakes < self.most, "the engine does not come to rest"
        return super().hand_out(events, end)


@pytest.fixture
async def splice(nursery: trio.Nursery) -> AsyncIterator[Splicer]:
    engine, partings = CountingEngine(trio.current_time), Partings(10.0, trio.current_time, lambda: 0.5)
    nursery.start_soon(engine.run)
    nursery.start_soon(partings.run)
    splicer = Splicer(engine, partings)
    yield splicer
    splicer.close()


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    said: list[tuple[str, str]] = []
    monkeypatch.setattr(limits_room, "reached", lambda limit, action, **keys: said.append((limit, action)))
    return said


def commands(rate: int, per: float, action: str = "delay", of: str = "all", *, by: str = "session") -> Limits:
    rates = {of: CommandRate(rate=rate, per=per, action=action)}  # type: ignore[arg-type]
    return Limits(commands_per_user=rates) if by == "user" else Limits(commands_per_session=rates)


def octets(rate: int, per: float, action: str = "delay") -> Limits:
    return Limits(bytes_per_user=ByteRate(rate=rate, per=per, action=action))  # type: ignore[arg-type]


def metered(splice: Splicer, limits: Limits, **settings: Any) -> Wire:
    return splice(meter=opened(Meters(limits, trio.current_time)), **settings)


def opened(meters: Meters) -> Meter:
    meter = meters.open("ann")
    assert meter is not None
    return meter


def relay_of(wire: Wire) -> MeteredRelay:
    assert isinstance(wire.relay, MeteredRelay)
    return wire.relay


# --- delay ---


async def test_delayed_commands_come_one_by_one_and_in_order(autojump_clock: MockClock, splice: Splicer) -> None:
    wire = metered(splice, commands(2, 10.0))
    start = trio.current_time()
    await wire.client.send_all(b"a NOOP\r\nb CHECK\r\nc APPEND x {3+}\r\nabc\r\nd NOOP\r\n")
    assert await wire.backend.exactly(17) == b"a NOOP\r\nb CHECK\r\n"
    await nothing_arrives(wire.backend)
    assert await wire.backend.exactly(22) == b"c APPEND x {3+}\r\nabc\r\n"
    assert trio.current_time() - start == pytest.approx(5.0, abs=0.1)
    assert await wire.backend.exactly(8) == b"d NOOP\r\n"
    assert trio.current_time() - start == pytest.approx(10.0, abs=0.2)


async def test_each_delay_is_told_of_once(
    autojump_clock: MockClock, splice: Splicer, told: list[tuple[str, str]]
) -> None:
    wire = metered(splice, commands(1, 100.0, by="user"))
    await wire.client.send_all(b"a NOOP\r\nb NOOP\r\nc NOOP\r\n")
    await trio.sleep(90)
    assert told == [("commands_per_user", "delay")]
    assert len(await wire.backend.receive()) == 8
    assert await exactly(wire.backend, 16) == b"b NOOP\r\nc NOOP\r\n"
    assert told == [("commands_per_user", "delay")] * 2


async def test_answers_come_while_the_next_command_waits(autojump_clock: MockClock, splice: Splicer) -> None:
    wire = metered(splice, commands(1, 1000.0))
    start = trio.current_time()
    await wire.client.send_all(b"a FETCH 1 BODY[]\r\nb NOOP\r\n")
    assert await wire.backend.exactly(18) == b"a FETCH 1 BODY[]\r\n"
    answer = b"* 1 FETCH (BODY[] {500000}\r\n" + b"x" * 500_000 + b")\r\na OK done\r\n"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.backend.send_all, answer)
        assert await wire.client.exactly(len(answer)) == answer
    assert trio.current_time() - start < 1
    assert wire.tally.commands == ["FETCH"]


async def test_logout_never_waits(autojump_clock: MockClock, splice: Splicer) -> None:
    wire = metered(splice, commands(1, 1000.0))
    start = trio.current_time()
    await wire.client.send_all(b"a NOOP\r\n")
    await wire.backend.exactly(8)
    await wire.client.send_all(b"b LOGOUT\r\n")
    assert await wire.backend.exactly(10) == b"b LOGOUT\r\n"
    assert trio.current_time() - start < 1


async def test_idle_waits_its_turn_and_done_does_not(autojump_clock: MockClock, splice: Splicer) -> None:
    wire = metered(splice, commands(1, 10.0))
    await wire.client.send_all(b"a NOOP\r\nb IDLE\r\n")
    assert await wire.backend.exactly(8) == b"a NOOP\r\n"
    await wire.backend.send_all(b"a OK\r\n")
    assert await wire.client.exactly(6) == b"a OK\r\n"
    assert await wire.backend.exactly(8) == b"b IDLE\r\n"
    start = trio.current_time()
    await wire.backend.send_all(b"+ idling\r\n* 3 EXISTS\r\n")
    assert await wire.client.exactly(22) == b"+ idling\r\n* 3 EXISTS\r\n"
    await wire.client.send_all(b"DONE\r\n")
    assert await wire.backend.exactly(6) == b"DONE\r\n"
    assert trio.current_time() - start < 1


async def test_what_was_said_early_is_counted(autojump_clock: MockClock, splice: Splicer) -> None:
    wire = metered(splice, commands(1, 10.0), early=(b"a NOOP\r\nb NOOP\r\n", b"* 3 EXISTS\r\n"))
    assert await wire.client.exactly(12) == b"* 3 EXISTS\r\n"
    start = trio.current_time()
    assert await wire.backend.exactly(8) == b"a NOOP\r\n"
    assert await wire.backend.exactly(8) == b"b NOOP\r\n"
    assert trio.current_time() - start == pytest.approx(10.0, rel=0.02)


async def test_sessions_of_one_user_share_and_all_get_on(autojump_clock: MockClock, splice: Splicer) -> None:
    meters = Meters(commands(1, 10.0, by="user"), trio.current_time)
    wires = [splice(meter=opened(meters)) for _ in range(3)]
    start = trio.current_time()
    for wire in wires:
        await wire.client.send_all(b"a NOOP\r\nb NOOP\r\n")
    for wire in wires:
        assert await exactly(wire.backend, 16) == b"a NOOP\r\nb NOOP\r\n"
    assert trio.current_time() - start == pytest.approx(50.0, abs=1.0)


async def test_what_was_used_in_another_worker_is_paid_for_here(autojump_clock: MockClock, splice: Splicer) -> None:
    meters = Meters(commands(10, 10.0, by="user"), trio.current_time)
    wire = splice(meter=opened(meters))
    meters.deduct({"ann": [["all", 30]]})
    start = trio.current_time()
    await wire.client.send_all(b"a NOOP\r\n")
    assert await exactly(wire.backend, 8) == b"a NOOP\r\n"
    assert trio.current_time() - start == pytest.approx(21.0, abs=0.1)


# --- refuse ---


async def test_a_refusal_comes_in_its_turn(
    autojump_clock: MockClock, splice: Splicer, told: list[tuple[str, str]]
) -> None:
    wire = metered(splice, commands(1, 1000.0, "refuse", "SEARCH"))
    await wire.client.send_all(b"a SEARCH ALL\r\nb SEARCH ALL\r\nc NOOP\r\nd UID SEARCH 1\r\ne NOOP\r\n")
    assert await wire.backend.exactly(14) == b"a SEARCH ALL\r\n"
    await nothing_arrives(wire.client)
    await wire.backend.send_all(b"* SEARCH 1\r\na OK\r\n")
    expected = b"* SEARCH 1\r\na OK\r\nb" + NO
    assert await wire.client.exactly(len(expected)) == expected
    assert await wire.backend.exactly(8) == b"c NOOP\r\n"
    await wire.backend.send_all(b"c OK\r\n")
    expected = b"c OK\r\nd" + NO
    assert await wire.client.exactly(len(expected)) == expected
    assert await wire.backend.exactly(8) == b"e NOOP\r\n"
    assert told == [("commands_per_session", "refuse")] * 2


LITERALS = [
    (b"b APPEND x {3}\r\n", b""),
    (b"b APPEND x {17+}\r\n", b"x LOGOUT\r\ny NOOP\r\n"[:17] + b"\r\n"),
    (b"b APPEND x ~{5+}\r\n", b"\r\n{9} {8+}\r\n\r\n\r\n\r\n\r\n\r\n"),
    (b"b IDLE\r\n", b""),
    (b"b UID FETCH 1:* " + b"(" * 400 + b"\r\n", b""),
]


@pytest.mark.parametrize(("command", "rest"), LITERALS)
@pytest.mark.parametrize("step", [1, 9, 1000])
async def test_a_refused_command_is_swallowed_whole(
    autojump_clock: MockClock, splice: Splicer, command: bytes, rest: bytes, step: int
) -> None:
    wire = metered(splice, commands(1, 1000.0, "refuse"))
    await wire.client.send_all(b"a NOOP\r\n")
    await wire.backend.exactly(8)
    await wire.backend.send_all(b"a OK\r\n")
    await wire.client.exactly(6)
    sent = command + rest
    for at in range(0, len(sent), step):
        await wire.client.send_all(sent[at : at + step])
        await wait_all_tasks_blocked()
    assert await wire.client.exactly(1 + len(NO)) == b"b" + NO
    await wire.client.send_all(b"c LOGOUT\r\n")
    assert await wire.backend.exactly(10) == b"c LOGOUT\r\n"
    assert wire.ended == []


async def test_refusals_by_the_hundred_end_nothing_and_take_their_time(
    autojump_clock: MockClock, splice: Splicer
) -> None:
    wire = metered(splice, commands(1, 100_000.0 / 2, "refuse"))
    start = trio.current_time()
    await wire.client.send_all(b"a NOOP\r\n" + b"".join(b"b%d NOOP\r\n" % n for n in range(500)) + b"c LOGOUT\r\n")
    assert await wire.backend.exactly(8) == b"a NOOP\r\n"
    await wire.backend.send_all(b"a OK\r\n")
    expected = b"a OK\r\n" + b"".join(b"b%d%s" % (n, NO) for n in range(500))
    assert await wire.client.exactly(len(expected)) == expected
    assert await wire.backend.exactly(10) == b"c LOGOUT\r\n"
    assert trio.current_time() - start == pytest.approx(1.0, abs=0.2)


async def test_refusals_of_a_limit_are_not_counted_with_the_others(autojump_clock: MockClock, splice: Splicer) -> None:
    wire = metered(splice, commands(1, 100_000.0, "refuse", "NOOP"))
    await wire.client.send_all(b"a NOOP\r\n")
    await wire.backend.exactly(8)
    await wire.backend.send_all(b"a OK\r\n")
    await wire.client.send_all(b"b NOOP\r\n" * 60 + b"c LOGIN\r\n" * 50 + b"d NOOP\r\n")
    said = b""
    while b"d NO [LIMIT]" not in said:
        said += await wire.client.receive()
    assert (said.count(b"b NO [LIMIT]"), said.count(b"c BAD ")) == (60, 50)
    assert wire.ended == []
    await wire.client.send_all(b"e LOGIN\r\n")
    assert await wire.client.receive() == FAREWELLS[Outcome.PROTOCOL_VIOLATION]


# --- disconnect ---


async def test_one_command_too_many_may_end_the_session(
    autojump_clock: MockClock, splice: Splicer, told: list[tuple[str, str]]
) -> None:
    wire = metered(splice, commands(1, 1000.0, "disconnect", by="user"))
    await wire.client.send_all(b"a NOOP\r\nb NOOP\r\n")
    assert await wire.client.receive() == FAREWELLS[Outcome.LIMIT]
    assert await wire.client.receive() == b""
    assert await wire.backend.receive() == b"a NOOP\r\n"
    assert await wire.backend.receive() == b""
    assert wire.ended == [Outcome.LIMIT]
    assert told == [("commands_per_user", "disconnect")]


async def test_inside_a_response_it_ends_without_a_word(autojump_clock: MockClock, splice: Splicer) -> None:
    wire = metered(splice, commands(1, 1000.0, "disconnect"))
    await wire.client.send_all(b"a FETCH 1 BODY[]\r\n")
    await wire.backend.exactly(18)
    await wire.backend.send_all(b"* 1 FETCH (BODY[] {9}\r\nabc")
    await wire.client.exactly(26)
    await wire.client.send_all(b"b NOOP\r\n")
    assert await wire.client.receive() == b""
    assert wire.ended == [Outcome.LIMIT]


async def test_octets_too_many_may_end_the_session(autojump_clock: MockClock, splice: Splicer) -> None:
    meters = Meters(octets(100, 100.0, "disconnect"), trio.current_time)
    wire = splice(meter=opened(meters))
    await wire.client.send_all(b"a NOOP\r\n")
    await wire.backend.exactly(8)
    await wire.backend.send_all(b"* OK " + b"x" * 100 + b"\r\n")
    assert await wire.client.exactly(107 + len(FAREWELLS[Outcome.LIMIT])) == (
        b"* OK " + b"x" * 100 + b"\r\n" + FAREWELLS[Outcome.LIMIT]
    )
    assert wire.ended == [Outcome.LIMIT]
    again = splice(meter=opened(meters))  # nothing is had by coming back
    assert await again.client.receive() == FAREWELLS[Outcome.LIMIT]
    assert again.ended == [Outcome.LIMIT]


# --- octets ---


async def test_a_download_takes_its_time_and_loses_nothing(autojump_clock: MockClock, splice: Splicer) -> None:
    wire = metered(splice, octets(100_000, 1.0))
    body = random.Random(1).randbytes(2_000_000)
    answer = b"* 1 FETCH (BODY[] {%d}\r\n%s)\r\na OK\r\n" % (len(body), body)
    start = trio.current_time()
    await wire.client.send_all(b"a FETCH 1 BODY[]\r\n")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.backend.send_all, answer)
        assert await exactly(wire.client, len(answer)) == answer
    assert trio.current_time() - start == pytest.approx(19.0, rel=0.15)  # less what goes by before it is paid


async def test_an_upload_takes_its_time_and_loses_nothing(autojump_clock: MockClock, splice: Splicer) -> None:
    wire = metered(splice, octets(100_000, 1.0))
    body = random.Random(2).randbytes(2_000_000)
    command = b"a APPEND x {%d+}\r\n%s\r\n" % (len(body), body)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.client.send_all, command)
        assert await exactly(wire.backend, len(command)) == command
    assert trio.current_time() - start == pytest.approx(19.0, rel=0.15)
    await wire.backend.send_all(b"a OK\r\n")
    assert await exactly(wire.client, 6) == b"a OK\r\n"
    assert wire.tally.commands == ["APPEND"]


async def exactly(stream: PairStream, count: int) -> bytes:
    """However long it takes."""
    data = b""
    while len(data) < count:
        more = await stream.sock.recv(count - len(data))
        assert more
        data += more
    return data


async def test_debts_outlive_the_session(autojump_clock: MockClock, splice: Splicer) -> None:
    meters = Meters(octets(1000, 10.0), trio.current_time)
    first = splice(meter=opened(meters))
    await first.backend.send_all(b"* OK " + b"x" * 1993 + b"\r\n")
    await first.client.exactly(2000)
    first.client.close()
    await wait_all_tasks_blocked()
    assert first.ended == [Outcome.CLIENT_CLOSED]
    second = splice(meter=opened(meters))
    start = trio.current_time()
    await second.client.send_all(b"a NOOP\r\n")
    assert await exactly(second.backend, 8) == b"a NOOP\r\n"
    assert trio.current_time() - start == pytest.approx(10.0, abs=0.1)


# --- while it is paused ---


async def test_a_pause_is_no_busy_loop(autojump_clock: MockClock, splice: Splicer) -> None:
    """Both ends have sent, the client has even closed its half; and nobody has anything to do."""
    wire = metered(splice, octets(100, 10.0))
    await wire.client.send_all(b"a NOOP\r\n")
    await wire.backend.send_all(b"* OK " + b"x" * 593 + b"\r\n")
    await wire.client.exactly(600)
    await wire.client.send_all(b"b NOOP\r\n")
    wire.client.end()
    await wire.backend.send_all(b"a OK\r\n")
    await wait_all_tasks_blocked()
    assert isinstance(splice.engine, CountingEngine)
    before = splice.engine.wakes
    splice.engine.most = before + 10
    await trio.sleep(50)
    assert splice.engine.wakes <= before + 3
    splice.engine.most = before + 100
    assert await wire.backend.exactly(16) == b"a NOOP\r\nb NOOP\r\n"
    assert await wire.client.exactly(6) == b"a OK\r\n"


@pytest.mark.parametrize("limits", [commands(1, 1000.0), octets(7, 1000.0)])
async def test_a_client_that_vanishes_in_a_pause_is_noticed(
    autojump_clock: MockClock, splice: Splicer, limits: Limits
) -> None:
    wire = metered(splice, limits)
    start = trio.current_time()
    await wire.client.send_all(b"a NOOP\r\nb NOOP\r\n")
    assert (await wire.backend.exactly(8)) == b"a NOOP\r\n"
    await wait_all_tasks_blocked()
    wire.client.close()
    while await wire.backend.receive():
        pass
    assert wire.ended == [Outcome.CLIENT_CLOSED]
    assert trio.current_time() - start < 1


async def test_a_client_that_only_closed_its_half_is_given_some_time(
    autojump_clock: MockClock, splice: Splicer
) -> None:
    """That is all that is seen of a TCP peer that is gone."""
    wire = metered(splice, commands(1, 1000.0))
    await wire.client.send_all(b"a NOOP\r\nb NOOP\r\n")
    await wire.backend.exactly(8)
    wire.client.end()
    await wait_all_tasks_blocked()
    now = trio.current_time()
    wire.relay.sweep(now + 59)
    assert wire.ended == []
    wire.relay.sweep(now + 61)
    assert wire.ended == [Outcome.CLIENT_CLOSED]


async def test_a_client_that_closes_its_half_in_a_short_pause_gets_its_answers(
    autojump_clock: MockClock, splice: Splicer
) -> None:
    wire = metered(splice, commands(1, 30.0))
    await wire.client.send_all(b"a NOOP\r\nb NOOP\r\n")
    wire.client.end()
    assert await exactly(wire.backend, 16) == b"a NOOP\r\nb NOOP\r\n"
    assert await wire.backend.receive() == b""
    await wire.backend.send_all(b"a OK\r\nb OK\r\n")
    wire.backend.close()
    assert await wire.client.exactly(12) == b"a OK\r\nb OK\r\n"
    assert wire.ended == [Outcome.CLIENT_CLOSED]


async def test_who_closed_his_half_in_a_pause_has_as_long_for_his_answers_as_others(
    autojump_clock: MockClock, splice: Splicer
) -> None:
    wire = metered(splice, commands(1, 30.0))
    await wire.client.send_all(b"a NOOP\r\nb NOOP\r\n")
    wire.client.end()
    await exactly(wire.backend, 16)
    await trio.sleep(90)
    await wire.backend.send_all(b"* 1 EXISTS\r\n")  # there is life in it
    await wire.client.exactly(12)
    wire.relay.sweep(trio.current_time() + 59)
    assert wire.ended == []
    wire.relay.sweep(trio.current_time() + 61)
    assert wire.ended == [Outcome.CLIENT_CLOSED]


async def test_a_pause_is_no_silence(autojump_clock: MockClock, splice: Splicer) -> None:
    wire = metered(splice, commands(1, 10_000.0))
    await wire.client.send_all(b"a NOOP\r\nb NOOP\r\n")
    await wire.backend.exactly(8)
    now = trio.current_time()
    wire.relay.sweep(now + 2000)
    assert wire.ended == []


@pytest.mark.parametrize("limits", [commands(1, 1000.0), octets(7, 1000.0)])
async def test_a_pause_is_a_safe_point(autojump_clock: MockClock, splice: Splicer, limits: Limits) -> None:
    wire = metered(splice, limits)
    await wire.client.send_all(b"a NOOP\r\n")
    await wire.backend.exactly(8)
    assert not wire.relay.at_safe_point
    wire.relay._observer.from_backend(b"a OK\r\n")
    await wire.client.send_all(b"b NOOP\r\n")
    await wait_all_tasks_blocked()
    assert wire.relay.at_safe_point
    splice.engine.say_goodbye(wire.relay, Outcome.DRAINED)
    assert await wire.client.receive() == FAREWELLS[Outcome.DRAINED]
    assert await wire.backend.receive() == b""
    assert wire.ended == [Outcome.DRAINED]
    await trio.sleep(10.5)
    assert splice.engine._pauses == []  # nobody remembers it, though the pause would have been long


async def test_a_backend_that_ends_in_a_pause_is_announced_after_it(autojump_clock: MockClock, splice: Splicer) -> None:
    wire = metered(splice, octets(100, 100.0))
    await wire.backend.send_all(b"* OK " + b"x" * 193 + b"\r\n")
    await wire.client.exactly(200)
    await wire.backend.send_all(b"* 4 EXISTS\r\n")
    wire.backend.close()
    await nothing_arrives(wire.client)
    assert wire.ended == []
    expected = b"* 4 EXISTS\r\n" + FAREWELLS[Outcome.BACKEND_CLOSED]
    assert await exactly(wire.client, len(expected)) == expected
    assert wire.ended == [Outcome.BACKEND_CLOSED]


async def test_who_lingers_without_a_backend_is_not_resumed(autojump_clock: MockClock, splice: Splicer) -> None:
    wires = [metered(splice, commands(1, 4.0)) for _ in range(9)]
    for wire in wires:
        await wire.client.send_all(b"a NOOP\r\nb NOOP\r\n")
        await wire.backend.exactly(8)
        await wire.backend.send_all(b"a OK\r\n")
        await wire.client.exactly(6)
    for wire in wires:
        wire.backend.close()
        await wait_all_tasks_blocked()
    assert [wire.parted for wire in wires] == [[]] * 8 + [[wires[8].relay.id]]
    assert await wires[8].client.receive() == FAREWELLS[Outcome.BACKEND_CLOSED]
    assert [wire.ended for wire in wires] == [[Outcome.BACKEND_CLOSED]] * 9


async def test_what_a_session_counted_is_given_back(autojump_clock: MockClock, splice: Splicer) -> None:
    meters = Meters(octets(1000, 1.0), trio.current_time)
    wires = [splice(meter=opened(meters)) for _ in range(3)]
    for wire in wires:
        await wire.client.send_all(b"a NOOP\r\n")
        await wire.backend.exactly(8)
        wire.client.close()
    await wait_all_tasks_blocked()
    assert [wire.ended for wire in wires] == [[Outcome.CLIENT_CLOSED]] * 3
    assert meters.take_used() == {"ann": [["bytes", 24]]}
    await trio.sleep(1)
    assert meters.take_used() == {}
    assert len(meters) == 0


async def test_the_last_octets_count_too(autojump_clock: MockClock, splice: Splicer) -> None:
    """A session may end while it carries them."""
    meters = Meters(octets(1000, 1.0), trio.current_time)
    wire = splice(meter=opened(meters))
    wire.relay.bytes_from_backend += 100
    wire.relay.end(Outcome.CLIENT_CLOSED)
    wire.relay.end(Outcome.CLIENT_CLOSED)
    assert meters.take_used() == {"ann": [["bytes", 100]]}


async def test_two_reasons_to_wait_end_when_they_end(autojump_clock: MockClock, splice: Splicer) -> None:
    limits = commands(1, 100.0).model_copy(update={"bytes_per_user": octets(100, 10.0).bytes_per_user})
    wire = metered(splice, limits)
    start = trio.current_time()
    await wire.client.send_all(b"a NOOP\r\nb NOOP\r\n")
    await wire.backend.exactly(8)
    await wire.backend.send_all(b"* OK " + b"x" * 593 + b"\r\n")
    await wire.client.exactly(600)
    await wire.backend.send_all(b"* OK\r\n")
    await nothing_arrives(wire.client)
    assert await exactly(wire.client, 6) == b"* OK\r\n"
    assert trio.current_time() - start == pytest.approx(50.0, abs=2.0)
    await trio.sleep(11)
    assert len(splice.engine._pauses) == 1  # what is out of date goes away by itself
    assert await exactly(wire.backend, 8) == b"b NOOP\r\n"
    assert trio.current_time() - start == pytest.approx(100.0, abs=1.0)
    assert splice.engine._pauses == []


class BrokenMeter:
    """Does not know how long to wait."""

    def debt(self) -> float:
        raise ZeroDivisionError

    def carried(self, count: int) -> bool:
        return True

    def close(self) -> None: ...


async def test_a_bug_while_it_is_resumed_ends_that_session_only(autojump_clock: MockClock, splice: Splicer) -> None:
    broken, sound = metered(splice, commands(1, 5.0)), metered(splice, commands(1, 5.0))
    relay_of(broken)._meter = BrokenMeter()  # type: ignore[assignment]
    relay_of(broken)._resumes_at = splice.engine.pause(relay_of(broken), 1.0)
    await sound.client.send_all(b"a NOOP\r\nb NOOP\r\n")
    assert await exactly(sound.backend, 16) == b"a NOOP\r\nb NOOP\r\n"
    assert broken.ended == [Outcome.SERVER_BUG]
