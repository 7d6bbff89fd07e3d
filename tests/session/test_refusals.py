"""The last refused logins, and the events of sessions: what a house remembers and tells for those who look on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from proxy.ledger.session import Session
from proxy.model import Endpoint
from proxy.outcome import FAREWELLS, Outcome, Refused
from proxy.session.refusals import MOST, Refusals
from tests.session.stage import Scene, answering, until

Stage = Callable[..., Awaitable[Scene]]


def session(**values: str) -> Session:
    made = Session(Endpoint("2001:db8::7", 4711), "l")
    for key, value in values.items():
        setattr(made, key, value)
    return made


NAMES: list[tuple[dict[str, str], tuple[str, ...]]] = [
    ({}, ()),
    ({"name": "ann"}, ("ann",)),
    ({"name": "ann", "authentication_identity": "ann"}, ("ann",)),
    (
        {"name": "ann", "authorization_identity": "Ann", "authentication_identity": "ops"},
        ("ann", "ops"),
    ),
    ({"authentication_identity": "Ann"}, ("ann",)),
    ({"authorization_identity": "BOB", "authentication_identity": "Ops"}, ("bob", "ops")),
    ({"authentication_identity": "x" * 200}, ("x" * 200,)),
    ({"name": "ann", "authentication_identity": "x" * 201}, ("ann",)),
]


@pytest.mark.parametrize(("values", "names"), NAMES)
def test_names(values: dict[str, str], names: tuple[str, ...]) -> None:
    refusals = Refusals()
    refusals.note(session(**values), Refused(Outcome.AUTHENTICATION_FAILED), str.lower)
    (refusal,) = reversed(refusals)
    assert (refusal.names, refusal.client, refusal.detail) == (names, "[2001:db8::7]:4711", "")


DETAILS = [
    (Refused(Outcome.UNAVAILABLE, "ldap: no answer"), "ldap: no answer"),
    (Refused(Outcome.LIMIT, "too many sessions", limit="connections_per_user"), "connections_per_user"),
    (Refused(Outcome.UNAVAILABLE, "x" * 5000), "x" * 200),
]


@pytest.mark.parametrize(("refusal", "detail"), DETAILS, ids=["detail", "limit", "long"])
def test_details(refusal: Refused, detail: str) -> None:
    refusals = Refusals()
    refusals.note(session(name="ann", mechanism="LOGIN"), refusal, str.lower)
    (noted,) = reversed(refusals)
    document = noted.document()
    assert (document["detail"], document["outcome"], document["mechanism"]) == (detail, refusal.outcome, "LOGIN")


def test_the_last_are_remembered() -> None:
    refusals = Refusals()
    for number in range(MOST + 10):
        refusals.note(session(name=f"u{number}"), Refused(Outcome.AUTHENTICATION_FAILED), str.lower)
    assert [each.names[0] for each in reversed(refusals)] == [f"u{number}" for number in reversed(range(10, MOST + 10))]


# --- in a house ---


async def test_a_refused_login_is_remembered_without_its_password(stage: Stage) -> None:
    scene = await stage(answering(b"NO [AUTHENTICATIONFAILED] wrong"))
    client = await scene.call_and_be_greeted()
    assert (await client.log_in(b"a", b"ann", b"s3cret")).startswith(b"a NO")
    (refusal,) = reversed(scene.house.refusals)
    assert refusal.names[0] == "ann"
    assert refusal.outcome == "authentication_failed"
    assert "s3cret" not in repr(refusal)
    client.close()


async def test_a_held_user_is_refused_as_unavailable(stage: Stage) -> None:
    scene = await stage()
    scene.registry.hold("ann", until=None, reason="a copy", by="ops")
    client = await scene.call_and_be_greeted()
    answer = await client.log_in(b"a", b"ann")
    assert answer.startswith(b"a NO [UNAVAILABLE] ")
    assert b"copy" not in answer, "that is for the log"
    (refusal,) = reversed(scene.house.refusals)
    assert (refusal.outcome, refusal.detail) == ("unavailable", "held by ops: a copy")
    assert scene.counted('porter_backend_failures_total{backend="d1",step="login"}') == 0
    scene.registry.release_user("ann")
    assert (await client.log_in(b"b", b"ann")).startswith(b"b OK")
    client.close()


class Told(list[tuple[str, str, dict[str, Any]]]):
    """What was told to whoever looks on."""

    def __call__(self, kind: str, event: str, values: dict[str, Any]) -> None:
        self.append((kind, event, values))


@pytest.mark.parametrize("wanted", [frozenset(), frozenset({"limit"}), frozenset({"session", "audit"})])
async def test_the_end_of_a_session_is_told_while_somebody_looks_on(stage: Stage, wanted: frozenset[str]) -> None:
    scene = await stage()
    told = scene.house.happenings.tell = Told()
    client = await scene.call_and_be_greeted()
    assert (await client.log_in(b"a", b"ann")).startswith(b"a OK")
    scene.house.happenings.wanted = wanted
    (carried,) = scene.house.engine.sessions
    await client.send(b"b LOGOUT\r\n")
    await client.rest()
    closing = await scene.closing()
    if "session" not in wanted:
        assert told == []
        return
    ((kind, event, values),) = told
    assert (kind, event) == ("session", "session.closed")
    assert values.pop("seconds") >= 0
    assert values == {
        "id": carried.id,
        "user": "ann",
        "client": closing["client"],
        "backend": "d1",
        "outcome": "logged_out",
    }


async def test_a_login_that_fails_is_no_session(stage: Stage) -> None:
    scene = await stage(answering(b"NO [AUTHENTICATIONFAILED] wrong"))
    told = scene.house.happenings.tell = Told()
    scene.house.happenings.wanted = frozenset({"session"})
    client = await scene.call_and_be_greeted()
    assert (await client.log_in(b"a", b"ann")).startswith(b"a NO")
    client.close()
    await scene.closing()
    assert told == []


async def test_who_is_kicked_is_told_so(stage: Stage) -> None:
    scene = await stage()
    client = await scene.call_and_be_greeted()
    assert (await client.log_in(b"a", b"ann")).startswith(b"a OK")
    await until(lambda: len(scene.house.engine.sessions) == 1)
    (carried,) = scene.house.engine.sessions
    scene.house.engine.say_goodbye(carried, Outcome.KICKED)
    assert await client.rest() == FAREWELLS[Outcome.KICKED] == b"* BYE Disconnected by the administrator.\r\n"
    assert (await scene.closing())["outcome"] == "kicked"
    assert scene.counted('porter_sessions_ended_total{outcome="kicked"}') == 1
