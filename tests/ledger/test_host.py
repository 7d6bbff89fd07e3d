"""The ledger: limits, logins that wait for a move, and moves that go on by themselves."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.ledger import accounts
from proxy.ledger.host import Ledger
from proxy.ledger.session import Session
from proxy.model import Endpoint, Placement
from proxy.outcome import Outcome, Refused
from proxy.settings.backend_models import Routing

PATIENCE, DELAY = 15.0, 2.0


def session(name: str) -> Session:
    made = Session(Endpoint("192.0.2.1", 4711), "test")
    made.name = name
    return made


def placed(home: str, joinable: Iterable[str] | None = None, **more: Any) -> Placement:
    """His home, and by default nothing but his home."""
    joinable = frozenset(home if joinable is None else joinable)
    return Placement(home, more.pop("why", "hash"), joinable, joinable, **more)


@dataclass
class Closer:
    """Takes note of what has to be closed; the tests end the sessions."""

    calls: list[tuple[float, tuple[str, ...], Outcome, float]] = field(default_factory=list)
    then: Callable[[Sequence[str]], None] = lambda session_ids: None

    def close(self, session_ids: Sequence[str], outcome: Outcome, *, patience: float) -> None:
        self.calls.append((trio.current_time(), tuple(session_ids), outcome, patience))
        self.then(session_ids)


@dataclass
class Scene:
    """A ledger whose moves go on, and somebody who closes what it says."""

    ledger: Ledger
    closer: Closer
    began: float = field(default_factory=trio.current_time)

    @property
    def elapsed(self) -> float:
        return trio.current_time() - self.began

    async def log_in(self, name: str, placement: Placement, *, verified: bool = True) -> Session:
        newcomer = session(name)
        backend = await self.ledger.admit(newcomer, lambda: placement, verified=verified)
        newcomer.backend = backend
        if verified:
            self.ledger.confirm(newcomer)
        return newcomer

    def release(self, *sessions: Session) -> None:
        for each in sessions:
            self.ledger.release(each, opened=True)


Opening = Callable[..., Scene]


@pytest.fixture
def scene(nursery: trio.Nursery) -> Opening:
    def opening(most_sessions: int = 50, **routing: Any) -> Scene:
        closer = Closer()
        ledger = Ledger(most_sessions, Routing(**routing), closer)
        nursery.start_soon(ledger.run)
        return Scene(ledger, closer)

    return opening


def holds_nothing(ledger: Ledger) -> bool:
    homes, moves = ledger._homes, ledger._homes._moves
    remains = (homes._residents, homes._sessions, homes._by_backend, homes._pins._pins, ledger._waiting)
    return not any((*remains, moves._agenda, moves._queue, moves._turns, moves._drains, moves.in_flight))


def value(metric: Any) -> float:
    return float(metric.value)


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run what must not wait: between the check and the change nobody else may get in."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    pytest.fail("it waited")


# --- without a move: limits ---


async def admitted(ledger: Ledger, newcomer: Session, *, verified: bool = True) -> bool:
    try:
        at_once(ledger.admit(newcomer, lambda: placed("a"), verified=verified))
    except Refused as refusal:
        return refusal.outcome is not Outcome.LIMIT
    return True


async def test_so_many_of_one_user_and_then_room_again() -> None:
    ledger = Ledger(2, Routing(), Closer())
    first, second, third = (session("ann") for _ in range(3))
    assert await admitted(ledger, first)
    assert await admitted(ledger, second)
    with pytest.raises(Refused, match="connections_per_user: 2 sessions of 2"):
        at_once(ledger.admit(third, lambda: placed("a"), verified=True))
    assert await admitted(ledger, session("bob"))
    assert len(ledger) == 3
    ledger.release(first, opened=True)
    ledger.release(first, opened=True)  # given back once
    ledger.release(session("ann"), opened=False)  # never admitted: no mistake
    assert await admitted(ledger, third)
    assert not await admitted(ledger, session("ann"))


async def test_unverified_sessions_count_once_they_are_confirmed() -> None:
    ledger = Ledger(1, Routing(), Closer())
    tries = [session("ann") for _ in range(3)]
    for each in tries:
        assert await admitted(ledger, each, verified=False)
    ledger.confirm(tries[0])
    with pytest.raises(Refused, match="connections_per_user"):
        ledger.confirm(tries[1])
    assert not await admitted(ledger, session("ann"))


# Each number is one session that comes if it is away, and goes if it is there.
@given(
    names=st.lists(st.sampled_from(["ann", "bob", "eve"]), min_size=1, max_size=8),
    steps=st.lists(st.integers(0, 7), max_size=60),
    limit=st.integers(1, 3),
)
def test_any_order_of_coming_and_going_ends_at_nothing(names: list[str], steps: list[int], limit: int) -> None:
    async def play() -> None:
        ledger = Ledger(limit, Routing(sticky=0.0, move_delay=0.0), Closer())
        sessions = [session(name) for name in names]
        inside: list[Session] = []
        for step in steps:
            mover = sessions[step % len(sessions)]
            if any(mover is each for each in inside):
                ledger.release(mover, opened=True)
                inside = [each for each in inside if each is not mover]
            else:
                room = sum(each.name == mover.name for each in inside) < limit
                assert await admitted(ledger, mover) is room
                if room:
                    inside.append(mover)
            assert len(ledger) == len(inside)
        for leaver in sessions:
            ledger.release(leaver, opened=True)
        assert holds_nothing(ledger)

    trio.run(play)


# --- logins that wait ---


async def test_a_login_waits_for_the_sessions_and_the_delay(scene: Opening, autojump_clock: MockClock) -> None:
    stage = scene()
    first, second = await stage.log_in("ann", placed("a")), await stage.log_in("ann", placed("a"))
    asked: list[float] = []

    def place() -> Placement:
        asked.append(stage.elapsed)
        return placed("b") if len(asked) == 1 else placed("c")

    async def end(after: float, leaver: Session) -> None:
        await trio.sleep(after)
        stage.release(leaver)

    newcomer = session("ann")
    moved = value(accounts.MOVES.labels("home_changed"))
    with structlog.testing.capture_logs() as logged:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end, 3.0, first)
            nursery.start_soon(end, 7.0, second)
            assert await stage.ledger.admit(newcomer, place, verified=True) == "c"
    assert asked == pytest.approx([0.0, 9.0])  # placed anew after the wait
    assert stage.elapsed == pytest.approx(9.0)
    assert stage.closer.calls == [(stage.began, (first.id, second.id), Outcome.MOVED, PATIENCE)]
    assert value(accounts.MOVES.labels("home_changed")) == moved + 1
    assert stage.ledger.moves_in_flight == 0
    assert value(accounts.WAITING) == 0
    assert [(line["event"], line["name"], line["backend"], line["reason"]) for line in logged] == [
        ("ledger.moved", "ann", "a", "home_changed")
    ]
    assert stage.ledger.residents_of("c").sessions == 1


async def test_waiting_logins_get_in_in_their_order(scene: Opening, autojump_clock: MockClock) -> None:
    stage = scene(most_sessions=7)
    there = await stage.log_in("ann", placed("a"))
    ends: list[tuple[int, str]] = []

    async def log_in(number: int) -> None:
        await trio.sleep(number / 100)
        try:
            await stage.log_in("ann", placed("b"))
        except Refused as refusal:
            ends.append((number, refusal.limit))
        else:
            ends.append((number, ""))

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(log_in, number)
        await trio.sleep(1)
        assert value(accounts.WAITING) == 10
        stage.release(there)
    assert sorted(ends) == [(number, "connections_per_user" if number >= 7 else "") for number in range(10)]
    assert value(accounts.WAITING) == 0


async def test_the_delay_alone_is_waited_for(scene: Opening, autojump_clock: MockClock) -> None:
    stage = scene()
    stage.release(await stage.log_in("ann", placed("a")))
    await trio.sleep(0.5)
    moved = await stage.log_in("ann", placed("b"))
    assert moved.backend == "b"
    assert stage.elapsed == pytest.approx(DELAY)
    assert stage.closer.calls == []


@pytest.mark.parametrize("delay", [0.0, 2.0])
async def test_sessions_that_end_at_once(delay: float, scene: Opening, autojump_clock: MockClock) -> None:
    """The closer ends them inside of close()."""
    stage = scene(move_delay=delay)
    there = [await stage.log_in("ann", placed("a")) for _ in range(3)]
    stage.closer.then = lambda session_ids: stage.release(*(each for each in there if each.id in session_ids))
    moved = await stage.log_in("ann", placed("b"))
    assert moved.backend == "b"
    assert stage.elapsed == pytest.approx(delay)


async def test_a_wait_has_an_end(scene: Opening, autojump_clock: MockClock) -> None:
    stage = scene()
    there = await stage.log_in("ann", placed("a"))
    with pytest.raises(Refused) as caught:
        await stage.log_in("ann", placed("b"))
    assert caught.value.outcome is Outcome.UNAVAILABLE
    assert caught.value.detail == "the user's move took too long: a, home_changed: sessions are being closed"
    assert stage.elapsed == pytest.approx(PATIENCE + DELAY + 20)
    assert stage.ledger._waiting == {}
    await trio.sleep(PATIENCE)  # told again
    assert [each[1] for each in stage.closer.calls] == [(there.id,), (there.id,)]
    with structlog.testing.capture_logs() as logged:
        await trio.sleep(PATIENCE + 30)
    assert [(line["event"], line["log_level"], line["sessions"]) for line in logged] == [
        ("ledger.move_stuck", "warning", 1)
    ]
    stage.release(there)
    await trio.sleep(DELAY)
    assert (await stage.log_in("ann", placed("b"))).backend == "b"


async def test_only_so_many_wait(scene: Opening, autojump_clock: MockClock) -> None:
    stage = scene()
    there = await stage.log_in("ann", placed("a"))
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(partial(stage.log_in, "ann", placed("b"), verified=False))
        await wait_all_tasks_blocked()
        with pytest.raises(Refused, match="100 logins of this user wait already") as caught:
            at_once(stage.ledger.admit(session("ann"), lambda: placed("b"), verified=True))
        assert caught.value.outcome is Outcome.UNAVAILABLE
        assert (await stage.log_in("bob", placed("b"))).backend == "b"
        stage.release(there)
    assert stage.ledger.residents_of("b").sessions == 101


async def test_placement_that_goes_wrong_while_one_waits_is_his_alone(
    scene: Opening, autojump_clock: MockClock
) -> None:
    stage = scene()
    there = await stage.log_in("ann", placed("a"))
    ends: list[str] = []

    async def log_in(*answers: Placement | Exception) -> None:
        left = list(answers)

        def place() -> Placement:
            answer = left.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        try:
            ends.append(await stage.ledger.admit(session("ann"), place, verified=True))
        except (Refused, ValueError) as exc:
            ends.append(str(exc))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(log_in, placed("b"), Refused(Outcome.UNAVAILABLE, "no such backend"))
        nursery.start_soon(log_in, placed("b"), ValueError("a bug"))
        nursery.start_soon(log_in, placed("b"), placed("b", closed={"b": "no answer"}))
        nursery.start_soon(log_in, placed("b"), placed("b"))
        await wait_all_tasks_blocked()
        stage.release(there)
    assert sorted(ends) == ["a bug", "b", "unavailable: b: no answer", "unavailable: no such backend"]
    assert len(stage.ledger) == 1


async def test_one_of_those_who_waited_has_to_move_on(scene: Opening, autojump_clock: MockClock) -> None:
    """An identity of another source, with an override: the first one lets it wait again."""
    stage = scene(most_sessions=1)
    there = await stage.log_in("ann", placed("a"))
    ends: list[Session] = []

    async def log_in(placement: Placement) -> None:
        ends.append(await stage.log_in("ann", placement))

    async def find_no_room() -> None:
        with pytest.raises(Refused, match="connections_per_user"):
            await stage.log_in("ann", placed("c", why="override"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(log_in, placed("b"))
        await wait_all_tasks_blocked()
        nursery.start_soon(log_in, placed("c", why="override"))
        await wait_all_tasks_blocked()
        nursery.start_soon(find_no_room)
        await wait_all_tasks_blocked()
        stage.release(there)
        await trio.sleep(DELAY + 1)
        (first,) = ends
        assert first.backend == "b"
        assert stage.closer.calls[-1][1] == (first.id,)
        stage.release(first)
    assert ends[1].backend == "c"


@pytest.mark.parametrize("gives_up_at", [0.0, 1.0, 4.9, 5.0, 5.1, 6.9])
async def test_whoever_gives_up_leaves_nothing(gives_up_at: float, scene: Opening, autojump_clock: MockClock) -> None:
    stage = scene(sticky=0.0)
    there = await stage.log_in("ann", placed("a"))
    async with trio.open_nursery() as nursery:
        giving_up = nursery.cancel_scope
        nursery.start_soon(stage.log_in, "ann", placed("b"))
        await wait_all_tasks_blocked()
        await trio.sleep(min(gives_up_at, 5.0))
        if gives_up_at >= 5.0:
            stage.release(there)
            await trio.sleep(gives_up_at - 5.0)
        giving_up.cancel()
    assert stage.ledger._waiting == {}
    assert value(accounts.WAITING) == 0
    stage.release(there)
    await trio.sleep(100)
    assert holds_nothing(stage.ledger)


@pytest.mark.parametrize("first", ["gives up", "is let in"])
async def test_giving_up_in_the_moment_of_being_let_in(first: str, autojump_clock: MockClock) -> None:
    ledger = Ledger(50, Routing(sticky=0.0, move_delay=0.0), Closer())
    there, newcomer = session("ann"), session("ann")
    await ledger.admit(there, lambda: placed("a"), verified=True)
    ends: list[str] = []

    async def log_in() -> None:
        ends.append(await ledger.admit(newcomer, lambda: placed("b"), verified=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(log_in)
        await wait_all_tasks_blocked()
        if first == "gives up":
            nursery.cancel_scope.cancel()
            ledger.release(there, opened=True)  # and with that the newcomer is in
            assert len(ledger) == 1
        else:
            ledger.release(there, opened=True)
            nursery.cancel_scope.cancel()
    assert ends == ([] if first == "gives up" else ["b"])
    assert len(ledger) == len(ends)
    ledger.release(newcomer, opened=False)
    with trio.move_on_after(100):
        await ledger.run()
    assert holds_nothing(ledger)


# --- moves ---


async def test_so_many_moves_at_once(scene: Opening, autojump_clock: MockClock) -> None:
    stage = scene(moves_in_flight=3)
    there = {name: await stage.log_in(name, placed("a")) for name in map(str, range(10))}
    by_id = {each.id: each for each in there.values()}
    most = 0

    async def end(session_ids: Sequence[str]) -> None:
        nonlocal most
        most = max(most, stage.ledger.moves_in_flight)
        await trio.sleep(1)
        stage.release(*(by_id[each] for each in session_ids))

    async with trio.open_nursery() as nursery:
        stage.closer.then = lambda session_ids: nursery.start_soon(end, session_ids)
        for name in there:
            nursery.start_soon(stage.log_in, name, placed("b"))
    assert most == 3
    times = [call[0] - stage.began for call in stage.closer.calls]
    assert times == pytest.approx([0.0] * 3 + [3.0] * 3 + [6.0] * 3 + [9.0])
    assert stage.elapsed == pytest.approx(12.0)
    assert stage.ledger.residents_of("b").users == 10


async def test_an_eviction_is_spread_evenly(scene: Opening, autojump_clock: MockClock) -> None:
    stage = scene(moves_in_flight=1)
    sessions = [await stage.log_in(str(number), placed("a")) for number in range(100)]
    stage.closer.then = lambda session_ids: stage.release(*(each for each in sessions if each.id in session_ids))
    accounts.know_backends("a")
    before = value(accounts.ABANDONED.labels("a"))
    with structlog.testing.capture_logs() as logged:
        assert stage.ledger.evict("a", Outcome.BACKEND_CLOSED, spread=10.0, patience=0.0) == 100
    assert [(line["event"], line["users"]) for line in logged] == [("ledger.evicting", 100)]
    await trio.sleep(10.01)
    times = [call[0] - stage.began for call in stage.closer.calls]
    assert len(times) == 100
    assert all(number / 10 - 0.001 <= time <= (number + 1) / 10 + 0.001 for number, time in enumerate(times))
    assert {call[2:] for call in stage.closer.calls} == {(Outcome.BACKEND_CLOSED, 0.0)}
    assert value(accounts.ABANDONED.labels("a")) == before + 100
    await trio.sleep(DELAY)
    assert stage.ledger.moves_in_flight == 0
    assert len(stage.ledger) == 0


async def test_a_move_counts_once_and_only_who_was_let_in_is_abandoned(
    scene: Opening, autojump_clock: MockClock
) -> None:
    stage = scene()
    await stage.log_in("ann", placed("a"))
    await stage.log_in("ann", placed("a"))
    for verified in (True, False):  # these have got no answer from their backend yet
        await stage.ledger.admit(session("ann"), lambda: placed("a"), verified=verified)
    await stage.ledger.admit(session("bob"), lambda: placed("a"), verified=True)
    accounts.know_backends("a")
    metrics = [accounts.MOVES.labels("request"), accounts.MOVES.labels("eviction"), accounts.ABANDONED.labels("a")]
    before = [value(each) for each in metrics]
    stage.ledger.move("ann")
    for _ in range(2):
        stage.ledger.evict("a", Outcome.BACKEND_CLOSED, spread=0.0, patience=0.0)
    await trio.sleep(100)  # told again
    assert [value(each) - was for each, was in zip(metrics, before, strict=True)] == [1, 1, 2]


async def test_an_eviction_that_is_called_off_lets_in_again(scene: Opening, autojump_clock: MockClock) -> None:
    stage = scene(moves_in_flight=1)
    names = [str(number) for number in range(10)]
    there = [await stage.log_in(name, placed("a")) for name in names]
    stage.ledger.evict("a", Outcome.DRAINED, spread=600.0, patience=PATIENCE)
    await trio.sleep(200)
    told = {call[1] for call in stage.closer.calls}
    assert 3 <= len(told) <= 4
    stage.ledger.undrain("a")
    for each in there:
        if (each.id,) not in told:
            assert at_once(stage.ledger.admit(session(each.name), lambda: placed("a"), verified=True)) == "a"
    await trio.sleep(600)
    assert {call[1] for call in stage.closer.calls} == told


async def test_an_eviction_that_is_called_off_wakes_who_waits(scene: Opening, autojump_clock: MockClock) -> None:
    stage = scene(moves_in_flight=1)
    for name in ("ann", "bob"):
        await stage.log_in(name, placed("a"))
    stage.ledger.move("ann")  # and bob has to wait for his turn
    answers = [placed("b"), placed("a")]
    ends: list[str] = []

    async def log_in() -> None:
        ends.append(await stage.ledger.admit(session("bob"), lambda: answers.pop(0), verified=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(log_in)
        await wait_all_tasks_blocked()
        # Not by the ledger, which hastens those for whom somebody waits.
        stage.ledger._homes.evict("a", Outcome.DRAINED, trio.current_time(), spread=600.0, patience=PATIENCE)
        stage.ledger.undrain("a")
    assert (ends, stage.elapsed) == (["a"], 0.0)


async def test_whoever_waits_already_is_evicted_at_once(scene: Opening, autojump_clock: MockClock) -> None:
    stage = scene(moves_in_flight=1)
    ann, bob = await stage.log_in("ann", placed("a")), await stage.log_in("bob", placed("a"))
    for number in range(10):
        await stage.log_in(str(number), placed("a"))
    async with trio.open_nursery() as nursery:
        for name in ("ann", "bob"):  # bob is second, and waits for his turn
            nursery.start_soon(stage.log_in, name, placed("b"))
            await wait_all_tasks_blocked()
        stage.ledger.evict("a", Outcome.BACKEND_CLOSED, spread=600.0, patience=0.0)
        assert {call[1] for call in stage.closer.calls} >= {(ann.id,), (bob.id,)}
        assert len(stage.closer.calls) < 6
        stage.release(ann, bob)
    assert stage.elapsed == pytest.approx(DELAY)


async def test_a_drain_takes_its_time(scene: Opening, autojump_clock: MockClock) -> None:
    stage = scene()
    sessions = [await stage.log_in(str(number), placed("a")) for number in range(60)]
    stage.closer.then = lambda session_ids: stage.release(*(each for each in sessions if each.id in session_ids))
    assert stage.ledger.drain("a", 300.0) == 60
    for minute in range(1, 6):
        await trio.sleep(60)
        assert stage.ledger.residents_of("a").users == 60 - 12 * minute
    stage.ledger.drain("a", 300.0)
    stage.ledger.undrain("a")
    await trio.sleep(1000)
    assert holds_nothing(stage.ledger)


async def test_a_drain_that_is_called_off(scene: Opening, autojump_clock: MockClock) -> None:
    stage = scene()
    for number in range(60):
        await stage.log_in(str(number), placed("a"))
    stage.ledger.drain("a", 60.0)
    await trio.sleep(10.1)
    stage.ledger.undrain("a")
    told = len(stage.closer.calls)
    assert 10 <= told <= 12
    await trio.sleep(20)
    assert len(stage.closer.calls) == told


async def test_a_user_is_moved_by_request(scene: Opening, autojump_clock: MockClock) -> None:
    stage = scene()
    there = await stage.log_in("ann", placed("a", "ab"))
    stage.closer.then = lambda session_ids: stage.release(there)
    assert stage.ledger.move("ann") == 1
    assert stage.ledger.move("nobody") == 0
    found = stage.ledger.find("ann")
    assert found is not None
    assert found.moving == "request: the last session has just ended"
    assert (await stage.log_in("ann", placed("b", "ab"))).backend == "b"
    assert stage.ledger.find("nobody") is None


async def test_pins_that_are_dropped_are_counted(
    scene: Opening, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = scene()
    monkeypatch.setattr(stage.ledger._homes._pins, "_most", 3)
    before = value(accounts.PINS_DROPPED)
    for number in range(5):
        stage.release(await stage.log_in(str(number), placed("a")))
    await trio.sleep(10)
    assert value(accounts.PINS_DROPPED) == before + 2


# --- all of it at random ---


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), delay=st.sampled_from([0.0, 2.0]), most=st.integers(1, 5))
def test_nobody_is_ever_at_two_backends(seed: int, delay: float, most: int) -> None:
    """Clients that log in, stay, leave, and give up at any time, while backends come and go."""

    async def play() -> None:
        draw = random.Random(seed)
        live: dict[str, set[tuple[str, str]]] = {}
        told: dict[str, trio.Event] = {}

        def close(session_ids: Sequence[str]) -> None:
            for session_id in session_ids:
                told.setdefault(session_id, trio.Event()).set()

        closer = Closer(then=close)
        ledger = Ledger(4, Routing(sticky=draw.choice([0.0, 10.0]), move_delay=delay, moves_in_flight=most), closer)
        world = {name: placed("a", "abc") for name in "xyz"}

        async def client(name: str) -> None:
            for _ in range(8):
                mine = session(name)
                opened = False
                with trio.move_on_after(draw.choice([0.5, 3.0, 60.0, 60.0])):
                    try:
                        verified = draw.random() < 0.5
                        backend = await ledger.admit(mine, lambda: world[name], verified=verified)
                        live.setdefault(name, set()).add((backend, mine.id))
                        assert len({each for each, _ in live[name]}) == 1
                        gone = told.setdefault(mine.id, trio.Event())
                        await trio.sleep(draw.random())  # the backend's login
                        opened = draw.random() < 0.8
                        if opened and not gone.is_set():
                            if not verified:
                                ledger.confirm(mine)
                            with trio.move_on_after(draw.random() * 20):
                                await gone.wait()
                                await trio.sleep(draw.random())  # to a safe point
                    except Refused:
                        await trio.sleep(0.1)
                    finally:
                        live.setdefault(name, set()).difference_update({(each, mine.id) for each in "abc"})
                        ledger.release(mine, opened=opened)
                await trio.sleep(draw.random() * 3)

        async def trouble() -> None:
            while True:
                await trio.sleep(draw.random() * 2)
                home, away = draw.sample("abc", 2)
                match draw.randrange(6):
                    case 0:
                        ledger.evict(home, Outcome.BACKEND_CLOSED, spread=draw.random() * 5, patience=0.0)
                    case 1:
                        ledger.drain(home, draw.random() * 5)
                    case 2:
                        ledger.move(draw.choice("xyz"))
                    case 3:
                        world[draw.choice("xyz")] = placed(home, home + away, closed={away: "down"})
                    case 4:
                        world[draw.choice("xyz")] = placed(home, why="override")
                    case 5:
                        world[draw.choice("xyz")] = placed(home, "abc", why="failover")

        async with trio.open_nursery() as background:
            background.start_soon(ledger.run)
            background.start_soon(trouble)
            async with trio.open_nursery() as clients:
                for name in "xxxxyyyyzzzz":
                    clients.start_soon(client, name)
            assert len(ledger) == 0
            assert ledger._waiting == {}
            background.cancel_scope.cancel()
        with trio.move_on_after(100):
            await ledger.run()
        assert holds_nothing(ledger)

    trio.run(play, clock=MockClock(autojump_threshold=0))
