"""A ledger that others lived before: sessions that are there already, users at two backends, workers that are gone."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
import structlog
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.ledger import accounts
from proxy.ledger.guests import Guest
from proxy.ledger.homes import Homes
from proxy.ledger.host import Ledger
from proxy.ledger.resident import Stage
from proxy.model import Placement
from proxy.outcome import Outcome, Refused
from proxy.settings.backend_models import Routing

PATIENCE, DELAY = 15.0, 2.0
REPEATED_AFTER = PATIENCE + 30.0
_numbers = itertools.count()


def guest(
    name: str = "ann", backend: str = "", age: float = 0.0, stage: Stage = Stage.OPENED, why: Any = "hash"
) -> Guest:
    session_id = f"{name}-{next(_numbers)}"
    return Guest(session_id, name, "192.0.2.1:4711", "[::]:993", "w1.0", time.monotonic() - age, backend, stage, why)


def placed(home: str, joinable: str = "abc", why: Any = "hash") -> Placement:
    return Placement(home, why, frozenset(joinable), frozenset(joinable))


class Closer:
    """Takes note of what has to be closed."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def close(self, session_ids: Sequence[str], outcome: Outcome, *, patience: float) -> None:
        assert (outcome, patience) == (Outcome.MOVED, PATIENCE)
        self.calls.append(tuple(session_ids))

    def told(self) -> list[tuple[str, ...]]:
        taken, self.calls = self.calls, []
        return taken


def ledger(most_sessions: int = 50, most_there: int | None = None, **routing: Any) -> tuple[Ledger, Closer]:
    closer = Closer()
    return Ledger(most_sessions, Routing(**routing), closer, most_there), closer


def ids(*guests: Guest) -> tuple[str, ...]:
    return tuple(each.id for each in guests)


def admit(made: Ledger, newcomer: Guest, placement: Placement, *, verified: bool = True) -> str | None:
    return made.admit_now(newcomer, lambda: placement, verified=verified)


def backend_of(made: Ledger, name: str = "ann") -> str:
    found = made.find(name)
    return found.backend if found is not None else ""


# --- sessions that live already ---


async def test_users_live_where_their_sessions_do(autojump_clock: MockClock) -> None:
    made, closer = ledger(most_sessions=3)
    mine = [guest(backend="b", age=100.0, why="failover"), guest(backend="b", age=50.0)]
    trying = guest(backend="b", stage=Stage.TRYING, why="override")
    asking = guest(backend="")
    with structlog.testing.capture_logs() as logged:
        made.restore([*mine, trying, asking, guest("bob", "c")])
    assert [line["event"] for line in logged] == ["ledger.restored"]
    assert (len(made), asking.id in made) == (4, False)
    found = made.find("ann")
    assert found is not None
    assert (found.backend, found.sessions) == ("b", 3)
    assert trio.current_time() - found.since == pytest.approx(100.0, abs=10.0)
    assert made.why(trying.id) == "override"  # as the latest was led there
    assert (made.room("ann"), made.room("bob"), made.room("nobody")) == (1, 2, 3)
    assert made.residents_of("b").sessions == 3
    made.confirm(trying)
    with pytest.raises(Refused, match="3 sessions of 3"):
        admit(made, guest(), placed("b"))
    for each in (*mine, trying):
        made.release(each, opened=True)
    assert closer.calls == []
    assert backend_of(made) == "b"  # where he returns to


async def test_a_session_that_is_reported_twice_counts_once(autojump_clock: MockClock) -> None:
    made, _ = ledger(most_sessions=2)
    known, reported = guest(stage=Stage.TRYING), guest(backend="a", stage=Stage.TRYING)
    assert admit(made, known, placed("a"), verified=False) == "a"
    known.backend = "a"
    made.restore([reported, known, reported])
    made.restore([known, reported])
    assert (len(made), made.room("ann"), made.residents_of("a").sessions) == (2, 2, 2)
    reported.stage = Stage.COUNTED  # it has come further than was heard
    made.restore([reported, known])
    reported.stage = Stage.OPENED
    made.restore([reported])
    assert made.room("ann") == 1
    reported.stage = Stage.TRYING  # what is known is not unlearnt
    made.restore([reported])
    assert made.room("ann") == 1
    made.release(reported, opened=True)
    made.release(known, opened=True)
    assert (len(made), made.room("ann")) == (0, 2)


DIVIDED = [
    ("most of them", [("a", 9.0), ("b", 1.0), ("b", 2.0)], "b"),
    ("the oldest, of as many", [("a", 1.0), ("b", 9.0), ("b", 2.0), ("a", 3.0)], "b"),
    ("at three", [("c", 1.0), ("a", 2.0), ("b", 3.0), ("a", 1.0)], "a"),
]


@pytest.mark.parametrize(("sessions", "home"), [case[1:] for case in DIVIDED], ids=[case[0] for case in DIVIDED])
async def test_a_user_at_two_backends(sessions: list[tuple[str, float]], home: str, autojump_clock: MockClock) -> None:
    made, closer = ledger()
    guests = [guest(backend=backend, age=age) for backend, age in sessions]
    strays = [each for each in guests if each.backend != home]
    before = accounts.DIVIDED.value
    with structlog.testing.capture_logs() as logged:
        made.restore([*guests, guest("bob", "a")])
        assert set(itertools.chain(*closer.told())) == set(ids(*strays))
        late = guest(backend=strays[0].backend)
        made.restore([*guests, late])  # one more makes him no more divided
        assert closer.told() == [ids(late)]
    assert [(line["log_level"], line["names"]) for line in logged if line["event"] == "ledger.users_divided"] == [
        ("warning", ("ann",))
    ]
    assert accounts.DIVIDED.value == before + 1
    assert backend_of(made) == home
    assert made.residents_of(home).users == 1 + (home == "a")
    for each in guests:
        assert made.residents_of(each.backend).sessions >= 1


async def test_nobody_gets_in_at_a_third_backend(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    made, closer = ledger()
    nursery.start_soon(made.run)
    here, stray = guest(backend="a", age=9.0), guest(backend="b")
    made.restore([here, stray])
    assert closer.told() == [ids(stray)]
    assert admit(made, guest(), placed("b")) == "a"  # he may still join those at home
    made, closer = ledger()
    nursery.start_soon(made.run)
    made.restore([here, stray])
    closer.told()
    made.release(here, opened=True)
    assert admit(made, guest(), placed("c", "c")) is None  # nor at b, whatever placement says
    assert backend_of(made) == "a"
    assert closer.told() == [ids(stray)]
    waiting = guest()
    ends: list[str] = []

    async def log_in() -> None:
        ends.append(await made.wait_for(waiting, lambda: placed("c", "c"), verified=True))

    nursery.start_soon(log_in)
    await trio.sleep(5)
    assert ends == []
    made.release(stray, opened=True)
    await trio.sleep(DELAY + 0.1)
    assert ends == ["c"]


async def test_a_stray_that_does_not_hear_is_told_again(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    made, closer = ledger()
    nursery.start_soon(made.run)
    here, strays = guest(backend="a", age=9.0), [guest(backend="b"), guest(backend="b", age=1.0)]
    made.restore([here, guest(backend="a"), guest(backend="a"), *strays])
    assert closer.told() == [ids(*strays)]
    await trio.sleep(REPEATED_AFTER - 1)
    made.release(strays[0], opened=True)
    assert closer.told() == []
    await trio.sleep(2)
    assert closer.told() == [ids(strays[1])]
    made.release(strays[1], opened=True)
    await trio.sleep(2 * REPEATED_AFTER)
    assert closer.told() == []
    assert made._homes._moves._agenda == []


async def test_who_seemed_to_have_left_has_not(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """A worker is heard of late, while a login waits for the end of the delay."""
    made, closer = ledger()
    nursery.start_soon(made.run)
    gone, late, waiting = guest(), guest(backend="b"), guest()
    assert admit(made, gone, placed("a")) == "a"
    ends: list[str] = []

    async def log_in() -> None:
        ends.append(await made.admit(waiting, lambda: placed("c", "c"), verified=True))

    nursery.start_soon(log_in)
    await wait_all_tasks_blocked()
    made.release(gone, opened=True)
    await trio.sleep(DELAY / 2)
    assert closer.told() == [ids(gone)]
    made.restore([late])
    assert backend_of(made) == "b"
    assert closer.told() == [ids(late)]  # for the sake of the login
    assert made.moves_in_flight == 1
    await trio.sleep(DELAY)
    assert ends == []
    made.release(late, opened=True)
    await trio.sleep(DELAY + 0.1)
    assert ends == ["c"]
    assert made.moves_in_flight == 0


async def test_what_he_left_before_still_counts(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """His session that was heard of late comes to nothing."""
    made, _ = ledger()
    nursery.start_soon(made.run)
    gone, late = guest(), guest(backend="b", stage=Stage.TRYING)
    assert admit(made, gone, placed("a")) == "a"
    assert admit(made, guest(), placed("c", "c")) is None
    made.release(gone, opened=True)
    made.restore([late])
    made.release(late, opened=False)
    assert admit(made, guest(), placed("c", "c")) is None
    await trio.sleep(DELAY + 0.1)
    assert admit(made, guest(), placed("c", "c")) == "c"


async def test_one_that_joins_a_move_ends_too(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    made, closer = ledger()
    nursery.start_soon(made.run)
    here, late = guest(), guest(backend="a")
    assert admit(made, here, placed("a")) == "a"
    made.move("ann")
    assert closer.told() == [ids(here)]
    made.restore([late])
    assert closer.told() == [ids(here, late)]


# --- admission without a wait ---


async def test_admit_now_never_waits(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    made, closer = ledger()
    nursery.start_soon(made.run)
    here, newcomer = guest(), guest()
    assert admit(made, here, placed("a")) == "a"
    assert admit(made, newcomer, placed("b", "b")) is None
    assert closer.told() == [ids(here)]  # the move goes on even if nobody waits for it
    assert newcomer.id not in made
    made.release(here, opened=True)
    await trio.sleep(DELAY + 0.1)
    assert await made.wait_for(newcomer, lambda: placed("b", "b"), verified=True) == "b"  # over before it waited
    assert made.why(newcomer.id) == "hash"
    with pytest.raises(KeyError):
        made.why(here.id)


async def test_a_session_that_tries_again_is_there_once(autojump_clock: MockClock) -> None:
    """What it says of its end may come after what it asks next."""
    made, _ = ledger(most_sessions=1)
    mine = guest()
    assert admit(made, mine, placed("a")) == "a"
    mine.name = "bob"
    assert admit(made, mine, placed("b")) == "b"
    assert admit(made, mine, placed("b")) == "b"
    assert (len(made), made.room("ann"), made.room("bob")) == (1, 1, 0)


# --- connections_per_backend ---


async def test_a_backend_has_only_so_many(autojump_clock: MockClock) -> None:
    made, closer = ledger(most_there=2)
    first, second = guest("ann"), guest("bob")
    assert admit(made, first, placed("a"), verified=False) == "a"  # one that is logging in is among them
    assert admit(made, second, placed("a")) == "a"
    for name, placement in (("ann", placed("a")), ("eve", placed("a")), ("ann", placed("b", "ab"))):
        with pytest.raises(Refused, match="connections_per_backend: a has 2 sessions of 2") as caught:
            admit(made, guest(name), placement)
        assert (caught.value.outcome, caught.value.limit) == (Outcome.UNAVAILABLE, "connections_per_backend")
    elsewhere = guest("joe")
    assert admit(made, elsewhere, placed("b")) == "b"
    with pytest.raises(Refused, match="a has 2"):
        admit(made, guest("joe"), placed("a", "a"))  # nobody is moved for the sake of a login in vain
    assert closer.calls == []
    made.release(first, opened=False)
    assert admit(made, guest("eve"), placed("a")) == "a"


async def test_strays_take_room_where_they_are(autojump_clock: MockClock) -> None:
    made, _ = ledger(most_there=1)
    stray = guest(backend="b")
    made.restore([guest(backend="a", age=9.0), stray])
    with pytest.raises(Refused, match="b has 1 sessions of 1"):
        admit(made, guest("bob"), placed("b"))
    made.release(stray, opened=True)
    assert admit(made, guest("bob"), placed("b")) == "b"


# --- many at once ---


async def test_a_worker_is_gone_with_all_its_sessions(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    made, closer = ledger()
    nursery.start_soon(made.run)
    there = [guest(f"user{number // 3}", "ab"[number % 2], age=number) for number in range(3000)]
    other = guest("other", "a")
    made.restore([*there, other])
    closer.told()
    others_turn = 0

    async def others() -> None:
        nonlocal others_turn
        while len(made) > 1:
            others_turn += 1
            await trio.lowlevel.checkpoint()

    nursery.start_soon(others)
    with trio.CancelScope() as scope:
        scope.cancel()
        await made.release_all([*ids(*there), "gone long ago"])
    assert others_turn > 3
    assert len(made) == 1
    assert made.residents_of("a").sessions == 1
    assert not made._homes._strays
    assert backend_of(made, "user7") in "ab"  # and they return to where they were


async def test_logins_wait_no_longer_than_for_the_gone(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    made, _ = ledger()
    nursery.start_soon(made.run)
    there = [guest() for _ in range(3)]
    for each in there:
        admit(made, each, placed("a"))
    ends: list[str] = []

    async def log_in() -> None:
        ends.append(await made.admit(guest(), lambda: placed("b", "b"), verified=True))

    nursery.start_soon(log_in)
    await wait_all_tasks_blocked()
    await made.release_all(ids(*there))
    await trio.sleep(DELAY + 0.1)
    assert ends == ["b"]


# --- pins ---


def homes(most_pins: int = 1000, **routing: Any) -> Homes:
    return Homes(50, Routing(**routing), lambda: 0.0, most_pins)


def stay(made: Homes, name: str, placement: Placement, left_at: float) -> None:
    session_id = f"{name}-{next(_numbers)}"
    assert made.admit(session_id, name, placement, left_at, verified=True) == placement.home
    made.release(session_id, left_at, opened=True)


def test_pins_go_on_to_the_next() -> None:
    before, after = homes(), homes()
    stay(before, "ann", placed("a"), 1000.0)
    stay(before, "bob", placed("b", why="failover"), 1500.0)
    before.admit("s1", "eve", placed("c"), 1600.0, verified=True)
    before.confirm("s1")
    before.admit("s2", "stranger", placed("c"), 1600.0, verified=False)
    after.recall(json.loads(json.dumps(before.memory(1700.0))), 7.0)
    for name, backend, until in (("ann", "a", 1200.0 - 993.0), ("eve", "c", 907.0)):
        found = after.find(name, 8.0)
        assert found is not None
        assert found.backend == backend
        assert found.sticky_until == pytest.approx(until, abs=0.01)
    assert after.find("bob", 8.0) is None  # from a substitute he returns as soon as he can
    assert after.find("stranger", 8.0) is None
    assert len(after._pins) == 3
    assert after.find("ann", 210.0) is None  # as old as it would have been


def test_who_has_only_just_left_waits_at_the_next_too() -> None:
    before, after = homes(), homes()
    before.admit("s1", "ann", placed("a"), 1000.0, verified=True)
    assert before.admit("s2", "ann", placed("b", "b"), 1000.0, verified=True) is None
    before.release("s1", 1000.0, opened=True)
    memory = json.loads(json.dumps(before.memory(1001.0)))
    after.recall(memory, 1001.0)
    assert after.admit("s2", "ann", placed("b", "b"), 1001.5, verified=True) is None
    after.advance(1002.5)
    assert after.admit("s2", "ann", placed("b", "b"), 1002.5, verified=True) == "b"


def test_the_newer_pin_counts() -> None:
    made = homes()
    stay(made, "ann", placed("a"), 1000.0)
    stay(made, "bob", placed("a"), 1000.0)
    made.recall({"pins": [["ann", "b", 50.0, True], ["bob", "b", 5.0, True]]}, 1010.0)
    there = [made.find(name, 1010.0) for name in ("ann", "bob")]
    assert [each and each.backend for each in there] == ["a", "b"]


def test_there_are_never_more_than_so_many() -> None:
    made = homes(most_pins=10)
    made.recall({"pins": [[f"user{number}", "a", 100.0 - number, True] for number in range(50)]}, 1000.0)
    assert len(made._pins) == 10
    assert made.find("user49", 1000.0) is not None


NONSENSE: list[dict[str, Any]] = [
    {},
    {"pins": None},
    {"pins": {"ann": "a"}},
    {"pins": [None, 1, "ann", [], ["ann"], ["ann", "a"], ["ann", "a", "1", True], ["ann", None, 1, True]]},
    {"pins": [["ann", "a", -1, True], ["ann", "a", float("nan"), True], ["ann", "a", float("inf"), True]]},
    {"pins": [["ann", "a", 1, "yes"]]},
]


@pytest.mark.parametrize("memory", NONSENSE, ids=str)
def test_nonsense_is_no_memory(memory: dict[str, Any]) -> None:
    made = homes()
    made.recall(memory, 1000.0)
    assert made.find("ann", 1000.0) is None
