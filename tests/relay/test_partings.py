"""A backend is lost: the first of its clients hear of it at once, the others one after the other."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from proxy.outcome import FAREWELLS, Outcome
from proxy.relay.partings import AT_ONCE, Partings
from tests.relay.stage import Splicer, Wire, nothing_arrives

BYE = FAREWELLS[Outcome.BACKEND_CLOSED]
OWN_BYE = b"* BYE Server shutting down.\r\n"


class Told:
    """A session that notes when it was told."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def part(self) -> None:
        self.at.append(trio.current_time())


@pytest.fixture
def moments() -> list[float]:
    return []


def partings(spread: float, chances: list[float] | None = None) -> Partings:
    left = iter(chances or [])
    return Partings(spread, trio.current_time, lambda: next(left, 0.5))


async def test_the_first_few_at_once(autojump_clock: trio.testing.MockClock) -> None:
    several = partings(10.0)
    assert [several.postpone(Told(), "d1") for _ in range(AT_ONCE + 2)] == [False] * AT_ONCE + [True, True]
    assert not several.postpone(Told(), "d2"), "another backend is another matter"


async def test_a_while_later_it_is_another_loss(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    several = partings(10.0)
    for _ in range(AT_ONCE):
        several.postpone(Told(), "d1")
    await trio.sleep(11)
    assert not several.postpone(Told(), "d1")


async def test_never_without_a_spread(autojump_clock: trio.testing.MockClock) -> None:
    several = partings(0.0)
    assert not any(several.postpone(Told(), "d1") for _ in range(100))


async def test_each_at_its_time(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    several = partings(10.0, [0.9, 0.1, 0.5])
    nursery.start_soon(several.run)
    for _ in range(AT_ONCE):
        several.postpone(Told(), "d1")
    told = [Told(), Told(), Told()]
    began = trio.current_time()
    assert all(several.postpone(each, "d1") for each in told)
    await trio.sleep(5.5)
    assert [each.at for each in told] == [[], [pytest.approx(began + 1)], [pytest.approx(began + 5)]]
    await trio.sleep(5)
    assert told[0].at == [pytest.approx(began + 9)]


async def lose(splice: Splicer, last_words: bytes) -> list[Wire]:
    """More clients than are told at once lose the same backend."""
    wires = [splice() for _ in range(AT_ONCE + 2)]
    for wire in wires:
        if last_words:
            await wire.backend.send_all(last_words)
        wire.backend.close()
    for wire in wires[:AT_ONCE]:
        assert await wire.client.exactly(len(last_words or BYE)) == (last_words or BYE)
    return wires[AT_ONCE:]


@pytest.mark.parametrize("last_words", [b"", OWN_BYE], ids=["silent", "with its own BYE"])
async def test_the_others_linger(splice: Splicer, autojump_clock: trio.testing.MockClock, last_words: bytes) -> None:
    lingering = await lose(splice, last_words)
    for wire in lingering:
        await nothing_arrives(wire.client)
        assert (wire.parted, wire.ended) == ([wire.relay.id], [])
        assert not wire.relay.at_safe_point
        # It goes nowhere, and does not keep the farewell from arriving.
        await wire.client.send_all(b"a NOOP\r\n" * 1000)
    for wire in lingering:
        assert await wire.client.exactly(len(last_words or BYE)) == (last_words or BYE)
        assert await wire.client.receive() == b""
        assert wire.ended == [Outcome.BACKEND_CLOSED]


async def test_whoever_lingers_may_leave(splice: Splicer, autojump_clock: trio.testing.MockClock) -> None:
    for wire in await lose(splice, b""):
        wire.client.close()
        await trio.testing.wait_all_tasks_blocked()
        assert wire.ended == [Outcome.BACKEND_CLOSED]  # it was that already


async def test_who_says_much_gets_one_read_per_turn(splice: Splicer, autojump_clock: trio.testing.MockClock) -> None:
    wire, _ = await lose(splice, b"")
    await trio.testing.wait_all_tasks_blocked()
    reads: list[int] = []

    def endless(count: int) -> bytes:
        assert not reads, "others want their turn too"
        reads.append(count)
        return bytes(count)

    wire.relay._client_recv = endless
    wire.relay._disregard(0)
    assert (len(reads), wire.ended) == (1, [])


async def test_a_bug_in_one_session_keeps_nobody_from_being_told(
    splice: Splicer, autojump_clock: trio.testing.MockClock, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(data: bytes | memoryview) -> int:
        raise ZeroDivisionError

    first, second = await lose(splice, b"")
    await trio.testing.wait_all_tasks_blocked()
    first.relay._client_send = broken
    assert await second.client.exactly(len(BYE)) == BYE
    assert (first.ended, second.ended) == ([Outcome.SERVER_BUG], [Outcome.BACKEND_CLOSED])
    assert "relay.failed" in capfd.readouterr().err


async def test_a_mail_that_holds_such_a_line_ends_nothing(splice: Splicer) -> None:
    for wire in await lose(splice, b""):  # the next farewell would be kept back
        wire.relay.end(Outcome.DRAINED)
    wire = splice()
    await wire.client.send_all(b"a FETCH 1 BODY[]\r\n")
    await wire.backend.exactly(18)
    mail = b"Subject: x\r\n\r\n* BYE for now\r\n"
    said = b"* 1 FETCH (BODY[] {%d}\r\n%s)\r\na OK done\r\n" % (len(mail), mail)
    await wire.backend.send_all(said)
    assert await wire.client.exactly(len(said)) == said
    assert (wire.parted, wire.ended) == ([], [])
    assert wire.relay.at_safe_point


async def test_a_drain_need_not_wait(splice: Splicer, autojump_clock: trio.testing.MockClock) -> None:
    for wire in await lose(splice, b""):
        splice.engine.say_goodbye(wire.relay, Outcome.DRAINED)
        assert await wire.client.exactly(len(BYE)) == BYE
        assert wire.ended == [Outcome.DRAINED]


async def test_inside_a_response_nobody_lingers(splice: Splicer) -> None:
    for wire in await lose(splice, b""):
        wire.relay.end(Outcome.DRAINED)
    for _ in range(2):
        wire = splice()
        await wire.client.send_all(b"a FETCH 1 BODY[]\r\n")
        await wire.backend.exactly(18)
        await wire.backend.send_all(b"* 1 FETCH (BODY[] {100}\r\nabc")
        assert await wire.client.exactly(28) == b"* 1 FETCH (BODY[] {100}\r\nabc"
        wire.backend.close()
        assert await wire.client.receive() == b"", "nothing is invented"
        assert wire.parted == []


async def test_descriptors_of_a_lost_backend_are_not_mistaken(splice: Splicer) -> None:
    """The number of the closed descriptor is the next session's; the lingering one must not take it along."""
    lingering = await lose(splice, b"")
    fresh = [splice() for _ in range(4)]
    for wire in lingering:
        wire.relay.end(Outcome.DRAINED)
    for wire in fresh:
        await wire.client.send_all(b"a NOOP\r\n")
        assert await wire.backend.exactly(8) == b"a NOOP\r\n"
