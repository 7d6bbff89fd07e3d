"""Questions to workers: whoever answers in time is heard, and nobody else is waited for or believed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from proxy.app import inquiries as room
from proxy.app.inquiries import Inquiries
from proxy.app.worker_link import FEW_WAITING


class Ear:
    """In place of a worker's link."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard: list[list[Any]] = []
        self.packets = SimpleNamespace(waiting=0)

    def post(self, message: list[Any]) -> None:
        self.heard.append(message)


class Round:
    """Some workers, and the questions to them."""

    def __init__(self, nursery: trio.Nursery, clock: MockClock, *names: str) -> None:
        self._nursery, self._clock = nursery, clock
        self.ears = {name: Ear(name) for name in names}
        self.inquiries = Inquiries(self.ears)  # type: ignore[arg-type]
        self.answers: list[dict[str, Any]] = []

    async def ask(self, *arguments: Any, **how: Any) -> int:
        """Ask, and do not wait; gives the question's number."""

        async def ask() -> None:
            self.answers.append(await self.inquiries.ask("top", *arguments, **how))

        before = sum(len(ear.heard) for ear in self.ears.values())
        self._nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        numbers = {ear.heard[-1][1] for ear in self.ears.values() if ear.heard}
        assert sum(len(ear.heard) for ear in self.ears.values()) > before
        return int(max(numbers))

    def tell(self, worker: str, number: Any, *answer: Any) -> None:
        self.inquiries.told(self.ears[worker], ["told", number, *answer])  # type: ignore[arg-type]

    async def settle(self) -> list[dict[str, Any]]:
        await trio.testing.wait_all_tasks_blocked()
        return self.answers

    async def later(self, seconds: float) -> None:
        self._clock.jump(seconds)
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
def three(nursery: trio.Nursery, mock_clock: MockClock) -> Round:
    return Round(nursery, mock_clock, "w1.0", "w1.1", "w1.2")


async def test_all_answer(three: Round, mock_clock: MockClock) -> None:
    began = trio.current_time()
    number = await three.ask(20, "ann")
    assert [ear.heard for ear in three.ears.values()] == [[["ask", number, "top", [20, "ann"]]]] * 3
    for worker in three.ears:
        assert three.answers == []
        three.tell(worker, number, {"of": worker}, "of a later version")
    assert await three.settle() == [{worker: {"of": worker} for worker in three.ears}]
    assert trio.current_time() == began, "nobody is waited for who has answered"


async def test_who_is_late_is_left_out(three: Round, mock_clock: MockClock) -> None:
    number = await three.ask(seconds=2.0)
    three.tell("w1.1", number, [])
    await three.later(1.9)
    assert three.answers == []
    await three.later(0.2)
    assert three.answers == [{"w1.1": []}]
    three.tell("w1.0", number, "too late")
    assert three.answers == [{"w1.1": []}]


async def test_who_does_not_know_is_left_out(three: Round, mock_clock: MockClock) -> None:
    number = await three.ask()
    for worker, answer in (("w1.0", None), ("w1.1", 0), ("w1.2", None)):
        three.tell(worker, number, answer)
    assert await three.settle() == [{"w1.1": 0}]


async def test_who_dies_is_not_waited_for(three: Round, mock_clock: MockClock) -> None:
    number = await three.ask()
    three.tell("w1.0", number, 1)
    del three.ears["w1.1"]
    three.inquiries.gone("w1.1")
    three.inquiries.gone("w1.2")
    assert await three.settle() == [{"w1.0": 1}]


@pytest.mark.parametrize(
    ("workers", "asked"),
    [(None, {"w1.0", "w1.1", "w1.2"}), (["w1.1"], {"w1.1"}), (["w1.1", "w9.9"], {"w1.1"})],
)
async def test_some_are_asked(three: Round, mock_clock: MockClock, workers: list[str] | None, asked: set[str]) -> None:
    number = await three.ask(workers=workers)
    assert {name for name, ear in three.ears.items() if ear.heard} == asked
    for name in three.ears:
        three.tell(name, number, name)
    assert await three.settle() == [{name: name for name in asked}], "and nobody else is believed"


async def test_who_is_behind_is_neither_asked_nor_waited_for(three: Round, mock_clock: MockClock) -> None:
    three.ears["w1.0"].packets.waiting = FEW_WAITING
    three.ears["w1.1"].packets.waiting = FEW_WAITING - 1
    number = await three.ask()
    assert [name for name, ear in three.ears.items() if ear.heard] == ["w1.1", "w1.2"]
    three.tell("w1.1", number, 1)
    three.tell("w1.2", number, 2)
    assert await three.settle() == [{"w1.1": 1, "w1.2": 2}], "at once"


async def test_all_are_behind(three: Round, mock_clock: MockClock) -> None:
    for ear in three.ears.values():
        ear.packets.waiting = FEW_WAITING
    began = trio.current_time()
    assert await three.inquiries.ask("top") == {}
    assert trio.current_time() == began
    assert [ear.heard for ear in three.ears.values()] == [[]] * 3


async def test_what_an_earlier_steward_has_asked(
    nursery: trio.Nursery, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers answer whoever is there now."""
    begins = iter((1000, 5000))
    monkeypatch.setattr("proxy.app.inquiries.secrets.randbelow", lambda _: next(begins))
    earlier, later = Round(nursery, mock_clock, "w1.0"), Round(nursery, mock_clock, "w1.0")
    old, new = await earlier.ask(), await later.ask()
    later.tell("w1.0", old, "late")
    assert await later.settle() == []
    later.tell("w1.0", new, "in time")
    assert await later.settle() == [{"w1.0": "in time"}]


@pytest.mark.parametrize("workers", [[], ["w9.9"]])
async def test_nobody_is_asked(three: Round, mock_clock: MockClock, workers: list[str]) -> None:
    assert await three.inquiries.ask("top", workers=workers) == {}


JUNK: list[list[Any]] = [
    ["told"],
    ["told", 1],
    ["told", "1", {}],
    ["told", None, {}],
    ["told", [1], {}],
    ["told", 99, {}],
]


@pytest.mark.parametrize("message", JUNK, ids=str)
async def test_answers_that_make_no_sense(three: Round, mock_clock: MockClock, message: list[Any]) -> None:
    number = await three.ask(workers=["w1.0"])

    three.inquiries.told(three.ears["w1.0"], message)  # type: ignore[arg-type]
    await trio.testing.wait_all_tasks_blocked()
    assert three.answers == []
    three.tell("w1.0", number, "sense")
    assert await three.settle() == [{"w1.0": "sense"}]


async def test_the_first_answer_counts(three: Round, mock_clock: MockClock) -> None:
    number = await three.ask(workers=["w1.0", "w1.1"])
    three.tell("w1.0", number, "first")
    three.tell("w1.0", number, "second")
    three.tell("w1.1", number, "only")
    assert await three.settle() == [{"w1.0": "first", "w1.1": "only"}]


async def test_questions_do_not_meet(three: Round, mock_clock: MockClock) -> None:
    first = await three.ask(workers=["w1.0"])
    second = await three.ask(workers=["w1.0"])
    three.tell("w1.0", second, "b")
    three.tell("w1.0", first, "a")
    assert {each["w1.0"] for each in await three.settle()} == {"a", "b"}


async def test_not_too_many_at_once(three: Round, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_MOST_AT_ONCE", 2)
    for _ in range(2):
        await three.ask()
    assert await three.inquiries.ask("top") == {}
    await three.later(2)
    await three.ask()
    assert len(three.answers) == 2


async def test_whoever_asks_may_give_up(three: Round, mock_clock: MockClock) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await three.inquiries.ask("top")
    assert three.inquiries._open == {}
    three.tell("w1.0", 1, "nobody waits")
