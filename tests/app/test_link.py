"""A worker's end of the link: what it asks and tells a steward, and what it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from proxy.app import link as link_module
from proxy.ledger.session import Session
from proxy.model import Identity
from proxy.observe import metrics
from proxy.outcome import Outcome, Refused
from proxy.routing.cluster import Cluster
from proxy.settings.models import Routing
from tests.app.link_stage import ABOUT, CLIENT, Message, Stage, backends


@pytest.fixture
async def stage(nursery: trio.Nursery, autojump_clock: MockClock) -> AsyncIterator[Stage]:
    stage = Stage(nursery)
    yield stage
    nursery.cancel_scope.cancel()
    stage.ours.close()
    stage.steward.close()


async def test_a_login_is_one_question(stage: Stage, autojump_clock: MockClock) -> None:
    session = Session(CLIENT, "[::]:993")
    identity = Identity("ann", "ldap", backend="d9", attributes={"pool": "gold", "other": "x"})
    end = stage.ask(session, identity)
    _, number, *rest = await stage.hear("admit")
    assert rest == [session.id, "ann", "d9", "gold", "ldap", True, "192.0.2.7", 4711, "[::]:993"]
    assert end() is None
    stage.steward.post(["admitted", number, "d2", "e7", "override", 3, "of a later version"])
    await stage.settle()
    assert (end(), session.backend, session.epoch) == ("d2", "d2", "e7")
    stage.link.confirm(session)
    stage.link.release(session, opened=True)
    assert await stage.hear("confirm") == ["confirm", [session.id]]
    assert await stage.hear("release") == ["release", [[session.id, True]]]


async def test_a_refusal(stage: Stage, autojump_clock: MockClock) -> None:
    session = Session(CLIENT, "[::]:993")
    end = stage.ask(session, Identity("ann", "file"))
    _, number, *_ = await stage.hear("admit")
    stage.steward.post(["refused", number, "limit", "too many", "connections_per_user"])
    await stage.settle()
    refusal = end()
    assert (refusal.outcome, refusal.detail, refusal.limit) == (Outcome.LIMIT, "too many", "connections_per_user")
    assert session.backend == stage.cluster.place(Identity("ann", "file")).home, "for the log"
    stage.link.release(session, opened=False)
    await stage.silence()


@pytest.mark.parametrize(
    ("outcome", "taken_for"), [("unavailable", Outcome.UNAVAILABLE), ("word of a later version", Outcome.UNAVAILABLE)]
)
async def test_a_refusal_of_somebody_who_has_no_home(
    stage: Stage, autojump_clock: MockClock, outcome: str, taken_for: Outcome
) -> None:
    """That his home is not known here either hides nothing."""
    end = stage.ask(session := Session(CLIENT, "l"), Identity("ann", "file", backend="d9"))
    _, number, *_ = await stage.hear("admit")
    stage.steward.post(["refused", number, outcome, "as the steward says", ""])
    await stage.settle()
    assert (end().outcome, end().detail, session.backend) == (taken_for, "as the steward says", "")
    assert session.epoch == stage.cluster.epoch


@pytest.mark.parametrize("rest", [[], ["d1"], ["d1", "e1", "hash", "3"], [1, "e1", "hash", 3], [None] * 4])
async def test_an_answer_that_makes_no_sense(stage: Stage, autojump_clock: MockClock, rest: list[Any]) -> None:
    end = stage.ask(Session(CLIENT, "l"), Identity("ann", "file"))
    _, number, *_ = await stage.hear("admit")
    stage.steward.post(["admitted", number, *rest])
    assert await stage.hear("give_up") == ["give_up", number]
    assert end().outcome is Outcome.UNAVAILABLE
    assert await stage.greet() == []


async def test_who_gives_up_is_forgotten(stage: Stage, autojump_clock: MockClock) -> None:
    session = Session(CLIENT, "[::]:993")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.link.admit, session, Identity("ann", "file"))
        _, number, *_ = await stage.hear("admit")
        nursery.cancel_scope.cancel()
    assert await stage.hear("give_up") == ["give_up", number]
    assert session.backend == stage.cluster.place(Identity("ann", "file")).home, "for the log"
    stage.steward.post(["admitted", number, "d1", "e1", "hash", 3])
    assert await stage.hear("give_up") == ["give_up", number], "nobody has taken the place"


@pytest.mark.parametrize("answer_first", [True, False])
async def test_an_answer_to_somebody_who_gives_up_at_that_moment(
    stage: Stage, autojump_clock: MockClock, answer_first: bool
) -> None:
    session = Session(CLIENT, "[::]:993")
    admitted = []

    async def log_in() -> None:
        admitted.append(await stage.link.admit(session, Identity("ann", "file")))
        stage.link.release(session, opened=False)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(log_in)
        _, number, *_ = await stage.hear("admit")
        if not answer_first:
            nursery.cancel_scope.cancel()
        stage.link._answer(["admitted", number, "d1", "e1", "hash", 3])
        nursery.cancel_scope.cancel()
    assert admitted == (["d1"] if answer_first else [])
    assert await stage.hear("release") == ["release", [[session.id, False]]]
    assert await stage.greet() == []


async def test_only_the_backend_can_tell_and_there_is_no_room(stage: Stage, autojump_clock: MockClock) -> None:
    session = await stage.log_in("ann", "d1", room=0, verified=False)
    with pytest.raises(Refused) as refused:
        stage.link.confirm(session)
    assert (refused.value.outcome, refused.value.limit) == (Outcome.LIMIT, "connections_per_user")
    stage.link.release(session, opened=False)
    assert await stage.hear("release") == ["release", [[session.id, False]]]
    stage.link.confirm(await stage.log_in("ann", "d1", room=1, verified=False))
    stage.link.confirm(await stage.log_in("bob", "d1", room=0))


async def test_a_new_steward_is_told_everything(stage: Stage, autojump_clock: MockClock) -> None:
    ann = await stage.log_in("ann", "d1")
    bob = await stage.log_in("bob", "d2", verified=False)
    stage.link.confirm(ann)
    waiting = Session(CLIENT, "[::]:143")
    stage.ask(waiting, Identity("cid", "file"))
    _, number, *_ = await stage.hear("admit")
    stage.steward.post(["hello", "n1"])
    assert await stage.hear("report") == ["report", "n1", 0, None, ABOUT]
    _, nonce, lodgers = await stage.hear("lodgers")
    assert nonce == "n1"
    assert [lodger[:7] for lodger in lodgers] == [
        [ann.id, "ann", str(CLIENT), "[::]:993", "d1", "hash", 2],
        [bob.id, "bob", str(CLIENT), "[::]:993", "d2", "hash", 0],
    ]
    assert all(lodger[7] >= 0 for lodger in lodgers)
    assert await stage.hear("reported") == ["reported", "n1"]
    assert (await stage.hear("admit"))[1:3] == [number, waiting.id], "asked again"


async def test_an_answer_and_a_new_steward_at_once(stage: Stage, autojump_clock: MockClock) -> None:
    """No report leaves out a session that was let in, though its login has had no turn yet."""
    session = Session(CLIENT, "l")
    stage.ask(session, Identity("ann", "file"))
    _, number, *_ = await stage.hear("admit")
    stage.steward.post(["admitted", number, "d1", "e1", "hash", 3])
    (lodger,) = await stage.greet()
    assert lodger[:2] == [session.id, "ann"]


async def test_an_end_before_a_new_steward(stage: Stage, autojump_clock: MockClock) -> None:
    ann = await stage.log_in("ann", "d1")
    bob = await stage.log_in("bob", "d1")
    stage.link.release(ann, opened=True)
    assert [lodger[0] for lodger in await stage.greet()] == [bob.id]


async def test_many_sessions_in_many_messages(stage: Stage, autojump_clock: MockClock) -> None:
    name = "n" * 500
    for _ in range(450):
        session = Session(CLIENT, "l")
        session.name = name
        stage.link._take_in(session, Identity(name, "file"), "d1", "e", "hash", 1)
    stage.steward.post(["hello", 2])
    counts = [len((await stage.hear("lodgers"))[2]) for _ in range(3)]
    assert counts == [200, 200, 50]
    assert await stage.hear("reported") == ["reported", 2]


async def test_the_next_steward_learns_what_the_last_one_knew(stage: Stage, autojump_clock: MockClock) -> None:
    seen: list[int] = []
    stage.link.on_view = lambda: seen.append(1)
    other = Cluster(backends(), Routing(), 0.0)
    other.set_state("d2", "drain", 1.0)
    stage.steward.post(["view", 17, other.memory(2.0, {})])
    stage.steward.post(["hello", 3])
    _, nonce, version, memory, _ = await stage.hear("report")
    assert (nonce, version, seen) == (3, 17, [1])
    third = Cluster(backends(), Routing(), 0.0)
    third.recall(memory, 5.0)
    assert stage.cluster.epoch == other.epoch == third.epoch != Cluster(backends(), Routing(), 0.0).epoch


async def test_sessions_that_have_to_end(stage: Stage, autojump_clock: MockClock) -> None:
    ann, bob = await stage.log_in("ann", "d1"), await stage.log_in("bob", "d1")
    gone = await stage.log_in("cid", "d1")
    stage.link.release(gone, opened=False)
    # What was said of one that is gone must not meet the next try of its connection.
    stage.steward.post(["close", [ann.id, gone.id, bob.id, "unknown"], "moved", 2.5])
    stage.steward.post(["close", [gone.id], "moved", 2.5])
    stage.steward.post(["close", [ann.id], "word of a later version", 1])
    await stage.settle()
    assert stage.closings.closed == [
        ([ann.id, bob.id], Outcome.MOVED, 2.5),
        ([ann.id], Outcome.UNAVAILABLE, 1),
    ]


async def test_let_in_and_told_to_end_at_once(stage: Stage, autojump_clock: MockClock) -> None:
    session = Session(CLIENT, "l")
    stage.ask(session, Identity("ann", "file"))
    _, number, *_ = await stage.hear("admit")
    stage.steward.post(["admitted", number, "d1", "e1", "hash", 3])
    stage.steward.post(["close", [session.id], "drained", 0.0])
    await stage.settle()
    assert stage.closings.closed == [([session.id], Outcome.DRAINED, 0.0)]


async def test_news_of_other_workers(stage: Stage, autojump_clock: MockClock) -> None:
    heard: list[Any] = []
    stage.link.on_wrong = stage.link.on_known = stage.link.on_used = heard.append
    stage.steward.post(["wrong", ["a"], ["b"]])
    stage.steward.post(["known", "p"])
    stage.steward.post(["used", {"ann": [1]}])
    stage.steward.post(["of a later version", 1])
    stage.steward.post(["close"])
    stage.steward.post(["view", "nonsense"])
    stage.steward.post(["known", "q"])
    await stage.settle()
    assert heard == [[["a"], ["b"]], ["p"], {"ann": [1]}, ["q"]]


async def test_who_was_not_admitted_is_no_mistake(stage: Stage, autojump_clock: MockClock) -> None:
    session = Session(CLIENT, "l")
    stage.link.confirm(session)
    stage.link.release(session, opened=True)
    await stage.silence()


async def test_a_backend_at_fault(stage: Stage, autojump_clock: MockClock) -> None:
    session = await stage.log_in("ann", "d1")
    stage.link.release(session, opened=False)
    stage.link.failed(session, "greeting: no answer", reached=True)
    assert await stage.hear("release") == ["release", [[session.id, False]]]
    assert await stage.hear("failed") == ["failed", "d1", "ann", "greeting: no answer", True]


async def test_there_is_a_limit_to_sessions(
    stage: Stage, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_MOST_LODGERS", 2)
    first = await stage.log_in("ann", "d1")
    waiting = stage.ask(Session(CLIENT, "l"), Identity("bob", "file"))
    await stage.hear("admit")
    one_more = stage.ask(Session(CLIENT, "l"), Identity("cid", "file"))
    await stage.settle()
    assert one_more().outcome is Outcome.UNAVAILABLE
    assert waiting() is None
    stage.link.release(first, opened=True)
    await stage.log_in("cid", "d1")


async def test_there_is_a_limit_to_what_waits(
    stage: Stage, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_MOST_TOLD", 20)
    for number in range(40):
        stage.link.tell(["metrics", number, "x" * 50_000])
        stage.link.tell_lazily(["metrics", number, "x" * 50_000])
    assert stage.ours.waiting == 20
    text, _ = metrics.exposition()
    (line,) = [line for line in text.decode().splitlines() if line.startswith("porter_link_messages_untold_total ")]
    assert float(line.split()[1]) >= 60
    numbers = [(await stage.hear("metrics"))[1] for _ in range(20)]
    assert numbers == [number for number in range(10) for _ in range(2)], "what was first is kept"


async def test_a_bug_in_who_hears_news_ends_nothing(stage: Stage, autojump_clock: MockClock) -> None:
    def raises(news: list[Any]) -> None:
        raise ZeroDivisionError

    stage.link.on_wrong = raises
    with capture_logs() as logged:
        stage.steward.post(["wrong", ["a"]])
        await stage.settle()
    assert [(each["event"], each["kind"]) for each in logged] == [("link.message_failed", "wrong")]
    await stage.log_in("ann", "d1")


# --- what administrators said, and those who look on ---


def directed(name: str, backend: str | None, number: int = 1) -> list[Any]:
    """As Directions.memory() has it; None: he is held."""
    return [name, backend, None, "a copy", "ops", 10.0, number]


async def test_directions_are_kept_as_the_steward_says(stage: Stage, autojump_clock: MockClock) -> None:
    said = stage.cluster.directions
    stage.steward.post(["directions", [directed("ann", "d2", 7), directed("bob", None)], "of a later version"])
    await stage.settle()
    assert stage.cluster.place(Identity("ann", "file")).home == "d2"
    assert stage.cluster.place(Identity("bob", "file")).problem == "held by ops: a copy"
    stage.steward.post(["directions", [directed("ann", "d3", 1)]])
    await stage.settle()
    assert stage.cluster.place(Identity("ann", "file")).home == "d3", "he is believed, whatever was known"
    stage.steward.post(["undirected", ["ann", "nobody"]])
    await stage.settle()
    assert [*said] == ["bob"]
    stage.steward.post(["undirected", None])
    await stage.settle()
    assert len(said) == 0


async def test_the_next_steward_is_told_the_directions(stage: Stage, autojump_clock: MockClock) -> None:
    rows = [directed(f"u{number}", "d2") for number in range(450)]
    stage.steward.post(["directions", rows[:250]])
    stage.steward.post(["directions", rows[250:]])
    stage.steward.post(["hello", 5])
    told = [await stage.hear("directions") for _ in range(3)]
    assert [message[1] for message in told] == [5] * 3
    assert [row for message in told for row in message[2]] == rows
    assert await stage.hear("reported") == ["reported", 5]


JUNK: list[Message] = [
    ["directions"],
    ["directions", None],
    ["directions", {"ann": "d1"}],
    ["directions", [["ann"], None, 5, ["ann", "d1", None, "", "", "then", 1]]],
    ["undirected"],
    ["undirected", "ann"],
    ["undirected", 5],
    ["watch"],
    ["watch", "session"],
    ["log_level"],
    ["log_level", 5],
    ["ask"],
    ["ask", 1],
    ["ask", "1", "top", []],
    ["ask", 1, "top"],
    ["ask", 1, 5, []],
    ["ask", 1, "top", "ann"],
    ["message of a later version", 1, 2, 3],
]


@pytest.mark.parametrize("message", JUNK, ids=str)
async def test_messages_that_make_no_sense(stage: Stage, autojump_clock: MockClock, message: Message) -> None:
    told: list[Any] = []
    stage.link.on_ask = lambda what, arguments: told.append((what, arguments))
    stage.link.on_watch = stage.link.on_log_level = told.append
    with capture_logs() as logged:
        stage.steward.post(message)
        await stage.settle()
    await stage.silence()
    assert (told, logged, len(stage.cluster.directions)) == ([], [], 0)
    assert await stage.log_in("ann", "d1"), "and all goes on"


async def test_questions_are_answered(stage: Stage, autojump_clock: MockClock) -> None:
    stage.steward.post(["ask", 1, "top", [20]])
    assert await stage.hear("told") == ["told", 1, None], "nobody knows"
    stage.link.on_ask = lambda what, arguments: {"asked": [what, *arguments]}
    stage.steward.post(["ask", 2, "session", ["s1"], "of a later version"])
    assert await stage.hear("told") == ["told", 2, {"asked": ["session", "s1"]}]


async def test_a_question_that_meets_a_bug(stage: Stage, autojump_clock: MockClock) -> None:
    """The worker goes on; whoever has asked gets no answer."""

    def fail(what: str, arguments: list[Any]) -> None:
        raise ZeroDivisionError

    stage.link.on_ask = fail
    with capture_logs() as logged:
        stage.steward.post(["ask", 1, "top", []])
        await stage.settle()
    assert [(each["event"], each["kind"]) for each in logged] == [("link.message_failed", "ask")]
    assert await stage.log_in("ann", "d1")


async def test_what_the_steward_wants_told_and_logged(stage: Stage, autojump_clock: MockClock) -> None:
    told: list[Any] = []
    stage.link.on_watch = stage.link.on_log_level = told.append
    stage.steward.post(["watch", ["limit", "session"], "of a later version"])
    stage.steward.post(["log_level", "debug", "of a later version"])
    stage.steward.post(["watch", []])
    await stage.settle()
    assert told == [["limit", "session"], "debug", []]
