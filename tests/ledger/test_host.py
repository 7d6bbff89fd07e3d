"""The ledger: who has how many sessions, and that it forgets everybody who has gone."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.ledger.host import Ledger
from proxy.ledger.session import Session
from proxy.model import Endpoint
from proxy.outcome import Outcome, Refused


def session(name: str) -> Session:
    made = Session(Endpoint("192.0.2.1", 4711), "test")
    made.name = name
    return made


def at_once(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run what must not wait: between the check and the change nobody else may get in."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    pytest.fail("it waited")


def admitted(ledger: Ledger, newcomer: Session) -> bool:
    try:
        at_once(ledger.admit(newcomer))
    except Refused as refusal:
        return refusal.outcome is not Outcome.LIMIT
    return True


def test_so_many_of_one_user_and_then_room_again() -> None:
    ledger = Ledger(2)
    first, second, third = (session("ann") for _ in range(3))
    assert admitted(ledger, first)
    assert admitted(ledger, second)
    with pytest.raises(Refused, match="connections_per_user: 2 sessions of 2"):
        at_once(ledger.admit(third))
    assert admitted(ledger, session("bob"))
    assert len(ledger) == 3
    ledger.release(first)
    assert admitted(ledger, third)
    assert not admitted(ledger, session("ann"))


def test_a_session_that_was_refused_takes_no_place_and_gives_none_back() -> None:
    ledger = Ledger(1)
    first, second = session("ann"), session("ann")
    assert admitted(ledger, first)
    assert not admitted(ledger, second)
    ledger.release(second)
    assert len(ledger) == 1
    assert not admitted(ledger, second)


def test_what_was_never_admitted_is_no_mistake() -> None:
    ledger = Ledger(1)
    ledger.release(session("ann"))
    assert len(ledger) == 0
    assert admitted(ledger, session("ann"))


def test_a_place_is_given_back_once() -> None:
    ledger = Ledger(2)
    first, second = session("ann"), session("ann")
    assert admitted(ledger, first)
    assert admitted(ledger, second)
    ledger.release(first)
    ledger.release(first)
    assert len(ledger) == 1
    assert admitted(ledger, session("ann"))
    assert not admitted(ledger, session("ann"))


# Each number is one session that comes if it is away, and goes if it is there.
@given(
    names=st.lists(st.sampled_from(["ann", "bob", "eve"]), min_size=1, max_size=8),
    moves=st.lists(st.integers(0, 7), max_size=60),
    limit=st.integers(1, 3),
)
def test_any_order_of_coming_and_going_ends_at_nothing(names: list[str], moves: list[int], limit: int) -> None:
    ledger = Ledger(limit)
    sessions = [session(name) for name in names]
    inside: list[Session] = []
    for move in moves:
        mover = sessions[move % len(sessions)]
        if any(mover is each for each in inside):
            ledger.release(mover)
            inside = [each for each in inside if each is not mover]
        else:
            room = sum(each.name == mover.name for each in inside) < limit
            assert admitted(ledger, mover) is room
            if room:
                inside.append(mover)
        assert len(ledger) == len(inside)
    for leaver in sessions:
        ledger.release(leaver)
    assert len(ledger) == 0
    assert not ledger._by_user
