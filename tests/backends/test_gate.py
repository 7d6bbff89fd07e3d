"""Turns at a backend: how many at once, who waits and how long, and how a recovered one begins."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from proxy.backends.gate import Gate
from proxy.observe.metrics import exposition
from proxy.outcome import Outcome, Refused
from proxy.settings.limit_models import LoginsPerBackend


def gate(at_once: int, waiting: int = 100, slow_start: float = 30.0, patience: float = 10.0, name: str = "g") -> Gate:
    return Gate(name, LoginsPerBackend(at_once=at_once, waiting=waiting, slow_start=slow_start), patience)


def gauges(name: str) -> tuple[float, float]:
    """Logins under way and waiting, as exported."""
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(exposition()[0].decode())
        for sample in family.samples
        if sample.labels.get("backend") == name
    }
    return values["porter_backend_logins"], values["porter_backend_logins_waiting"]


async def all_in(made: Gate, count: int) -> int:
    """How many of so many go in at once."""
    inside = 0

    async def enter() -> None:
        nonlocal inside
        await made.enter()
        inside += 1

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(enter)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return inside


async def test_first_come_first_served() -> None:
    made = gate(2, name="fifo")
    order: list[int] = []

    async def come(number: int) -> None:
        await made.enter()
        order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(come, number)
            await trio.testing.wait_all_tasks_blocked()
        assert order == [0, 1]
        assert gauges("fifo") == (2, 4)
        assert made.waiting == 4
        for _ in range(4):
            made.leave()
            await trio.testing.wait_all_tasks_blocked()
    assert order == [0, 1, 2, 3, 4, 5]
    assert gauges("fifo") == (2, 0)


async def test_nobody_overtakes_those_who_wait() -> None:
    made = gate(1)
    order: list[str] = []

    async def come(name: str) -> None:
        await made.enter()
        order.append(name)

    await made.enter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(come, "waiting")
        await trio.testing.wait_all_tasks_blocked()
        made.leave()  # its turn is given before it runs
        nursery.start_soon(come, "late")
        await trio.testing.wait_all_tasks_blocked()
        assert order == ["waiting"]
        made.leave()


async def test_too_many_wait_already() -> None:
    made = gate(1, waiting=2)
    await made.enter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.enter)
        nursery.start_soon(made.enter)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Refused, match="1 logins are under way at g and 2 wait") as caught:
            await made.enter()
        assert (caught.value.outcome, caught.value.step) == (Outcome.UNAVAILABLE, "queue")
        nursery.cancel_scope.cancel()


async def test_nobody_waits_where_nobody_may() -> None:
    made = gate(1, waiting=0)
    await made.enter()
    with pytest.raises(Refused):
        await made.enter()
    made.leave()
    await made.enter()


async def test_a_wait_that_is_too_long(autojump_clock: trio.testing.MockClock) -> None:
    made = gate(1, patience=10, name="late")
    await made.enter()
    began = trio.current_time()
    with pytest.raises(Refused, match="no turn at late within 10 s") as caught:
        await made.enter()
    assert (caught.value.outcome, caught.value.step) == (Outcome.UNAVAILABLE, "queue")
    assert trio.current_time() - began == 10
    assert gauges("late") == (1, 0)
    made.leave()
    assert gauges("late") == (0, 0)


async def test_who_gives_up_leaves_his_place_to_others() -> None:
    made = gate(1)
    await made.enter()
    with trio.move_on_after(0) as scope:
        await made.enter()
    assert scope.cancelled_caught
    made.leave()
    assert await all_in(made, 2) == 1


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_a_turn_that_comes_with_a_cancellation_is_not_lost(cancel_first: bool) -> None:
    """Either the login has the turn, and gives it back; or it never had one."""
    made, scope, entered = gate(1), trio.CancelScope(), trio.Event()
    await made.enter()

    async def come() -> None:
        with scope:
            await made.enter()
            entered.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come)
        await trio.testing.wait_all_tasks_blocked()
        for step in (scope.cancel, made.leave) if cancel_first else (made.leave, scope.cancel):
            step()
    if entered.is_set():
        made.leave()
    assert await all_in(made, 2) == 1


async def test_a_recovered_backend_starts_slowly(autojump_clock: trio.testing.MockClock) -> None:
    for seconds, room in ((0, 10), (10, 40), (20, 70), (30, 100), (60, 100)):
        made = gate(100, slow_start=30)
        made.recovered(trio.current_time() - seconds)
        assert await all_in(made, 110) == room


async def test_a_small_room_that_grows_lets_in_those_who_wait(autojump_clock: trio.testing.MockClock) -> None:
    made = gate(5, slow_start=30, patience=1000)
    made.recovered(trio.current_time())
    inside = 0

    async def come() -> None:
        nonlocal inside
        await made.enter()
        inside += 1

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(come)
        await trio.testing.wait_all_tasks_blocked()
        assert inside == 1
        await trio.sleep(31)
        made.leave()
        await trio.testing.wait_all_tasks_blocked()
        assert inside == 6
        for _ in range(2):
            made.leave()


async def test_a_backend_that_goes_down_sends_away_all_who_wait_and_come(
    autojump_clock: trio.testing.MockClock,
) -> None:
    made = gate(1, name="down")
    await made.enter()
    refused: list[Refused] = []

    async def come() -> None:
        with pytest.raises(Refused) as caught:
            await made.enter()
        refused.append(caught.value)

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(come)
        await trio.testing.wait_all_tasks_blocked()
        made.close("connect: Connection refused")
        assert gauges("down") == (1, 0)
        made.leave()
        nursery.start_soon(come)
    assert trio.current_time() == began
    assert [(each.outcome, each.step, each.detail) for each in refused] == [
        (Outcome.UNAVAILABLE, "queue", "down is down: connect: Connection refused")
    ] * 4
    assert gauges("down") == (0, 0)
    made.recovered(trio.current_time())
    assert await all_in(made, 3) == 1


async def test_a_cancellation_together_with_the_end_gives_back_no_place() -> None:
    made, scope = gate(1), trio.CancelScope()
    await made.enter()

    async def come() -> None:
        with scope:
            await made.enter()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        made.close("gone")
    made.open()
    assert await all_in(made, 2) == 0
    made.leave()
    assert await all_in(made, 2) == 1


async def test_without_slow_start_all_the_room_is_there_at_once() -> None:
    made = gate(20, slow_start=0)
    made.recovered(trio.current_time())
    assert await all_in(made, 30) == 20
