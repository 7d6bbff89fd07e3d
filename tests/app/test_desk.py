"""Every verb at a whole steward, whatever workers answer: an answer of its type, or what is the matter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from proxy.admin.verbs import VERBS, Verb
from proxy.auth.authenticator import Authenticator
from proxy.model import Identity
from proxy.observe.log import set_level
from proxy.outcome import Outcome, Refused
from proxy.routing import directions
from tests.app.fake_workers import FakeWorker, settings_of
from tests.app.test_steward import Household


@pytest.fixture
async def household(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Household]:
    with ExitStack() as stack:
        made = Household(nursery, tmp_path, stack)
        yield made
        set_level("info")
        for reign in made.reigns:
            await reign.kill()
            reign.close()
        for worker in made.workers:
            worker.close()


async def ask(household: Household, verb: str, **values: Any) -> tuple[int, dict[str, Any]]:
    """What is answered, which is what its type says."""
    of: Verb = VERBS[verb]
    if of.method == "GET":
        status, answer = await household.ask(of.target(of.ask(**values)))
    else:
        status, answer = await household.ask(of.path, {"reason": "test", **values})
    if status == 200:
        of.answer.model_validate(answer)
    else:
        assert set(answer) == {"problem"}, answer
    return status, answer


async def answer_all(worker: FakeWorker, answers: dict[str, Any]) -> None:
    """As a worker does that is asked; what it has no answer for nobody knows."""
    while True:
        try:
            _, number, what, _ = await worker.hear("ask")
        except EOFError:
            return
        except trio.TooSlowError:
            continue
        worker.tell(["told", number, answers.get(what)])


SESSION = {"mechanism": "PLAIN", "source": "file", "secure": True, "commands": 3, "octets_up": 5, "octets_down": 7}
SENSE: dict[str, Any] = {
    "session": {**SESSION, "activity": "idle"},
    "top": {"seconds": 5.0, "users": [["ann", 1, 10, 5, 5]], "backends": [["d1", 1, 10, 5, 5]]},
    "limits": [{"limit": "commands_per_user", "most": 100, "left": 7, "per_seconds": 60.0}],
    "failures": [
        {"time": 5.0, "client": "c", "mechanism": "PLAIN", "outcome": "authentication_failed", "detail": ""},
    ],
}
ANSWERS: dict[str, dict[str, Any]] = {
    "sense": SENSE,
    "nothing": {},
    "something else": dict.fromkeys(SENSE, 5),
    "lists of something else": {what: [5, None, "x", []] for what in SENSE},
}

ASKED: list[tuple[str, dict[str, Any], int]] = [
    ("status", {}, 200),
    ("generations", {}, 200),
    ("backends", {}, 200),
    ("sessions", {}, 200),
    ("sessions", {"user": "ann", "backend": "d1", "address": "192.0.2.7", "listener": "imaps", "worker": "w1.0"}, 200),
    ("sessions", {"after": "nobody", "limit": 1}, 200),
    ("session", {"session": "a1"}, 200),
    ("session", {"session": "nobody"}, 404),
    ("users", {"limit": 1}, 200),
    ("top", {"limit": 1}, 200),
    ("route", {"name": "ann"}, 200),
    ("explain", {"name": "ann"}, 200),
    ("explain", {"name": "nobody"}, 200),
    ("limits", {}, 200),
    ("settings", {}, 200),
    ("figures", {}, 200),
    ("openapi", {}, 200),
    ("kick", {"session": "a1"}, 200),
    ("kick", {"session": "nobody"}, 404),
    ("kick", {"user": "ann"}, 200),
    ("kick", {"user": "nobody"}, 200),
    ("kick", {"address": "192.0.2.7"}, 200),
    ("kick", {"address": "192.0.2.99"}, 200),
    ("kick", {"address": "no address"}, 400),
    ("kick", {"backend": "d1"}, 200),
    ("kick", {"backend": "d9"}, 404),
    ("kick", {}, 400),
    ("drain", {"backend": "d1", "over_seconds": 5.0}, 200),
    ("drain", {"backend": "d9"}, 404),
    ("undrain", {"backend": "d1"}, 200),
    ("down", {"backend": "d1"}, 200),
    ("weight", {"backend": "d1", "weight": 0}, 200),
    ("move", {"user": "ann", "backend": "d1", "for_seconds": 5.0}, 200),
    ("move", {"user": "ann", "backend": "d9"}, 404),
    ("hold", {"user": "ann"}, 200),
    ("release", {"user": "ann"}, 404),
    ("log-level", {"level": "warning"}, 200),
    ("trace", {"user": "ann"}, 200),
    ("untrace", {"trace": "nobody"}, 404),
]
NO_NAME = "\x00no name"
NAMED = [("explain", "name"), ("route", "name"), ("sessions", "user")]
NAMED += [(verb, "user") for verb in ("kick", "move", "hold", "release", "trace")]


async def begin(household: Household, nursery: trio.Nursery, answers: dict[str, Any]) -> None:
    reign = await household.begin()
    reign.say(["status", {"version": "1", "generation": 1, "draining": False, "last_reload": {}, "processes": []}])
    one = household.workers[0]
    await one.admit("a1", "ann", backend="d1")
    one.confirm("a1")
    for worker in household.workers:
        nursery.start_soon(answer_all, worker, answers)


@pytest.mark.parametrize("answers", ANSWERS.values(), ids=ANSWERS)
async def test_every_verb_is_answered(household: Household, nursery: trio.Nursery, answers: dict[str, Any]) -> None:
    await begin(household, nursery, answers)
    wrong = []
    for verb, values, expected in ASKED:
        if verb == "status":
            continue  # what the master says is shown as it is
        if verb == "explain" and values["name"] == "ann" and answers is SENSE:
            _, told = await ask(household, verb, **values)
            assert told["failures"] == SENSE["failures"] * 2, "of both workers"
            assert {row["limit"]: row["left"] for row in told["limits"]}["commands_per_user"] == 7
        status, answer = await ask(household, verb, **values)
        if status != expected:
            wrong.append((verb, values, status, answer))
        if verb in ("hold", "move"):
            await ask(household, "release", user="ann")
    assert wrong == []


def test_every_verb_is_asked() -> None:
    """`reload` is for a master to answer."""
    assert {verb for verb, _, _ in ASKED} == {*VERBS} - {"reload"}


@pytest.mark.parametrize(("verb", "key"), NAMED)
async def test_what_is_no_name(household: Household, verb: str, key: str) -> None:
    await household.begin()
    values: dict[str, Any] = {key: NO_NAME} | ({"backend": "d1"} if verb == "move" else {})
    status, answer = await ask(household, verb, **values)
    assert 400 <= status < 500, answer


async def test_too_many_are_moved_or_held(household: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    await household.begin()
    monkeypatch.setattr(directions, "MOST", 1)
    assert (await ask(household, "hold", user="ann"))[0] == 200
    status, answer = await ask(household, "move", user="bob", backend="d1")
    assert status == 409
    assert answer["problem"] == "1 users are moved or held already; release some first"


async def test_a_users_way_through_the_verbs(household: Household) -> None:
    await household.begin(settings_of())
    one = household.workers[0]
    assert await one.admit("a1", "ann", backend="d1") == "d1"
    _, answer = await ask(household, "move", user="ann", backend="d2")
    assert answer["done"] == {"user": "ann", "sessions": 1, "backend": "d2"}
    assert (await one.hear("close"))[1] == ["a1"]
    _, answer = await ask(household, "hold", user="ann", for_seconds=60.0)
    assert answer["done"] == {"user": "ann", "sessions": 1}
    one.release("a1")
    assert await one.admit("a2", "ann") == Outcome.UNAVAILABLE
    _, answer = await ask(household, "release", user="ann")
    assert answer["done"] == {"user": "ann", "held": True, "backend": "d2"}


ALIASES = {
    # what is asked, and what comes of it
    "postmaster": ("ann", ""),
    "POSTMASTER": ("ann", ""),
    "ann": ("ann", ""),
    "nobody": ("nobody", "no source knows nobody, or one that would is out: taken as it is spelled"),
    "out": ("out", "no source knows out, or one that would is out: taken as it is spelled"),
}


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that knows a user by two names, and does not always answer."""

    async def find(_: Authenticator, spelled: str) -> Identity | None:
        if spelled == "out":
            raise Refused(Outcome.UNAVAILABLE, "ldap: no answer")
        return Identity("ann", "ldap") if spelled.lower() in ("ann", "postmaster") else None

    monkeypatch.setattr(Authenticator, "find", find)


@pytest.mark.usefixtures("directory")
@pytest.mark.parametrize(("spelled", "name", "warning"), [(key, *value) for key, value in ALIASES.items()])
async def test_whom_a_name_stands_for(household: Household, spelled: str, name: str, warning: str) -> None:
    reign = await household.begin()
    _, answer = await ask(household, "hold", user=spelled)
    assert (answer["done"]["user"], answer["warning"]) == (name, warning)
    assert [*reign.steward.links.registry.directions] == [name]
    _, answer = await ask(household, "release", user=spelled)
    assert answer["done"] == {"user": name, "held": True, "backend": None}


@pytest.mark.usefixtures("directory")
async def test_an_alias_is_as_good_as_the_name(household: Household) -> None:
    await household.begin()
    one = household.workers[0]
    await one.admit("a1", "ann")
    one.confirm("a1")
    await trio.testing.wait_all_tasks_blocked()
    _, answer = await ask(household, "sessions", user="Postmaster")
    assert [each["id"] for each in answer["sessions"]] == ["a1"]
    _, answer = await ask(household, "kick", user="Postmaster")
    assert answer["done"] == {"user": "ann", "sessions": 1, "proxies": 0}
    assert (await one.hear("close"))[1] == ["a1"]
    await ask(household, "hold", user="Postmaster")
    one.release("a1")
    assert await one.admit("a2", "ann") == Outcome.UNAVAILABLE


@pytest.mark.usefixtures("directory")
async def test_who_is_there_is_known_without_a_source(household: Household) -> None:
    """An outage is no reason not to end his sessions."""
    await household.begin()
    await household.workers[0].admit("a1", "out")
    _, answer = await ask(household, "kick", user="Out")
    assert (answer["done"], answer["warning"]) == ({"user": "out", "sessions": 1, "proxies": 0}, "")


async def test_a_trace_outlives_a_hand_over(household: Household) -> None:
    reign = await household.begin()
    _, answer = await ask(household, "trace", user="ann", seconds=60.0)
    trace = answer["done"]["trace"]
    reign = await household.hand_over(reign)
    assert [each[:2] for each in reign.steward.links.onlookers.traces.memory()] == [[trace, "ann"]]
    for worker in household.workers:
        worker.inbox.clear()
    assert (await ask(household, "untrace", trace=trace))[0] == 200
    for worker in household.workers:
        assert (await worker.hear("untrace"))[1] == trace
    assert (await ask(household, "untrace", trace=trace))[0] == 404


async def test_the_last_failures_of_all_workers(household: Household, nursery: trio.Nursery) -> None:
    await household.begin()
    (row,) = SENSE["failures"]
    for worker, first in zip(household.workers, (0, 1), strict=True):
        failures = [{**row, "time": float(time)} for time in range(first, 80, 2)]
        nursery.start_soon(answer_all, worker, {"failures": failures})
    _, told = await ask(household, "explain", name="ann")
    assert [failure["time"] for failure in told["failures"]] == [*range(79, 29, -1)]
