"""Sessions that have to make way: at a safe point, after patience, or before they have begun."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.outcome import Outcome
from proxy.relay import closing
from proxy.relay.closing import Closer
from proxy.relay.engine import Engine


class Carried:
    """A session of the engine, as far as its end goes."""

    def __init__(self, engine: Engine, session_id: str, *, safe: bool = True) -> None:
        self.engine, self.id, self.at_safe_point = engine, session_id, safe
        self.end: tuple[Outcome, float] | None = None

    def enter(self) -> Carried:
        self.engine.add(self, {})
        return self

    def say_goodbye(self, outcome: Outcome) -> None:
        self.end = outcome, trio.current_time()
        self.engine.remove(self, ())

    def sweep(self, now: float) -> None: ...

    def fail(self) -> None:
        self.engine.remove(self, ())


class Buggy(Carried):
    """One that cannot say goodbye."""

    def say_goodbye(self, outcome: Outcome) -> None:
        raise ValueError(outcome)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.close()


@pytest.fixture
def closer(engine: Engine, nursery: trio.Nursery) -> Closer:
    made = Closer(engine)
    nursery.start_soon(made.run)
    return made


def test_the_engine_finds_its_sessions(engine: Engine) -> None:
    first, second = Carried(engine, "1").enter(), Carried(engine, "2").enter()
    assert engine.find("1") is first
    assert list(engine.sessions) == [first, second]
    engine.remove(first, ())
    assert engine.find("1") is None
    assert len(engine.sessions) == 1
    engine.remove(second, ())
    engine.remove(second, ())
    assert not engine.sessions


async def test_at_a_safe_point_at_once(engine: Engine, closer: Closer, autojump_clock: MockClock) -> None:
    sessions = [Carried(engine, str(number)).enter() for number in range(200)]
    stays = Carried(engine, "stays").enter()
    began = trio.current_time()
    closer.close([each.id for each in sessions], Outcome.DRAINED, patience=15.0)
    assert all(each.end is None for each in sessions)  # whoever asks is not called back from within
    await trio.sleep(1)
    assert {each.end for each in sessions} == {(Outcome.DRAINED, began)}
    assert stays.end is None
    assert len(closer) == 0


async def test_busy_ones_have_until_patience_is_over(engine: Engine, closer: Closer, autojump_clock: MockClock) -> None:
    first, second = (Carried(engine, name, safe=False).enter() for name in ("1", "2"))
    began = trio.current_time()
    closer.close(["1", "2"], Outcome.DRAINED, patience=15.0)
    await trio.sleep(5)
    assert first.end is None
    first.at_safe_point = True
    await trio.sleep(20)
    assert first.end is not None
    assert second.end is not None
    assert first.end == (Outcome.DRAINED, pytest.approx(began + 5.1, abs=0.11))
    assert second.end == (Outcome.DRAINED, pytest.approx(began + 15.1, abs=0.11))


async def test_patience_can_only_become_shorter(engine: Engine, closer: Closer, autojump_clock: MockClock) -> None:
    session = Carried(engine, "1", safe=False).enter()
    began = trio.current_time()
    closer.close(["1"], Outcome.DRAINED, patience=15.0)
    await trio.sleep(1)
    closer.close(["1"], Outcome.BACKEND_CLOSED, patience=3.0)
    closer.close(["1"], Outcome.BACKEND_CLOSED, patience=30.0)
    await trio.sleep(10)
    assert session.end is not None
    outcome, ended = session.end
    assert outcome is Outcome.BACKEND_CLOSED
    assert ended == pytest.approx(began + 4.1, abs=0.11)


async def test_without_patience_at_once(engine: Engine, closer: Closer, autojump_clock: MockClock) -> None:
    session = Carried(engine, "1", safe=False).enter()
    closer.close(["1"], Outcome.BACKEND_CLOSED, patience=0.0)
    await wait_all_tasks_blocked()
    assert session.end is not None


async def test_a_session_that_is_still_logging_in_is_withdrawn(
    engine: Engine, closer: Closer, autojump_clock: MockClock
) -> None:
    closer.close(["1", "2"], Outcome.DRAINED, patience=15.0)
    assert closer.withdrawn("1")
    assert not closer.withdrawn("3")
    await trio.sleep(30)
    assert closer.withdrawn("1")
    late = Carried(engine, "1").enter()  # its client had been told OK just before
    await trio.sleep(1)
    assert late.end is not None
    assert not closer.withdrawn("1")
    await trio.sleep(30)
    assert len(closer) == 0  # the other one never came


async def test_a_connection_may_try_again(engine: Engine, closer: Closer, autojump_clock: MockClock) -> None:
    closer.close(["1", "2"], Outcome.DRAINED, patience=15.0)
    closer.forget("1")
    closer.forget("1")
    assert (closer.withdrawn("1"), closer.withdrawn("2")) == (False, True)
    again = Carried(engine, "1").enter()
    await trio.sleep(30)
    assert again.end is None


@pytest.mark.parametrize("told_while", ["logged in", "logging in"])
async def test_one_that_ends_by_itself_is_forgotten(
    told_while: str, engine: Engine, closer: Closer, autojump_clock: MockClock
) -> None:
    session = Carried(engine, "1", safe=False)
    if told_while == "logged in":
        session.enter()
    closer.close(["1"], Outcome.DRAINED, patience=15.0)
    await trio.sleep(1)
    session.enter()
    await trio.sleep(1)
    engine.remove(session, ())
    await trio.sleep(1)
    assert len(closer) == 0
    assert session.end is None


async def test_a_bug_in_one_session_ends_that_one(
    engine: Engine, closer: Closer, autojump_clock: MockClock, capfd: pytest.CaptureFixture[str]
) -> None:
    Buggy(engine, "1").enter()
    other = Carried(engine, "2").enter()
    closer.close(["1", "2"], Outcome.DRAINED, patience=15.0)
    await trio.sleep(1)
    assert other.end is not None
    assert not engine.sessions
    assert len(closer) == 0
    assert "relay.failed" in capfd.readouterr().err


async def test_what_is_remembered_has_a_bound(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "_MOST", 10)
    closer = Closer(engine)
    closer.close([str(number) for number in range(25)], Outcome.DRAINED, patience=15.0)
    assert len(closer) == 10
    assert closer.withdrawn("24")
    assert not closer.withdrawn("0")


async def test_nothing_to_do_costs_nothing(engine: Engine, closer: Closer, autojump_clock: MockClock) -> None:
    """With nothing to close, nothing wakes: a clock that jumps to the next alarm finds none but ours."""

    class Wakes(trio.abc.Instrument):
        count = 0

        def task_scheduled(self, task: trio.lowlevel.Task) -> None:
            self.count += 1

    Carried(engine, "1").enter()
    closer.close(["1"], Outcome.DRAINED, patience=15.0)
    await trio.sleep(1)
    wakes = Wakes()
    trio.lowlevel.add_instrument(wakes)
    await trio.sleep(3600)
    trio.lowlevel.remove_instrument(wakes)
    assert wakes.count < 10
