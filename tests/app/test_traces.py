"""Traces over the links: asked for at the steward, carried out by all workers, and ended in time by each of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from proxy.admin.events import Kind
from proxy.app.links import Links
from proxy.app.traces import Traces, trace_when_told
from proxy.auth.throttle import Throttle
from proxy.relay.tracing import MOST_TRACES, Tracing
from proxy.transport.packets import Packets
from tests.app.fake_workers import FakeWorker, settings_of
from tests.app.link_stage import Stage

LINE = {"trace": "t1", "session": "s1", "side": "client", "text": "a NOOP"}


# --- at the steward ---


class Ear:
    """In place of a worker's link."""

    def __init__(self) -> None:
        self.heard: list[list[Any]] = []

    def post(self, message: list[Any]) -> None:
        self.heard.append(message)


def test_begin_and_end() -> None:
    now = 1000.0
    ears = {"w1": Ear(), "w2": Ear()}
    traces = Traces(ears, lambda: now)  # type: ignore[arg-type]
    trace = traces.begin("ann", 60.0)
    assert trace is not None
    newcomer = ears["w3"] = Ear()
    now += 20
    traces.tell(newcomer)  # type: ignore[arg-type]
    assert traces.end(trace) is True
    assert traces.end(trace) is False, "it is over; who has one of an earlier steward is told all the same"
    traces.tell(newcomer)  # type: ignore[arg-type]
    assert ears["w1"].heard == [["trace", trace, "ann", 60.0], ["untrace", trace], ["untrace", trace]]
    assert newcomer.heard == [["trace", trace, "ann", 40.0], ["untrace", trace], ["untrace", trace]]


def test_so_many_and_so_long() -> None:
    now = 1000.0
    traces = Traces({}, lambda: now)
    begun = [traces.begin("ann", 60.0) for _ in range(MOST_TRACES)]
    assert len({*begun}) == MOST_TRACES
    assert None not in begun
    assert traces.begin("ann", 60.0) is None
    now += 60
    assert traces.end(begun[0] or "") is False, "time is over"
    assert traces.begin("ann", 10**9) is not None
    ear = Ear()
    traces.tell(ear)  # type: ignore[arg-type]
    assert [message[3] for message in ear.heard] == [3600.0]


def test_another_steward_goes_on() -> None:
    now = 1000.0
    before = Traces({}, lambda: now)
    ann, bob = before.begin("ann", 60.0), before.begin("bob", 10.0)
    now += 20
    memory = json.loads(json.dumps(before.memory()))
    assert memory == [[ann, "ann", 40.0]], "time is over for bob's"
    now = 5.0
    ear = Ear()
    traces = Traces({"w1": ear}, lambda: now)  # type: ignore[dict-item]
    traces.recall(memory)
    traces.tell(ear)  # type: ignore[arg-type]
    assert ear.heard == [["trace", ann, "ann", 40.0]]
    assert traces.end(bob or "") is False
    assert traces.end(ann or "") is True
    assert traces.memory() == []


MEMORIES: list[tuple[object, list[list[Any]]]] = [
    (None, []),
    (5, []),
    ({"t1": "ann"}, []),
    ([None, 5, [], ["t1"], ["t1", "ann"], ["t1", 5, 60], [1, "ann", 60], ["t1", "ann", "60"]], []),
    ([["t1", "ann", 60, "of a later version"]], [["t1", "ann", 60.0]]),
    ([["t1", "ann", 10**9]], [["t1", "ann", 3600.0]]),
    ([["t1", "ann", -5]], []),
    ([[f"t{number}", "ann", 60] for number in range(20)], [[f"t{number}", "ann", 60.0] for number in range(8)]),
]


@pytest.mark.parametrize(("memory", "kept"), MEMORIES, ids=[str(number) for number in range(len(MEMORIES))])
def test_what_is_recalled(memory: object, kept: list[list[Any]]) -> None:
    traces = Traces({}, lambda: 1000.0)
    traces.recall(memory)
    assert traces.memory() == kept


@pytest.fixture
async def links(nursery: trio.Nursery) -> AsyncIterator[Links]:
    settings = settings_of()
    links = Links(settings, Throttle(settings.limits, key=bytes(32)))
    nursery.start_soon(links.run, _informed)
    yield links
    nursery.cancel_scope.cancel()


@pytest.fixture
async def workers(links: Links, nursery: trio.Nursery) -> AsyncIterator[Callable[[str], FakeWorker]]:
    seen: list[FakeWorker] = []
    ends: list[Packets] = []

    def join(name: str) -> FakeWorker:
        worker = FakeWorker(name)
        seen.append(worker)
        ends.append(Packets(worker.near_end()))
        links.add(name, ends[-1])
        return worker

    yield join
    nursery.cancel_scope.cancel()
    for end in ends:
        end.close()
    for worker in seen:
        worker.close()


@pytest.fixture
async def stage(nursery: trio.Nursery) -> AsyncIterator[Stage]:
    stage = Stage(nursery)
    yield stage
    nursery.cancel_scope.cancel()
    stage.ours.close()
    stage.steward.close()


async def _informed() -> None:
    """DNS is not asked."""


async def test_workers_are_told_and_lines_are_published(links: Links, workers: Callable[[str], FakeWorker]) -> None:
    first = workers("w1.0")
    await first.report()
    trace = links.onlookers.traces.begin("ann", 60.0)
    assert (await first.hear("trace"))[1:3] == [trace, "ann"]
    second = workers("w1.1")
    assert (await second.hear("trace"))[1:3] == [trace, "ann"], "whoever comes later is told as well"
    with links.onlookers.hub.subscribe([Kind.TRACE]) as reader:
        first.tell(["event", "none such", "trace.line", {}])
        first.tell(["event", "trace", "trace.line", LINE])
        async for event in reader:
            assert {**event, "time": 0} == {"time": 0, "kind": "trace", "event": "trace.line", **LINE}
            break
    assert links.onlookers.traces.end(trace or "") is True
    assert (await first.hear("untrace"))[1] == trace
    assert (await second.hear("untrace"))[1] == trace


# --- at a worker ---


def tracing_at(stage: Stage) -> Tracing:
    tracing = Tracing(trio.current_time)
    engine = SimpleNamespace(sessions=[], stir=lambda: None)
    trace_when_told(stage.link, SimpleNamespace(tracing=tracing, engine=engine))  # type: ignore[arg-type]
    return tracing


async def test_a_worker_does_as_told(stage: Stage) -> None:
    tracing = tracing_at(stage)
    stage.steward.post(["trace", "t1", "ann", 60])
    stage.steward.post(["trace", 5, "ann", 60])
    await stage.settle()
    tracing.note("ann", "s1", "PLAIN: known to file")
    line = {"trace": "t1", "session": "s1", "side": "note", "text": "PLAIN: known to file"}
    assert await stage.hear("event") == ["event", "trace", "trace.line", line]
    stage.steward.post(["untrace", "t1"])
    await stage.settle()
    assert not tracing


async def test_a_steward_that_dies(stage: Stage, autojump_clock: MockClock) -> None:
    tracing = tracing_at(stage)
    stage.steward.post(["trace", "t1", "ann", 60.0])
    await stage.settle()
    await stage.greet("another")
    tracing.tick()
    assert tracing, "nobody has ended it"
    await trio.sleep(61)
    tracing.tick()
    assert not tracing


async def test_a_steward_that_does_not_read(stage: Stage) -> None:
    """Lines never crowd out what he has to know."""
    stage.ours.close_sending()
    waiting: list[Any] = [0] * 5000
    stage.ours._outbox = waiting
    assert not stage.link.tell_if_read(["event", "trace", "trace.line", LINE])
    waiting.clear()
    assert stage.link.tell_if_read(["event", "trace", "trace.line", LINE])
