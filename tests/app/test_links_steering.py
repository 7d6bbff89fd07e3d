"""Directions, kicks, questions and events over the links of a steward: from him to all workers, and back again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing

from proxy.admin.events import Kind, Reader
from proxy.app.links import HOLD_SECONDS, KICK_SECONDS, Links
from proxy.auth.throttle import Throttle
from proxy.outcome import Outcome
from proxy.transport.packets import Packets
from tests.app.fake_workers import FakeWorker, lodger, settings_of

Begin = Callable[..., Awaitable[Links]]


async def informed() -> None:
    """DNS is not asked."""


@pytest.fixture
async def begin(nursery: trio.Nursery) -> AsyncIterator[Begin]:
    """Starts a steward's links; the one before ends at that moment, as if killed."""
    lives: list[trio.CancelScope] = []
    ends: list[Packets] = []
    seen: dict[str, FakeWorker] = {}

    async def start(*workers: FakeWorker) -> Links:
        for life in lives:
            life.cancel()
        await trio.testing.wait_all_tasks_blocked()
        settings = settings_of()
        links = Links(settings, Throttle(settings.limits, key=bytes(32)))
        for worker in workers:
            ends.append(Packets(worker.near_end()))
            links.add(worker.name, ends[-1])
            worker.inbox.clear()
            seen[worker.name] = worker
        life = trio.CancelScope()
        lives.append(life)

        async def live() -> None:
            with life:
                async with trio.open_nursery() as tasks:
                    tasks.start_soon(links.registry.ledger.run)
                    await links.run(informed)

        nursery.start_soon(live)
        return links

    yield start
    for life in lives:
        life.cancel()
    await trio.testing.wait_all_tasks_blocked()
    for end in ends:
        end.close()
    for worker in seen.values():
        worker.close()


def directed(name: str, backend: str | None, number: int = 1) -> list[Any]:
    """As Directions.memory() has it; None: he is held."""
    return [name, backend, None, "a copy", "ops", 10.0, number]


async def report(worker: FakeWorker, *directions: Any, nonce: object = None) -> object:
    """Answer a hello, with what the steward before has said."""
    nonce = nonce or (await worker.hear("hello"))[1]
    about = {"index": 0, "generation": 1, "pid": 1, "accepting": True}
    worker.tell(["report", nonce, *worker.view, about])
    if worker.lodgers:
        worker.tell(["lodgers", nonce, worker.lodgers])
    if directions:
        worker.tell(["directions", nonce, [*directions]])
    worker.tell(["reported", nonce])
    await trio.testing.wait_all_tasks_blocked()
    return nonce


async def heard(worker: FakeWorker) -> list[Any]:
    """What has been said of users."""
    await worker.take_in()
    told = [message for message in worker.inbox if message[0] in ("directions", "undirected")]
    worker.inbox.clear()
    return told


def move(links: Links, name: str, backend: str) -> int:
    return links.registry.move(name, backend, until=None, reason="a disk", by="ops")


def hold(links: Links, name: str) -> int:
    return links.registry.hold(name, until=None, reason="a copy", by="ops")


def names(links: Links) -> list[str]:
    return sorted(links.registry.directions)


# --- directions ---


async def test_all_workers_are_told_and_obeyed_to(begin: Begin) -> None:
    one, other = FakeWorker("w1.0"), FakeWorker("w1.1")
    links = await begin(one, other)
    for worker in (one, other):
        await report(worker)
    for worker in (one, other):
        assert await heard(worker) == [["undirected", None]]
    move(links, "ann", "d2")
    for worker in (one, other):
        undirected, directions = await heard(worker)
        assert (undirected, directions[1][0][:2]) == (["undirected", ["ann"]], ["ann", "d2"])
        assert await worker.admit(f"a-{worker.name}", "ann", backend="d1") == "d2"
    assert hold(links, "ann") == 2
    refusal = await other.answer(other.ask("a3", "ann"))
    assert refusal[0:1] + refusal[2:4] == ["refused", Outcome.UNAVAILABLE, "held by ops: a copy"]
    assert (await one.hear("close"))[1:3] == [["a-w1.0"], Outcome.MOVED]
    links.registry.release_user("ann")
    assert (await heard(one))[-1] == ["undirected", ["ann"]]


async def test_a_new_worker_is_told(begin: Begin) -> None:
    one, late = FakeWorker("w1.0"), FakeWorker("w1.1")
    links = await begin(one)
    await report(one)
    move(links, "ann", "d2")
    links.add(late.name, end := Packets(late.near_end()))
    await report(late)
    told = await heard(late)
    end.close()
    late.close()
    assert told == [["undirected", None], ["directions", links.registry.directions.memory()]]


async def test_a_steward_who_was_killed_is_followed_by_one_who_knows(begin: Begin) -> None:
    one, other = FakeWorker("w1.0"), FakeWorker("w1.1")
    one.lodgers = [lodger("s1", "ann", "d1")]
    links = await begin(one, other)
    await report(one, directed("ann", "d2", 7), directed("bob", None, 3))
    await report(other, directed("bob", None, 3), directed("ann", "d1", 2))
    assert links.is_open
    assert names(links) == ["ann", "bob"]
    assert links.registry.directions.document("ann")["backend"] == "d2"  # type: ignore[index]
    for worker in (one, other):
        assert await heard(worker) == [["undirected", None], ["directions", links.registry.directions.memory()]]
    assert await other.admit("b1", "bob") == Outcome.UNAVAILABLE
    move(links, "ann", "d1")
    (row,) = [row for row in links.registry.directions.memory() if row[0] == "ann"]
    assert row[6] > 7, "what is said now is later than all that was said before"

    links = await begin(one, other)
    await report(one)
    await report(other)
    assert names(links) == [], "and knows nothing that nobody has told"


async def test_who_reports_late_is_believed_and_the_others_hear_of_it(begin: Begin) -> None:
    one, late = FakeWorker("w1.0"), FakeWorker("w1.1")
    links = await begin(one, late)
    await report(one)
    await trio.sleep(HOLD_SECONDS + 0.2)
    assert links.is_open
    await one.overhear()
    await report(late, directed("ann", "d2"))
    assert names(links) == ["ann"]
    assert ["directions", links.registry.directions.memory()] in await heard(one)


async def test_what_was_taken_back_does_not_return(begin: Begin) -> None:
    """A worker reports once more, since the steward was silent, and has not heard yet what he said last."""
    worker = FakeWorker("w1.0")
    links = await begin(worker)
    nonce = await report(worker)
    move(links, "ann", "d2")
    told = links.registry.directions.memory()
    links.registry.release_user("ann")
    await report(worker, *told, nonce=nonce)
    assert names(links) == []
    assert (await heard(worker))[-1] == ["undirected", None]


@pytest.mark.parametrize("told", [None, 5, "ann", {}, [None], [["ann"]], [["ann", "d2", None, "", "", "then", 1]]])
async def test_directions_that_make_no_sense(begin: Begin, told: Any) -> None:
    worker = FakeWorker("w1.0")
    links = await begin(worker)
    nonce = (await worker.hear("hello"))[1]
    with structlog.testing.capture_logs() as logged:
        worker.tell(["directions"], ["directions", nonce], ["directions", nonce, told])
        worker.tell(["directions", "another's", [directed("ann", "d2")]])
        await report(worker, nonce=nonce)
    assert names(links) == []
    assert links.is_open
    assert [each["event"] for each in logged if each["log_level"] == "error"] == []


# --- kicks ---


async def test_sessions_are_ended_by_whoever_has_them(begin: Begin) -> None:
    one, other = FakeWorker("w1.0"), FakeWorker("w1.1")
    links = await begin(one, other)
    for worker in (one, other):
        await report(worker)
    for worker, session_id in ((one, "a1"), (one, "a2"), (other, "b1")):
        await worker.admit(session_id, "ann", backend="d1")
        worker.confirm(session_id)
    await trio.testing.wait_all_tasks_blocked()
    links.kick(["a1", "b1", "gone"])
    assert await one.hear("close") == ["close", ["a1"], Outcome.KICKED, KICK_SECONDS]
    assert await other.hear("close") == ["close", ["b1"], Outcome.KICKED, KICK_SECONDS]


# --- questions and events ---


async def test_a_question_to_all(begin: Begin, nursery: trio.Nursery) -> None:
    one, other = FakeWorker("w1.0"), FakeWorker("w1.1")
    links = await begin(one, other)
    for worker in (one, other):
        await report(worker)
    answers: list[dict[str, Any]] = []

    async def ask() -> None:
        answers.append(await links.onlookers.inquiries.ask("limits", "ann", seconds=30.0))

    nursery.start_soon(ask)
    _, number, what, arguments = await one.hear("ask")
    assert (what, arguments) == ("limits", ["ann"])
    one.tell(["told", number, [1]], ["told"], ["told", {}, []])
    other.die()  # of whom nothing more is to be hoped
    with trio.fail_after(10):
        while not answers:
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert answers == [{"w1.0": [1]}]


def queued(reader: Reader) -> list[str]:
    return [event["event"] for event in reader._queue]


async def test_events_of_sessions(begin: Begin) -> None:
    worker = FakeWorker("w1.0")
    links = await begin(worker)
    await report(worker)
    with links.onlookers.hub.subscribe([Kind.SESSION]) as reader:
        assert (await worker.hear("watch"))[1] == []
        assert (await worker.hear("watch"))[1] == ["session"]
        await worker.admit("a1", "ann")
        await worker.admit("a2", "ann")
        worker.confirm("a1", "unknown")
        await trio.testing.wait_all_tasks_blocked()
        assert queued(reader) == ["session.opened"]
        worker.tell(["event", "session", "session.closed", {"id": "a1"}])
        worker.release("a1")
        await worker.admit("a3", "ann")
        worker.confirm("a3")
        await trio.testing.wait_all_tasks_blocked()
        worker.die()
        with trio.fail_after(10):
            while len(links):
                await trio.testing.wait_all_tasks_blocked(0.01)
        assert queued(reader) == ["session.opened", "session.closed", "session.opened", "session.closed"]
        assert (reader._queue[-1]["id"], reader._queue[-1]["outcome"]) == ("a3", "worker_lost")
