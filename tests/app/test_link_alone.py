"""What a worker does while the steward is silent, and when he is heard of again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from proxy.app.link import PATIENCE_SECONDS
from proxy.ledger.session import Session
from proxy.model import Identity
from proxy.observe import metrics
from proxy.outcome import Outcome, Refused
from proxy.transport.packets import send_packet
from tests.app.link_stage import CLIENT, Stage


@pytest.fixture
async def stage(nursery: trio.Nursery, autojump_clock: MockClock) -> AsyncIterator[Stage]:
    stage = Stage(nursery)
    yield stage
    nursery.cancel_scope.cancel()
    stage.ours.close()
    stage.steward.close()


def placed_alone() -> float:
    text, _ = metrics.exposition()
    (line,) = [line for line in text.decode().splitlines() if line.startswith("porter_placements_alone_total ")]
    return float(line.split()[1])


def home_of(stage: Stage, name: str) -> str:
    return stage.cluster.place(Identity(name, "file")).home


async def silence(stage: Stage) -> None:
    """A login waits, nothing is heard, and the worker goes its own way."""
    end = stage.ask(Session(CLIENT, "l"), Identity("first", "file"))
    await trio.sleep(PATIENCE_SECONDS + 0.1)
    assert end() == home_of(stage, "first")


async def test_mail_does_not_wait_for_a_frozen_steward(stage: Stage, autojump_clock: MockClock) -> None:
    assert await stage.greet() == []
    there = await stage.log_in("ann", "d3")
    stage.cluster.set_state("d2", "down", 1.0)
    names = {home_of(stage, name): name for name in map(str, range(50))}
    sessions = {name: Session(CLIENT, "l") for name in ("ann", names["d1"], names["d2"])}
    before = placed_alone()
    with capture_logs() as logged:
        began = trio.current_time()
        ends = {name: stage.ask(session, Identity(name, "file")) for name, session in sessions.items()}
        await trio.sleep(PATIENCE_SECONDS - 0.1)
        assert not any(end() for end in ends.values())
        await trio.sleep(0.2)
        assert ends["ann"]() == "d3", "where he is already, whatever the hash says"
        assert ends[names["d1"]]() == "d1"
        assert ends[names["d2"]]().outcome is Outcome.UNAVAILABLE
        assert sessions[names["d2"]].backend == "d2", "for the log"
        at_once = stage.ask(Session(CLIENT, "l"), Identity(names["d1"], "file"))
        await stage.settle()
        assert at_once() == "d1", "nobody waits a second time"
        assert trio.current_time() - began < PATIENCE_SECONDS + 1
        assert [each["event"] for each in logged] == ["link.steward_silent"]
        assert placed_alone() - before == 3
        # He wakes up, and answers what he was asked.
        numbers = [(await stage.hear("admit"))[1] for _ in range(3)]
        assert [(await stage.hear("give_up"))[1] for _ in range(3)] == numbers
        stage.steward.post(["admitted", numbers[0], "d1", "e1", "hash", 3])
        lodgers = await stage.hear_report()
        assert sorted(lodger[4] for lodger in lodgers) == ["d1", "d1", "d3", "d3"]
        assert [each["event"] for each in logged] == ["link.steward_silent", "link.steward_back"]
    assert await stage.log_in("dan", "d1")
    stage.link.release(there, opened=True)


async def test_sessions_at_a_backend_that_is_down(stage: Stage, autojump_clock: MockClock) -> None:
    """Whoever has sessions goes nowhere else."""
    await stage.log_in("ann", "d3")
    stage.cluster.set_state("d3", "down", 1.0)
    await silence(stage)
    with pytest.raises(Refused) as refused:
        await stage.link.admit(Session(CLIENT, "l"), Identity("ann", "file"))
    assert (refused.value.outcome, refused.value.detail[:3]) == (Outcome.UNAVAILABLE, "d3:")


async def test_once_his_sessions_are_gone_he_goes_home(stage: Stage, autojump_clock: MockClock) -> None:
    elsewhere = next(name for name in ("d1", "d2", "d3") if name != home_of(stage, "ann"))
    sessions = [await stage.log_in("ann", elsewhere) for _ in range(2)]
    await silence(stage)
    known = len(stage.link._by_name)
    for session in sessions:
        again = Session(CLIENT, "l")
        assert await stage.link.admit(again, Identity("ann", "file")) == elsewhere
        stage.link.release(again, opened=True)
        stage.link.release(session, opened=True)
    assert len(stage.link._by_name) == known - 1
    assert await stage.link.admit(Session(CLIENT, "l"), Identity("ann", "file")) == home_of(stage, "ann")


async def test_somebody_whose_backend_there_is_not(stage: Stage, autojump_clock: MockClock) -> None:
    await silence(stage)
    session = Session(CLIENT, "l")
    with pytest.raises(Refused) as refused:
        await stage.link.admit(session, Identity("ann", "file", backend="d9"))
    assert refused.value.outcome is Outcome.UNAVAILABLE
    assert session.epoch == stage.cluster.epoch


async def test_who_was_placed_alone_and_verified_by_the_backend(stage: Stage, autojump_clock: MockClock) -> None:
    await silence(stage)
    session = Session(CLIENT, "l")
    await stage.link.admit(session, Identity("ann", "backend", verified=False))
    stage.link.confirm(session)
    lodgers = {lodger[0]: lodger for lodger in await stage.greet()}
    assert lodgers[session.id][6] == 2


async def test_a_new_steward_after_a_silence(stage: Stage, autojump_clock: MockClock) -> None:
    """He is told once; who is asked for later is asked of him."""
    await stage.greet("old")
    await silence(stage)
    assert [lodger[1] for lodger in await stage.greet("new")] == ["first"]
    await stage.log_in("ann", "d1")
    await stage.settle()
    assert stage.ours.waiting == 0


async def test_he_is_back_before_those_who_waited_have_their_turn(stage: Stage, autojump_clock: MockClock) -> None:
    """They ask him after all, and no second silence begins."""
    before = placed_alone()
    end = stage.ask(Session(CLIENT, "l"), Identity("ann", "file"))
    first = (await stage.hear("admit"))[1]
    with capture_logs() as logged:
        stage.link._be_alone()
        stage.link._hear([["hello", "n"]])
        _, second, *_ = await stage.hear("admit")
        stage.steward.post(["admitted", second, "d1", "e1", "hash", 3])
        await stage.settle()
    assert end() == "d1"
    assert first != second
    assert placed_alone() == before
    assert [each["event"] for each in logged] == ["link.steward_silent", "link.steward_back"]


async def test_an_answer_that_lies_there_unread_is_no_silence(stage: Stage, autojump_clock: MockClock) -> None:
    """It was this process that stood still."""
    with capture_logs() as logged:
        for _ in range(20):
            end = stage.ask(Session(CLIENT, "l"), Identity("ann", "file"))
            _, number, *_ = await stage.hear("admit")
            assert send_packet(stage.raw, [["admitted", number, "d2", "e1", "hash", 3]])
            autojump_clock.jump(PATIENCE_SECONDS * 2)
            await stage.settle()
            assert end() == "d2"
    assert logged == []


async def test_who_is_heard_of_is_not_silent(stage: Stage, autojump_clock: MockClock) -> None:
    end = stage.ask(Session(CLIENT, "l"), Identity("ann", "file"))
    for _ in range(3):
        await trio.sleep(PATIENCE_SECONDS - 0.1)
        stage.steward.post(["used", {}])
        await stage.settle()
    assert end() is None
    await trio.sleep(PATIENCE_SECONDS + 0.1)
    assert end() == home_of(stage, "ann")


async def test_nothing_asked_is_no_silence(stage: Stage, autojump_clock: MockClock) -> None:
    await stage.log_in("ann", "d1")
    with capture_logs() as logged:
        await trio.sleep(PATIENCE_SECONDS * 10)
    assert logged == []


async def test_who_waits_for_the_end_of_a_move_waits(stage: Stage, autojump_clock: MockClock) -> None:
    """Sessions of his may be living elsewhere, and only the steward knows when they have ended."""
    session = Session(CLIENT, "l")
    end = stage.ask(session, Identity("ann", "file"))
    _, number, *_ = await stage.hear("admit")
    stage.steward.post(["waiting", number])
    await trio.sleep(PATIENCE_SECONDS * 5)
    with capture_logs() as logged:
        await silence(stage)
        assert [each["event"] for each in logged] == ["link.steward_silent"]
    assert end() is None
    # The same steward has not forgotten whom he lets wait; the next one has to be asked.
    stage.steward.post(["used", {}])
    await stage.hear("give_up")
    await stage.silence()
    await stage.greet("new")
    assert (await stage.hear("admit"))[1:3] == [number, session.id]
    assert end() is None
    await trio.sleep(PATIENCE_SECONDS + 0.1)
    assert end() == home_of(stage, "ann"), "he has not said that there is anything to wait for"


async def test_a_master_that_is_gone_takes_the_steward_along(stage: Stage, autojump_clock: MockClock) -> None:
    """Whoever asks is placed at once, and so is whoever was told to wait."""
    waiting = stage.ask(Session(CLIENT, "l"), Identity("bob", "file"))
    stage.steward.post(["waiting", (await stage.hear("admit"))[1]])
    asking = stage.ask(Session(CLIENT, "l"), Identity("ann", "file"))
    await stage.settle()
    with capture_logs() as logged:
        stage.steward.close()
        await stage.settle()
        later = stage.ask(Session(CLIENT, "l"), Identity("cid", "file"))
        await stage.settle()
    assert (waiting(), asking(), later()) == tuple(home_of(stage, name) for name in ("bob", "ann", "cid"))
    assert [each["event"] for each in logged] == ["link.steward_silent"]


# --- what administrators said ---


def directed(name: str, backend: str | None) -> list[Any]:
    """As Directions.memory() has it; None: he is held."""
    return [name, backend, None, "a copy", "ops", 10.0, 1]


async def refusal_of(stage: Stage, name: str) -> str:
    end = stage.ask(Session(CLIENT, "l"), Identity(name, "file"))
    await stage.settle()
    refusal = end()
    assert isinstance(refusal, Refused), refusal
    assert refusal.outcome is Outcome.UNAVAILABLE
    return refusal.detail


async def placed(stage: Stage, name: str, backend: str | None = None) -> Any:
    end = stage.ask(Session(CLIENT, "l"), Identity(name, "file", backend))
    await stage.settle()
    return end()


async def test_a_worker_alone_does_as_administrators_said(stage: Stage, autojump_clock: MockClock) -> None:
    home = home_of(stage, "ann")
    away = next(name for name in ("d1", "d2", "d3") if name != home)
    stage.steward.post(["directions", [directed("ann", away), directed("bob", None), directed("cid", "d9")]])
    await silence(stage)
    assert await placed(stage, "ann") == await placed(stage, "ann", home) == away
    assert await refusal_of(stage, "bob") == "held by ops: a copy"
    assert await refusal_of(stage, "cid") == 'unknown backend "d9" given by ops'


async def test_a_worker_alone_does_not_divide_a_user_who_moves(stage: Stage, autojump_clock: MockClock) -> None:
    there = await stage.log_in("ann", "d1")
    stage.steward.post(["directions", [directed("ann", "d2")]])
    await silence(stage)
    assert await placed(stage, "ann") == "d1", "where he has a session that has not ended yet"
    stage.link.release(there, opened=True)
    assert await placed(stage, "ann") == "d1"


async def test_who_is_held_gets_in_nowhere_though_he_has_sessions(stage: Stage, autojump_clock: MockClock) -> None:
    await stage.log_in("ann", "d1")
    stage.steward.post(["directions", [directed("ann", None)]])
    await silence(stage)
    assert await refusal_of(stage, "ann") == "held by ops: a copy"
