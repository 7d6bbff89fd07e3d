"""Where users live: where a login goes, what it waits for, and that nothing remains of anybody."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from proxy.ledger.homes import Homes
from proxy.ledger.resident import MoveReason, Occupancy
from proxy.model import Placement
from proxy.outcome import Outcome, Refused
from proxy.settings.backend_models import Routing

DELAY, PATIENCE, STICKY = 2.0, 15.0, 900.0
_numbers = itertools.count()


def placed(
    home: str = "a",
    why: Any = "hash",
    joinable: Iterable[str] = "abc",
    sticky: Iterable[str] = "abc",
    closed: Mapping[str, str] | None = None,
    problem: str = "",
) -> Placement:
    return Placement(home, why, frozenset(joinable), frozenset(sticky), closed or {}, problem)


class House:
    """Homes, with a clock and somebody who closes what has to be closed."""

    def __init__(self, most_sessions: int = 50, most_pins: int = 1000, **routing: Any) -> None:
        self.homes = Homes(most_sessions, Routing(**routing), lambda: 0.0, most_pins)
        self.now = 1000.0

    def log_in(self, name: str, placement: Placement, *, verified: bool = True) -> tuple[str, str | None]:
        session_id = f"{name}-{next(_numbers)}"
        return session_id, self.homes.admit(session_id, name, placement, self.now, verified=verified)

    def live(self, name: str, backend: str) -> str:
        """Log in where that leads to this backend."""
        session_id, admitted = self.log_in(name, placed(backend))
        assert admitted == backend
        return session_id

    def leave(self, *session_ids: str, opened: bool = True) -> None:
        for session_id in session_ids:
            self.homes.release(session_id, self.now, opened=opened)

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.homes.advance(self.now)

    def closed(self) -> list[tuple[str, MoveReason]]:
        return [(closing.name, closing.reason) for closing in self.homes.take_closings()]

    def obey(self) -> None:
        """End what has to end."""
        for closing in self.homes.take_closings():
            self.leave(*closing.session_ids)

    def ended(self) -> list[str]:
        return [resident.name for resident, _ in self.homes.take_ended()]


def holds_nothing(homes: Homes) -> bool:
    moves = homes._moves
    remains = (homes._residents, homes._sessions, homes._by_backend, homes._pins._pins)
    return not any((*remains, moves._agenda, moves._queue, moves._turns, moves._drains, moves.in_flight))


AWAY = {"a": "no answer"}

# He has sessions at `a`.
WITH_SESSIONS = [
    ("his home", placed("a"), "a"),
    ("his home, whatever else", placed("a", joinable="", sticky=""), "a"),
    ("home elsewhere, but it is joinable", placed("b"), "a"),
    ("joinable, though not sticky: it drains", placed("b", sticky="bc"), "a"),
    ("not joinable", placed("b", joinable="bc", sticky="bc"), None),
    ("an override elsewhere", placed("b", "override", joinable="ab"), None),
    ("an override to here", placed("a", "override", joinable="a"), "a"),
    ("joinable but closed", placed("b", closed=AWAY), "a: no answer"),
    ("his home but closed", placed("a", closed=AWAY), "a: no answer"),
    ("not joinable, and home is closed: nobody moves", placed("b", joinable="b", closed={"b": "down"}), "b: down"),
    ("not joinable, and no home: nobody moves", placed("", joinable="", problem="all drain"), "all drain"),
]
# He left `a` 100 seconds ago.
WAS_THERE = [
    ("his home", placed("a"), "a"),
    ("sticky", placed("b"), "a"),
    ("sticky, no home", placed("", problem="all drain"), "a"),
    ("not sticky", placed("b", sticky="bc"), "b"),
    ("an override elsewhere", placed("b", "override"), "b"),
    ("sticky but closed", placed("b", closed=AWAY), "b"),
    ("home is closed", placed("a", closed=AWAY), "a: no answer"),
    ("sticky, and home is closed", placed("b", closed={"b": "down"}), "a"),
    ("not sticky, and home is closed", placed("b", sticky="b", closed={"b": "down"}), "b: down"),
    ("both closed", placed("b", closed={"a": "x", "b": "y"}), "b: y"),
    ("no home", placed("", sticky="", problem="all drain"), "all drain"),
]


def outcome(house: House, placement: Placement) -> str | None:
    try:
        return house.log_in("ann", placement)[1]
    except Refused as refusal:
        return str(refusal).removeprefix("unavailable: ")


@pytest.mark.parametrize(
    ("placement", "goes"), [row[1:] for row in WITH_SESSIONS], ids=[row[0] for row in WITH_SESSIONS]
)
def test_with_sessions(placement: Placement, goes: str | None) -> None:
    house = House()
    house.live("ann", "a")
    assert outcome(house, placement) == goes
    assert house.closed() == ([("ann", MoveReason.HOME_CHANGED)] if goes is None else [])


@pytest.mark.parametrize(("placement", "goes"), [row[1:] for row in WAS_THERE], ids=[row[0] for row in WAS_THERE])
def test_was_there(placement: Placement, goes: str | None) -> None:
    house = House()
    house.leave(house.live("ann", "a"))
    house.later(100)
    assert outcome(house, placement) == goes


def test_stickiness_ends() -> None:
    house = House()
    house.leave(house.live("ann", "a"))
    house.now += STICKY - 1
    assert house.log_in("ann", placed("b"))[1] == "a"
    house = House()
    house.leave(house.live("ann", "a"))
    house.now += STICKY
    assert house.log_in("ann", placed("b"))[1] == "b"


def test_from_a_substitute_he_returns_once_he_has_no_session_there() -> None:
    house = House()
    first, admitted = house.log_in("ann", placed("b", "failover", joinable="bc", sticky="bc"))
    assert admitted == "b"
    second, admitted = house.log_in("ann", placed("a"))  # it is up again, and he has a session
    assert admitted == "b"
    house.leave(first, second)
    assert house.homes.find("ann", house.now) is None
    house.later(DELAY)
    assert house.log_in("ann", placed("a"))[1] == "a"


def test_a_substitute_that_became_his_home_is_none() -> None:
    house = House()
    first, _ = house.log_in("ann", placed("b", "failover"))
    second, _ = house.log_in("ann", placed("b"))
    house.leave(first, second)
    house.later(DELAY)
    assert house.log_in("ann", placed("a"))[1] == "b"


def test_who_goes_elsewhere_waits_for_the_delay_and_nobody_slips_in() -> None:
    house = House()
    house.leave(house.live("ann", "a"))
    house.later(DELAY - 0.5)
    elsewhere = placed("b", sticky="b")
    assert house.log_in("ann", elsewhere)[1] is None
    assert house.log_in("ann", placed("a"))[1] is None
    assert house.log_in("bob", elsewhere)[1] == "b"
    assert house.homes.moves_in_flight == 0
    house.later(0.4)
    assert house.ended() == []
    house.later(0.1)
    assert house.ended() == ["ann"]
    assert house.log_in("ann", elsewhere)[1] == "b"


def test_nobody_waits_for_a_home_that_is_closed() -> None:
    house = House()
    house.leave(house.live("ann", "a"))
    assert outcome(house, placed("b", sticky="b", closed={"b": "down"})) == "b: down"
    assert outcome(house, placed("a")) == "a"


def test_a_login_that_fails_at_the_backend_leaves_what_was_known_before() -> None:
    house = House()
    house.leave(house.live("ann", "a"))
    house.later(10)
    tried, admitted = house.log_in("ann", placed("b", sticky="b"), verified=False)
    assert admitted == "b"
    house.leave(tried, opened=False)
    assert house.log_in("ann", placed("b"))[1] == "a"  # as if nothing had been


def test_strangers_leave_nothing() -> None:
    house = House()
    for number in range(10):
        house.leave(house.log_in(f"no-{number}", placed(), verified=False)[0], opened=False)
    with pytest.raises(Refused):
        house.log_in("nobody", placed("", problem="all drain"))
    assert holds_nothing(house.homes)


def test_a_stranger_does_not_make_stickiness_longer() -> None:
    house = House()
    mine, theirs = house.live("ann", "a"), house.log_in("ann", placed("a"), verified=False)[0]
    house.leave(mine)
    house.later(500)
    house.leave(theirs, opened=False)
    found = house.homes.find("ann", house.now)
    assert found is not None
    assert found.sticky_until == house.now - 500 + STICKY


def test_only_what_is_verified_or_confirmed_counts() -> None:
    house = House(most_sessions=2)
    house.live("ann", "a")
    tries = [house.log_in("ann", placed(), verified=False)[0] for _ in range(5)]
    house.homes.confirm(tries[0])
    house.homes.confirm(tries[0])  # twice is once
    with pytest.raises(Refused, match="connections_per_user: 2 sessions of 2") as caught:
        house.homes.confirm(tries[1])
    assert (caught.value.outcome, caught.value.limit) == (Outcome.LIMIT, "connections_per_user")
    with pytest.raises(Refused, match="connections_per_user"):
        house.log_in("ann", placed())
    house.leave(tries[0])
    house.homes.confirm(tries[1])


def test_a_move_ends_the_sessions_waits_and_leads_home() -> None:
    house = House()
    sessions = [house.live("ann", "a"), house.log_in("ann", placed("a"), verified=False)[0]]
    elsewhere = placed("b", joinable="b", sticky="b")
    assert house.log_in("ann", elsewhere)[1] is None
    (closing,) = house.homes.take_closings()
    assert (closing.session_ids, closing.patience) == (tuple(sessions), PATIENCE)
    assert house.log_in("ann", elsewhere)[1] is None
    assert house.closed() == []  # they were told
    house.leave(sessions[0])
    house.later(20)
    assert house.log_in("ann", elsewhere)[1] is None
    house.leave(sessions[1], opened=False)
    house.later(DELAY - 0.1)
    assert house.log_in("ann", placed("a"))[1] is None  # whatever placement says by now
    house.later(0.1)
    assert house.ended() == ["ann"]
    assert house.log_in("ann", elsewhere)[1] == "b"


def test_after_a_move_he_is_not_drawn_back() -> None:
    house = House()
    house.live("ann", "a")
    assert house.homes.move("ann", house.now) == 1
    house.obey()
    house.later(DELAY)
    assert house.log_in("ann", placed("b"))[1] == "b"


def test_after_a_move_it_is_forgotten_that_he_was_there_before() -> None:
    house = House()
    house.leave(house.live("ann", "a"))
    house.live("ann", "a")
    assert house.log_in("ann", placed("b", joinable="b"))[1] is None
    house.obey()
    house.later(DELAY)
    assert house.log_in("ann", placed("b"))[1] == "b"


def test_a_move_of_somebody_who_was_there() -> None:
    house = House()
    house.leave(house.live("ann", "a"))
    house.later(1)
    assert house.homes.move("ann", house.now) == 0
    assert house.log_in("ann", placed("b"))[1] is None  # the delay still counts
    house.later(1)
    assert house.log_in("ann", placed("b"))[1] == "b"
    assert house.homes.move("nobody", house.now) == 0


def test_so_many_moves_at_once_then_in_their_order() -> None:
    house = House(moves_in_flight=2)
    sessions = {name: house.live(name, "a") for name in ("ann", "bob", "cid", "dan", "eve")}
    for name in sessions:
        assert house.log_in(name, placed("b", joinable="b"))[1] is None
    assert [name for name, _ in house.closed()] == ["ann", "bob"]
    assert house.homes.moves_in_flight == 2
    house.leave(sessions["bob"], sessions["cid"])  # cid does by himself
    house.later(DELAY)
    assert house.ended() == ["bob", "cid"]
    assert [name for name, _ in house.closed()] == ["dan"]
    house.leave(sessions["ann"])
    house.later(DELAY)
    assert [name for name, _ in house.closed()] == ["eve"]
    assert house.homes.moves_in_flight == 2


def test_sessions_that_are_still_there_are_told_again() -> None:
    house = House()
    session = house.live("ann", "a")
    house.homes.move("ann", house.now)
    for repeated in (False, True, True):
        (closing,) = house.homes.take_closings()
        assert closing.repeated is repeated
        house.later(PATIENCE + 29)
        assert house.closed() == []
        house.later(1)
    house.leave(session)
    house.homes.take_closings()
    house.later(100)
    assert house.closed() == []


def test_an_eviction_is_spread() -> None:
    house = House(moves_in_flight=1)
    for name in ("ann", "bob", "cid", "dan"):
        house.live(name, "a")
    house.live("ann", "a")
    house.live("eve", "b")
    there = house.homes.evict("a", Outcome.BACKEND_CLOSED, house.now, spread=4.0, patience=0.0)
    assert there == Occupancy(4, 5)
    seen = []
    for _ in range(5):
        house.later(0)
        closings = house.homes.take_closings()
        seen.append([(closing.name, len(closing.session_ids)) for closing in closings])
        assert all((each.outcome, each.patience) == (Outcome.BACKEND_CLOSED, 0.0) for each in closings)
        house.later(1)
    assert seen == [[("ann", 2)], [("bob", 1)], [("cid", 1)], [("dan", 1)], []]


def test_who_logs_in_anew_is_evicted_at_once() -> None:
    house = House()
    house.live("ann", "a")
    house.live("bob", "a")
    house.homes.evict("a", Outcome.DRAINED, house.now, spread=600.0, patience=PATIENCE)
    house.later(0)
    assert house.closed() == [("ann", MoveReason.EVICTION)]
    assert house.log_in("bob", placed("b"))[1] is None
    assert house.closed() == [("bob", MoveReason.EVICTION)]
    house.later(600)
    assert house.closed() == [("ann", MoveReason.EVICTION), ("bob", MoveReason.EVICTION)]  # told again, not begun again
    assert house.homes.moves_in_flight == 2


def test_an_eviction_is_not_waited_for_where_there_is_no_home() -> None:
    house = House()
    house.live("ann", "a")
    house.homes.evict("a", Outcome.DRAINED, house.now, spread=0.0, patience=0.0)
    with pytest.raises(Refused, match="a: no answer"):
        house.log_in("ann", placed("a", closed=AWAY))


def test_an_eviction_takes_over_moves_that_wait_or_are_patient() -> None:
    house = House(moves_in_flight=1)
    ann, bob = house.live("ann", "a"), house.live("bob", "a")
    for name in ("ann", "bob"):
        house.log_in(name, placed("b", joinable="b"))
    assert house.closed() == [("ann", MoveReason.HOME_CHANGED)]
    house.homes.evict("a", Outcome.BACKEND_CLOSED, house.now, spread=0.0, patience=0.0)
    house.later(0)
    closings = house.homes.take_closings()
    assert [(each.name, each.patience) for each in closings] == [("ann", 0.0), ("bob", 0.0)]
    house.leave(ann, bob)
    house.later(DELAY)
    assert sorted(house.ended()) == ["ann", "bob"]
    assert house.homes.moves_in_flight == 0
    house.later(100)
    assert holds_nothing(house.homes)


def test_a_drain_moves_one_after_the_other_and_lets_in_until_then() -> None:
    house = House()
    for name in ("ann", "bob", "cid", "dan"):
        house.live(name, "a")
    house.log_in("own", placed("a", "override", joinable="a"))
    assert house.homes.drain("a", 40.0, house.now) == Occupancy(4, 4)
    drains = placed("b", sticky="b")
    house.later(0)
    assert house.closed() == [("ann", MoveReason.DRAIN)]
    assert house.log_in("ann", drains)[1] is None
    assert house.log_in("bob", drains)[1] == "a"
    house.later(10)
    assert house.closed() == [("bob", MoveReason.DRAIN)]
    house.homes.undrain("a")
    house.later(100)
    assert [name for name, _ in house.closed()] == ["ann", "bob"]  # told again; the others stay


def test_an_eviction_that_is_called_off() -> None:
    house = House()
    for name in ("ann", "bob", "cid"):
        house.live(name, "a")
    house.live("dan", "b")
    for backend in ("a", "b"):
        house.homes.evict(backend, Outcome.DRAINED, house.now, spread=30.0, patience=PATIENCE)
    house.later(0)
    assert house.closed() == [("ann", MoveReason.EVICTION), ("dan", MoveReason.EVICTION)]
    assert house.homes.undrain("a") == ["bob", "cid"]
    assert house.log_in("bob", placed("b"))[1] == "a"
    assert house.log_in("ann", placed("a"))[1] is None  # his sessions are being closed
    house.later(40)
    assert house.closed() == []
    assert house.homes.undrain("a") == []


def test_an_eviction_from_a_lost_backend_is_not_called_off() -> None:
    house = House()
    house.live("ann", "a")
    house.live("bob", "a")
    house.homes.evict("a", Outcome.BACKEND_CLOSED, house.now, spread=30.0, patience=0.0)
    assert house.homes.undrain("a") == []
    house.later(15)
    assert [name for name, _ in house.closed()] == ["ann", "bob"]


def test_those_who_cannot_log_in_come_before_those_who_drain() -> None:
    house = House(moves_in_flight=1)
    ann, bob = house.live("ann", "a"), house.live("bob", "a")
    house.live("cid", "c")
    house.homes.drain("a", 0.0, house.now)
    house.later(0)
    assert house.closed() == [("ann", MoveReason.DRAIN)]
    assert house.log_in("bob", placed("b", sticky="b"))[1] == "a"  # not his turn yet: he is let in
    assert house.log_in("cid", placed("b", joinable="b"))[1] is None
    house.leave(ann)
    house.later(DELAY)
    assert house.closed() == [("cid", MoveReason.HOME_CHANGED)]
    house.leave(bob)
    assert house.homes.residents_of("a") == Occupancy(1, 1)


def test_a_drain_told_anew_begins_anew() -> None:
    house = House()
    house.live("ann", "a")
    house.live("bob", "a")
    house.homes.drain("a", 1000.0, house.now)
    house.later(0)
    house.obey()
    house.homes.drain("a", 0.0, house.now)
    house.later(0)
    assert house.closed() == [("bob", MoveReason.DRAIN)]


def test_pins_have_a_bound_and_the_oldest_go_first() -> None:
    house = House(most_pins=3)
    for name in ("ann", "bob", "cid", "dan"):
        house.leave(house.live(name, "a"))
        house.later(1)
    assert house.homes.pins_dropped == 1
    house.later(DELAY)
    assert [house.log_in(name, placed("b"))[1] for name in ("ann", "bob", "cid", "dan")] == ["b", "a", "a", "a"]


@pytest.mark.parametrize(("sticky", "delay"), [(0.0, 0.0), (0.0, 5.0), (3.0, 0.0)])
def test_pins_go_when_they_are_of_no_use(sticky: float, delay: float) -> None:
    house = House(sticky=sticky, move_delay=delay)
    house.leave(house.live("ann", "a"))
    assert len(house.homes._pins) == (1 if sticky or delay else 0)
    house.later(5.0)
    assert holds_nothing(house.homes)


def test_what_people_are_told() -> None:
    house = House(moves_in_flight=1)
    assert house.homes.find("ann", house.now) is None
    session = house.live("ann", "a")
    house.live("bob", "a")
    house.later(1)
    found = house.homes.find("ann", house.now)
    assert found is not None
    assert (found.backend, found.sessions, found.since, found.moving) == ("a", 1, 1000.0, "")
    house.log_in("bob", placed("b", joinable="b"))
    house.log_in("ann", placed("b", joinable="b"))
    found = house.homes.find("ann", house.now)
    assert found is not None
    assert found.moving == "home_changed: waiting for its turn"
    house.leave(session)
    found = house.homes.find("ann", house.now)
    assert found is not None
    assert (found.sessions, found.moving) == (0, "home_changed: the last session has just ended")
    assert house.homes.residents_of("a") == Occupancy(1, 1)
    assert house.homes.residents_of("z") == Occupancy(0, 0)
