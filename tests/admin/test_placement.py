"""What people are told of a user's next login is what the ledger then does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from proxy.admin.placement import next_login, route_document
from proxy.ledger.homes import Homes
from proxy.model import Identity, Placement
from proxy.outcome import Refused
from proxy.routing.cluster import Cluster
from proxy.settings.models import Backends, Routing, Server

ANN = "ann@example.org"
ALL = frozenset(["d1", "d2"])
AT_D1 = Placement("d1", "hash", ALL, ALL)
TO_D2 = replace(AT_D1, home="d2")
D1_DOWN = {"d1": "down: no answer"}

Life = Callable[[Homes], object]


def stay(homes: Homes) -> None:
    homes.admit("s1", ANN, AT_D1, 100.0, verified=True)


def leave(homes: Homes) -> None:
    stay(homes)
    homes.release("s1", 200.0, opened=True)


def be_moved(homes: Homes) -> None:
    stay(homes)
    homes.move(ANN, 205.0)


CASES = [
    ("a newcomer", lambda homes: None, AT_D1, "d1", ""),
    ("a newcomer, home is down", lambda homes: None, replace(AT_D1, closed=D1_DOWN), "", "d1: down: no answer"),
    ("a newcomer without a home", lambda homes: None, replace(AT_D1, home="", problem="all drain"), "", "all drain"),
    ("at home", stay, AT_D1, "d1", ""),
    ("sessions elsewhere", stay, TO_D2, "d1", "he has sessions there"),
    ("sessions elsewhere, which is down", stay, replace(TO_D2, closed=D1_DOWN), "", "d1: down: no answer"),
    ("sessions where nobody joins", stay, replace(TO_D2, joinable={"d2"}), "d2", "once his sessions at d1 are closed"),
    ("an override", stay, replace(TO_D2, why="override"), "d2", "once his sessions at d1 are closed"),
    ("on the move", be_moved, TO_D2, "d2", "once he has left d1"),
    ("was there", leave, TO_D2, "d1", "he was there lately"),
    ("was there, it drains", leave, replace(TO_D2, sticky={"d2"}), "d2", ""),
    ("was there, it is down", leave, replace(TO_D2, closed=D1_DOWN), "d2", ""),
    ("was there, now an override", leave, replace(TO_D2, why="override"), "d2", ""),
    ("was at home", leave, AT_D1, "d1", ""),
]


@pytest.mark.parametrize(("name", "life", "placement", "backend", "reason"), CASES, ids=[row[0] for row in CASES])
def test_next_login(name: str, life: Life, placement: Placement, backend: str, reason: str) -> None:
    homes = Homes(10, Routing(), lambda: 0.0)
    life(homes)
    assert next_login(placement, homes.find(ANN, 210.0)) == (backend, reason)
    try:
        admitted = homes.admit("s2", ANN, placement, 210.0, verified=True)
    except Refused:
        admitted = ""
    assert admitted == (None if reason.startswith("once") else backend)


def test_the_document() -> None:
    servers = (
        Server(name="d1", url="imap://127.0.0.1:1"),  # type: ignore[arg-type]
        Server(name="d2", url="imap://127.0.0.1:2", weight=3),  # type: ignore[arg-type]
    )
    cluster = Cluster(Backends(servers=servers), Routing(), 0.0)
    home = cluster.place(Identity(ANN, "ldap")).home
    other = ({"d1", "d2"} - {home}).pop()
    homes = Homes(10, Routing(), lambda: 0.0)
    homes.admit("s1", ANN, Placement(other, "hash", ALL, ALL), 100.0, verified=True)
    explanation = cluster.explain(Identity(ANN, "ldap"))
    document = route_document(Identity(ANN, "ldap"), explanation, homes.find(ANN, 160.0), 160.0)
    assert document["whereabouts"] == {
        "backend": other,
        "sessions": 1,
        "seconds": 60.0,
        "sticky_seconds": None,
        "sticky_holds": False,
        "moving": "",
    }
    assert (document["home"], document["backend"], document["reason"]) == (home, other, "he has sessions there")
    assert (document["name"], document["source"], document["epoch"]) == (ANN, "ldap", cluster.epoch)
    assert [each["name"] for each in document["order"]] == [home, other]
    assert {each["weight"] for each in document["order"]} == {1, 3}
    assert [each["up"] for each in document["order"]] == [True, True]

    homes.release("s1", 170.0, opened=True)
    document = route_document(Identity(ANN, "ldap"), explanation, homes.find(ANN, 200.0), 200.0)
    assert document["whereabouts"]["sticky_seconds"] == 900.0 - 30.0
    assert document["whereabouts"]["sticky_holds"] is True
    assert (document["backend"], document["reason"]) == (other, "he was there lately")

    document = route_document(Identity(ANN, ""), explanation, None, 0.0, running=False)
    assert (document["backend"], document["reason"]) == (home, explanation.why)
    assert [each["up"] for each in document["order"]] == [None, None]

    cluster.set_state(other, "drain", 210.0)
    explanation = cluster.explain(Identity(ANN, "ldap"))
    document = route_document(Identity(ANN, "ldap"), explanation, homes.find(ANN, 220.0), 220.0)
    assert document["whereabouts"]["sticky_holds"] is False
    assert document["backend"] == home


HOLDS = [
    ("elsewhere", TO_D2, True),
    ("at home", AT_D1, True),
    ("at home by override", replace(AT_D1, why="override", sticky={"d1"}), True),
    ("an override elsewhere", replace(TO_D2, why="override", sticky=ALL), False),
    ("out", replace(TO_D2, sticky={"d2"}), False),
    ("down", replace(TO_D2, closed=D1_DOWN), False),
    ("at home, down", replace(AT_D1, closed=D1_DOWN), False),
]


@pytest.mark.parametrize(("name", "placement", "holds"), HOLDS, ids=[row[0] for row in HOLDS])
def test_whether_sticky_holds(name: str, placement: Placement, holds: bool) -> None:
    cluster = Cluster(
        Backends(servers=(Server(name="d1", url="imap://127.0.0.1:1"),)),  # type: ignore[arg-type]
        Routing(),
        0.0,
    )
    identity = Identity(ANN, "ldap")
    explanation = replace(cluster.explain(identity), placement=placement)
    homes = Homes(10, Routing(), lambda: 0.0)
    leave(homes)
    document = route_document(identity, explanation, homes.find(ANN, 210.0), 210.0)
    assert document["whereabouts"]["sticky_holds"] is holds
    assert (document["backend"] == "d1") is holds
