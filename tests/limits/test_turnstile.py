"""So many at once, first come first served, and whoever stalls keeps nobody out."""

from __future__ import annotations

import math

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.limits import turnstile as room
from proxy.limits.reached import ACTIONS
from proxy.limits.turnstile import LIMITS, PLACE_SECONDS, Turnstile
from proxy.observe import metrics

LIMIT = "logins_at_once"
FOREVER = math.inf


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(room, "reached", lambda limit, action: told.append((limit, action)))
    return told


class Visitors:
    """Tasks that go through a turnstile, and what became of them."""

    def __init__(self, turnstile: Turnstile, nursery: trio.Nursery) -> None:
        self.turnstile, self._nursery = turnstile, nursery
        self.entered: list[tuple[str, float, float]] = []  # who, when, after how long
        self._scopes: dict[str, trio.CancelScope] = {}
        self._began = trio.current_time()

    async def come(self, names: str, stay: float = FOREVER) -> None:
        """Let some come one after the other, who stay so long."""
        for name in names:
            self._nursery.start_soon(self._visit, name, stay)
            await trio.testing.wait_all_tasks_blocked()

    async def go(self, name: str) -> None:
        """Cancel somebody, inside or not."""
        self._scopes[name].cancel()
        await trio.testing.wait_all_tasks_blocked()

    async def _visit(self, name: str, stay: float) -> None:
        with trio.CancelScope() as self._scopes[name]:
            waited = await self.turnstile.enter()
            try:
                self.entered.append((name, trio.current_time() - self._began, waited))
                await trio.sleep(stay)
            finally:
                self.turnstile.leave()

    @property
    def names(self) -> str:
        return "".join(name for name, _, _ in self.entered)


@pytest.fixture
def visitors(nursery: trio.Nursery, mock_clock: trio.testing.MockClock) -> Visitors:
    """At a turnstile with two places."""
    return Visitors(Turnstile(LIMIT, 2), nursery)


async def passes(clock: trio.testing.MockClock, seconds: float) -> None:
    clock.jump(seconds)
    await trio.testing.wait_all_tasks_blocked()


async def test_first_come_first_served(visitors: Visitors) -> None:
    await visitors.come("abcde")
    assert visitors.names == "ab"
    assert (visitors.turnstile.inside, visitors.turnstile.waiting) == (2, 3)
    for leaving, inside in (("b", "abc"), ("a", "abcd"), ("c", "abcde"), ("d", "abcde")):
        await visitors.go(leaving)
        assert visitors.names == inside
    assert (visitors.turnstile.inside, visitors.turnstile.waiting) == (1, 0)


async def test_nobody_overtakes_those_who_wait(visitors: Visitors) -> None:
    turnstile = visitors.turnstile
    assert turnstile.try_enter()
    await visitors.come("abc")
    assert not turnstile.try_enter()
    turnstile.leave()
    assert not turnstile.try_enter()  # it is b's turn, though he has not run yet
    await trio.testing.wait_all_tasks_blocked()
    assert visitors.names == "ab"


async def test_nobody_overtakes_them_when_a_place_is_lost(
    visitors: Visitors, mock_clock: trio.testing.MockClock
) -> None:
    await visitors.come("abc")
    mock_clock.jump(PLACE_SECONDS)  # c will notice when he runs
    assert not visitors.turnstile.try_enter()
    await trio.testing.wait_all_tasks_blocked()
    assert visitors.names == "abc"
    assert visitors.turnstile.try_enter()  # in place of b
    visitors.turnstile.leave()


async def test_who_waits_is_told_how_long(visitors: Visitors, mock_clock: trio.testing.MockClock) -> None:
    await visitors.come("abc")
    await passes(mock_clock, 1.5)
    await visitors.go("a")
    assert visitors.entered == [("a", 0.0, 0.0), ("b", 0.0, 0.0), ("c", 1.5, 1.5)]


async def test_whoever_stalls_loses_his_place_and_goes_on(
    visitors: Visitors, mock_clock: trio.testing.MockClock
) -> None:
    await visitors.come("ab")
    await passes(mock_clock, 1.0)
    await visitors.come("cdef")
    await passes(mock_clock, PLACE_SECONDS - 1.0 - 0.001)
    assert visitors.names == "ab"
    await passes(mock_clock, 0.001)
    assert visitors.names == "abcd"
    assert (visitors.turnstile.inside, visitors.turnstile.waiting) == (4, 2)
    await visitors.go("a")  # he has no place any more that somebody else could take
    await passes(mock_clock, 1.0)
    assert visitors.names == "abcd"
    await visitors.go("d")
    assert visitors.names == "abcde"
    await passes(mock_clock, 1.0)
    assert visitors.names == "abcdef"
    assert visitors.turnstile.inside == 4  # b, c, e and f


async def test_places_of_those_who_stall_are_free_for_who_comes_late(
    visitors: Visitors, mock_clock: trio.testing.MockClock
) -> None:
    await visitors.come("ab")
    await passes(mock_clock, PLACE_SECONDS)
    assert visitors.turnstile.try_enter()
    assert visitors.turnstile.inside == 3
    visitors.turnstile.leave()
    await visitors.come("cd")
    assert visitors.names == "abcd"


async def test_a_crowd_that_stalls_is_through_soon(nursery: trio.Nursery, autojump_clock: object) -> None:
    """Places times time: 20 places let 200 silent clients by within 20 seconds, and then the one who is not silent."""
    visitors = Visitors(Turnstile(LIMIT, 20), nursery)
    for _ in range(200):
        nursery.start_soon(visitors._visit, "s", FOREVER)
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(visitors._visit, "x", 0.1)
    with trio.fail_after(60):
        while visitors.turnstile.waiting:  # noqa: ASYNC110 - nobody tells when a queue is empty
            await trio.sleep(0.1)
    name, _, waited = visitors.entered[-1]
    assert name == "x"
    assert waited == pytest.approx(200 / 20 * PLACE_SECONDS)


async def test_who_stops_waiting_is_passed_over(visitors: Visitors, mock_clock: trio.testing.MockClock) -> None:
    await visitors.come("abcdef")
    await visitors.go("e")  # in the middle
    await visitors.go("c")  # the first, who watched the time: now it is d who does
    assert visitors.turnstile.waiting == 2
    await passes(mock_clock, PLACE_SECONDS)
    assert visitors.names == "abdf"
    for name in "abdf":
        await visitors.go(name)
    assert (visitors.turnstile.inside, visitors.turnstile.waiting) == (0, 0)


async def test_a_turn_that_comes_with_the_cancellation_is_not_lost(visitors: Visitors) -> None:
    await visitors.come("abcd")
    for name in "ca":  # c is cancelled, and gets a's place before he has noticed
        visitors._scopes[name].cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert visitors.names == "abd"
    for name in "bd":
        await visitors.go(name)
    assert (visitors.turnstile.inside, visitors.turnstile.waiting) == (0, 0)


async def test_a_turn_that_comes_first_is_taken(visitors: Visitors) -> None:
    await visitors.come("abcd")
    for name in "ac":
        visitors._scopes[name].cancel()
    await trio.testing.wait_all_tasks_blocked()
    await visitors.go("b")
    assert visitors.names.replace("c", "") == "abd"
    await visitors.go("d")
    assert (visitors.turnstile.inside, visitors.turnstile.waiting) == (0, 0)


async def test_a_deadline_around_the_wait(visitors: Visitors, mock_clock: trio.testing.MockClock) -> None:
    await visitors.come("ab", stay=10.0)
    mock_clock.autojump_threshold = 0
    with trio.move_on_after(0.5) as deadline:
        await visitors.turnstile.enter()
    assert deadline.cancelled_caught
    assert (visitors.turnstile.inside, visitors.turnstile.waiting) == (2, 0)
    assert await visitors.turnstile.enter() == pytest.approx(PLACE_SECONDS - 0.5)
    visitors.turnstile.leave()


async def test_what_operators_see(reached: list[tuple[str, str]], visitors: Visitors) -> None:
    def shown(name: str) -> float:
        text, _ = metrics.exposition()
        lines = [line.split() for line in text.decode().splitlines()]
        return next(float(line[1]) for line in lines if line[0] == f'{name}{{limit="{LIMIT}"}}')

    names = ("porter_turnstile_inside", "porter_turnstile_waiting", "porter_turnstile_wait_seconds_count")
    before = [shown(name) for name in names]

    def change() -> list[float]:
        return [shown(name) - first for name, first in zip(names, before, strict=True)]

    await visitors.come("ab")
    assert (change(), reached) == ([2, 0, 0], [])
    await visitors.come("cd")
    assert (change(), reached) == ([2, 2, 0], [(LIMIT, "delay")] * 2)
    await visitors.go("a")
    assert change() == [2, 1, 1]
    await visitors.go("d")
    for name in "bc":
        await visitors.go(name)
    assert change() == [0, 0, 1]


def test_its_limits_are_limits() -> None:
    assert all("delay" in ACTIONS[limit] for limit in LIMITS)


VISITS = st.lists(
    st.tuples(
        st.integers(0, 40).map(lambda tenths: tenths / 10),  # comes so long after the one before
        st.sampled_from([0.0, 0.1, 1.0, 1.9, 2.0, 2.1, 5.0, FOREVER]),  # stays
        st.sampled_from([0.3, 3.0, FOREVER]),  # waits at most
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=60)
@given(VISITS, st.integers(1, 4))
def test_any_history(visits: list[tuple[float, float, float]], at_once: int) -> None:
    """In the order they came, never more fresh ones than places, nobody waits beside a free place."""
    trio.run(history, visits, at_once, clock=trio.testing.MockClock(autojump_threshold=0))


async def history(visits: list[tuple[float, float, float]], at_once: int) -> None:
    turnstile, fresh, served = Turnstile(LIMIT, at_once), dict[int, float](), list[int]()

    def with_a_place() -> int:
        return sum(since + PLACE_SECONDS > trio.current_time() for since in fresh.values())

    async def visit(number: int, stay: float, patience: float) -> None:
        came = trio.current_time()
        with trio.move_on_after(patience) as waiting:
            assert await turnstile.enter() == pytest.approx(trio.current_time() - came)
            waiting.deadline = math.inf
            served.append(number)
            fresh[number] = trio.current_time()
            assert with_a_place() <= at_once
            try:
                await trio.sleep(stay)
            finally:
                del fresh[number]
                turnstile.leave()

    async def look() -> None:
        while True:
            await trio.sleep(0.23)
            await trio.testing.wait_all_tasks_blocked()
            assert with_a_place() == at_once or turnstile.waiting == 0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        for number, (after, stay, patience) in enumerate(visits):
            await trio.sleep(after + 0.001)
            nursery.start_soon(visit, number, stay, patience)
        await trio.sleep(PLACE_SECONDS * len(visits) + 1)
        assert turnstile.waiting == 0
        assert served == sorted(served)
        nursery.cancel_scope.cancel()
    assert turnstile.inside == 0
    assert not turnstile._places
