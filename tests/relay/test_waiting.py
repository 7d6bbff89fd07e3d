"""The engine waits in trio's place: neither sessions nor trio's tasks ever wait for each other's next timer.

What is lost would be found at the next timer, so there is none near: a task that sleeps for long stands in for
everything that a quiet process does.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
import trio.testing

from proxy.outcome import Outcome
from proxy.relay import waiting
from proxy.relay.engine import IN, UNWATCHED, Engine

FAR = 60.0
NEAR = 5.0


class Ear:
    """A session of one descriptor that counts what it hears."""

    id = "ear"
    at_safe_point = True

    def __init__(self, engine: Engine, *, slow: float = 0.0, leaves: bool = False) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self._engine, self._slow, self._leaves = engine, slow, leaves
        self.heard = 0
        self.left = trio.Event()
        engine.add(self, {self.ours.fileno(): self._hear})
        engine.watch(self.ours.fileno(), UNWATCHED, IN)

    def _hear(self, _events: int) -> None:
        self.heard += len(self.ours.recv(100))
        if self._slow:
            time.sleep(self._slow)  # a callback that keeps the processor busy
        if self._leaves:
            self._engine.remove(self, [self.ours.fileno()])
            self.left.set()

    def say_goodbye(self, outcome: Outcome) -> None: ...
    def say_goodbye_soon(self, outcome: Outcome) -> None: ...
    def sweep(self, now: float) -> None: ...
    def fail(self) -> None: ...

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@contextmanager
def ears(engine: Engine, count: int, *, slow: float = 0.0, leaves: bool = False) -> Iterator[list[Ear]]:
    made = [Ear(engine, slow=slow, leaves=leaves) for _ in range(count)]
    try:
        yield made
    finally:
        for ear in made:
            ear.close()


@asynccontextmanager
async def carrying(engine: Engine) -> AsyncIterator[None]:
    """The engine runs, and nothing is due for long."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        nursery.start_soon(trio.sleep, FAR)
        await trio.testing.wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()
    engine.close()


def speak(ears: list[Ear]) -> None:
    for ear in ears:
        ear.theirs.send(b"x")


async def in_a_thread(act: object, *arguments: object) -> None:
    """trio is blocked meanwhile, as when a client speaks."""
    await trio.to_thread.run_sync(act, *arguments)  # type: ignore[arg-type]


def heard(ears: list[Ear], count: int) -> None:
    """Looked at from a thread, so that no timer of trio's helps."""
    deadline = time.monotonic() + NEAR
    while any(ear.heard < count for ear in ears):
        assert time.monotonic() < deadline, sorted(ear.heard for ear in ears)
        time.sleep(0.001)


def talk(ears: list[Ear], counts: range) -> None:
    """What was said is heard, and what is said then, too."""
    for count in counts:
        heard(ears, count)
        speak(ears)
    heard(ears, counts[-1] + 1)


async def until_heard(ears: list[Ear], count: int) -> None:
    await trio.to_thread.run_sync(heard, ears, count)


async def test_it_is_possible() -> None:
    assert waiting.trio_epoll() is not None, "this trio can't be waited for: sessions cost a task's wake-up per batch"


async def test_sessions_are_heard_while_trio_is_quiet() -> None:
    engine = Engine()
    async with carrying(engine):
        with ears(engine, 10) as listening:
            for count in range(1, 4):
                await in_a_thread(speak, listening)
                await until_heard(listening, count)


async def test_more_than_fits_into_one_turn() -> None:
    """What is left over from a turn is taken up again, and so is what comes right after that."""
    engine = Engine()
    async with carrying(engine):
        with ears(engine, 200, slow=0.0003) as listening:
            speak(listening)
            await trio.lowlevel.checkpoint()  # a turn while trio is busy: it does not reach them all
            await in_a_thread(talk, listening, range(1, 4))


class Fake:
    """A carrier that has to be asked twice."""

    def __init__(self) -> None:
        self.answers = [True, False]
        self.handed_out: list[int] = []
        self.left = False

    def carry(self) -> bool:
        return self.answers.pop(0)

    def hand_out_some(self, events: waiting.Events) -> bool:
        self.handed_out += [descriptor for descriptor, _ in events]
        return True


async def test_having_dealt_with_what_was_left_it_waits() -> None:
    one, other = socket.socketpair()
    with one, other, select.epoll() as epoll:
        epoll.register(one, select.EPOLLIN)
        fake = Fake()
        wait = waiting.Wait(epoll, one.fileno(), fake)
        wait._only_trio = epoll
        wait.before_io_wait(0.0)
        other.send(b"x")
        wait.before_io_wait(NEAR)
        assert (fake.answers, fake.handed_out) == ([], [one.fileno()])


class Thief(Ear):
    """A callback that takes what trio was woken for: as another process that shares a listener does."""

    def __init__(self, engine: Engine, stolen: socket.socket) -> None:
        super().__init__(engine)
        self._stolen = stolen

    def _hear(self, events: int) -> None:
        super()._hear(events)
        self._stolen.recv(1)


async def test_what_trio_was_woken_for_may_be_gone() -> None:
    engine = Engine()
    mine, other = socket.socketpair()
    mine.setblocking(False)
    with mine, other:
        async with carrying(engine), trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, mine)
            await trio.testing.wait_all_tasks_blocked()
            thief = Thief(engine, mine)
            with ears(engine, 3) as listening:
                other.send(b"x")
                thief.theirs.send(b"x")
                await trio.to_thread.run_sync(time.sleep, 0.05)
                await in_a_thread(talk, listening, range(2))
            thief.close()
            nursery.cancel_scope.cancel()


class Broken:
    """A carrier that the system does not let work."""

    left = False

    def carry(self) -> bool:
        raise MemoryError

    def hand_out_some(self, events: waiting.Events) -> bool:
        raise MemoryError


async def test_a_wait_that_breaks_is_not_the_end(capfd: pytest.CaptureFixture[str]) -> None:
    engine = Engine()
    async with carrying(engine):
        assert engine._wait is not None
        engine._wait._carrier = Broken()
        with ears(engine, 3) as listening:
            await trio.sleep(0.01)
            for count in range(1, 3):
                await in_a_thread(speak, listening)
                await until_heard(listening, count)
        assert engine._wait is None
    assert "relay.wait_failed" in capfd.readouterr().err


async def test_a_turn_between_the_steps_of_logins() -> None:
    engine = Engine()
    async with carrying(engine):
        with ears(engine, 200, slow=0.0003) as listening:
            speak(listening)
            await in_a_thread(time.sleep, 0.01)
            engine.turn()
            await until_heard(listening, 1)


async def test_a_callback_wakes_a_task() -> None:
    engine = Engine()
    async with carrying(engine):
        with ears(engine, 1, leaves=True) as (ear,):
            # A thread of its own: trio must not hear of its end.
            speaking = threading.Timer(0.1, speak, [[ear]])
            speaking.start()
            with trio.fail_after(NEAR):
                await ear.left.wait()
                await trio.lowlevel.checkpoint()  # had the deadline woken it, it would be too late here
            speaking.join()


async def test_timers_are_not_late() -> None:
    """Having waited in trio's place, it must not make trio wait as long once more."""
    engine = Engine()
    async with carrying(engine):
        with trio.fail_after(1.7):
            for _ in range(10):
                await trio.sleep(0.1)


async def test_two_engines_in_one_run() -> None:
    first, second = Engine(), Engine()
    async with carrying(first), carrying(second):
        with ears(first, 5) as these, ears(second, 5) as those:
            for count in range(1, 4):
                await in_a_thread(speak, these + those)
                await until_heard(these + those, count)


async def test_one_after_the_other() -> None:
    for _ in range(2):
        engine = Engine()
        async with carrying(engine):
            assert waiting.trio_epoll() is None, "taken"
            with ears(engine, 2) as listening:
                await in_a_thread(speak, listening)
                await until_heard(listening, 1)
        with trio.fail_after(NEAR):
            await trio.sleep(0.01)


async def test_another_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_runner", object)
    engine = Engine()
    async with carrying(engine):
        with ears(engine, 5) as listening:
            for count in range(1, 4):
                await in_a_thread(speak, listening)
                await until_heard(listening, count)


async def test_clocks_that_jump_still_do(autojump_clock: trio.testing.MockClock) -> None:
    engine = Engine()
    async with carrying(engine):
        await trio.sleep(50)
        await trio.testing.wait_all_tasks_blocked(0.01)
