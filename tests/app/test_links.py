"""What workers ask the steward over their links, and how a new steward learns who there is."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing
from trio.testing import MockClock

from proxy.app import links as links_module
from proxy.app import news, worker_link
from proxy.app.links import HOLD_SECONDS, Links
from proxy.auth.throttle import Throttle
from proxy.observe import metrics
from proxy.outcome import Outcome
from proxy.settings.models import Settings
from proxy.transport.packets import Packets
from tests.app.fake_workers import FakeWorker, lodger, settings_of

Events = Sequence[MutableMapping[str, Any]]
Begin = Callable[..., Awaitable[Links]]


@pytest.fixture
def events() -> Iterator[Events]:
    with structlog.testing.capture_logs() as captured:
        yield captured


async def informed() -> None:
    """DNS is not asked."""


@pytest.fixture
async def begin(nursery: trio.Nursery) -> AsyncIterator[Begin]:
    """Starts a steward's links; the one before ends at that moment, as if killed."""
    lives: list[trio.CancelScope] = []
    ends: list[Packets] = []
    seen: list[FakeWorker] = []

    async def start(*workers: FakeWorker, settings: Settings | None = None, reporting: bool = True) -> Links:
        for life in lives:
            life.cancel()
        await trio.testing.wait_all_tasks_blocked()
        settings = settings or settings_of()
        links = Links(settings, Throttle(settings.limits, key=bytes(32)))
        for worker in workers:
            ends.append(Packets(worker.near_end()))
            links.add(worker.name, ends[-1])
            seen.append(worker)
        life = trio.CancelScope()
        lives.append(life)

        async def live() -> None:
            with life:
                async with trio.open_nursery() as tasks:
                    tasks.start_soon(links.registry.ledger.run)
                    await links.run(informed)

        nursery.start_soon(live)
        if reporting:
            for worker in workers:
                await worker.report()
            await trio.testing.wait_all_tasks_blocked()
            assert links.is_open
            for worker in workers:
                heard = await worker.overhear()
                worker.inbox.extend(message for message in heard if message[0] != "view")
        return links

    yield start
    for life in lives:
        life.cancel()
    await trio.testing.wait_all_tasks_blocked()
    for end in ends:
        end.close()
    for worker in seen:
        worker.close()


def figure(series: str) -> float:
    text, _ = metrics.exposition()
    return sum(float(line.split()[-1]) for line in text.decode().splitlines() if line.startswith(series))


# --- asking ---


async def test_an_admit_is_answered(begin: Begin) -> None:
    worker = FakeWorker()
    links = await begin(worker)
    answer = await worker.answer(worker.ask("s1", "ann"))
    home = links.registry.cluster.servers()[0].name
    assert answer[2] in ("d1", "d2")
    assert answer[3:] == [links.registry.cluster.epoch, "hash", 49]
    worker.confirm("s1")
    assert await worker.admit("s2", "ann") == answer[2]
    assert links.registry.ledger.find("ann").sessions == 2  # type: ignore[union-attr]
    worker.release("s1", "s2")
    await worker.overhear()
    assert (len(links.registry.ledger), len(links.registry.guests)) == (0, 0)
    assert home == "d1"


async def test_override_and_tag_come_along(begin: Begin) -> None:
    worker = FakeWorker()
    servers = [{"name": "d1", "url": "imap://d1.test.example"}]
    servers.append({"name": "gold", "url": "imap://gold.test.example", "tag": "gold"})
    settings = settings_of(backends={"servers": servers, "health": {"interval": 3600.0}})
    await begin(worker, settings=settings)
    assert await worker.admit("s1", "ann") == "d1"
    assert await worker.admit("s2", "bob", backend="gold") == "gold"
    worker.tell(["admit", 500, "s3", "eve", None, "gold", "file", True, "192.0.2.7", 4711, "imaps", "newer", "items"])
    assert (await worker.answer(500))[2] == "gold"
    assert await worker.admit("s4", "tom", backend="d9") == Outcome.UNAVAILABLE


async def test_a_limit_holds_over_all_workers(begin: Begin) -> None:
    one, other = FakeWorker("w1.0"), FakeWorker("w1.1")
    await begin(one, other, settings=settings_of(limits={"connections_per_user": 2}))
    assert await one.admit("a1", "ann") in ("d1", "d2")
    assert await other.admit("b1", "ann") in ("d1", "d2")
    refused = await one.answer(one.ask("a2", "ann"))
    assert (refused[0], refused[2], refused[4]) == ("refused", Outcome.LIMIT, "connections_per_user")
    other.release("b1")
    await trio.testing.wait_all_tasks_blocked()
    assert await one.admit("a2", "ann") in ("d1", "d2")


async def test_who_was_not_verified_counts_once_confirmed(begin: Begin) -> None:
    worker = FakeWorker()
    await begin(worker, settings=settings_of(limits={"connections_per_user": 1}))
    rooms = [(await worker.answer(worker.ask(name, "ann", verified=False)))[5] for name in ("s1", "s2")]
    assert rooms == [1, 1]
    worker.confirm("s1", "s2")
    assert await worker.hear("close") == ["close", ["s2"], Outcome.LIMIT, 0.0]
    worker.release("s2")
    assert (await worker.answer(worker.ask("s3", "ann", verified=False)))[5] == 0


async def test_a_login_that_has_to_wait_is_answered_later(begin: Begin) -> None:
    worker = FakeWorker()
    links = await begin(worker)
    assert await worker.admit("s1", "ann", backend="d1") == "d1"
    worker.confirm("s1")
    question = worker.ask("s2", "ann", backend="d2")
    assert (await worker.hear("close"))[1:3] == [["s1"], Outcome.MOVED]
    assert await worker.hear("waiting") == ["waiting", question]
    assert await worker.admit("s3", "bob", backend="d2") == "d2", "others do not wait"
    worker.release("s1")
    assert (await worker.answer(question))[2] == "d2"
    assert links.registry.guests.count("w1.0") == 2


@pytest.mark.parametrize("waits", [True, False], ids=["while it waits", "once it is answered"])
async def test_what_is_given_up_is_forgotten(begin: Begin, waits: bool) -> None:
    worker = FakeWorker()
    links = await begin(worker)
    if waits:
        await worker.admit("s1", "ann", backend="d1")
    question = worker.ask("s2", "ann", backend="d2")
    if not waits:
        await worker.answer(question)
    await trio.testing.wait_all_tasks_blocked()
    worker.tell(["give_up", question])
    worker.release("s1")
    await worker.overhear()
    assert (len(links.registry.ledger), len(links.registry.guests)) == (0, 0)
    assert figure("porter_moves_waiting_logins") == 0


async def test_what_is_let_in_at_the_moment_that_it_is_given_up_is_forgotten(begin: Begin) -> None:
    worker = FakeWorker()
    links = await begin(worker)
    await worker.admit("s1", "ann", backend="d1")
    question = worker.ask("s2", "ann", backend="d2")
    await worker.hear("close")
    worker.tell(["release", [["s1", True]]], ["give_up", question])
    assert [message for message in await worker.overhear() if message[0] == "admitted"] == []
    assert (len(links.registry.ledger), len(links.registry.guests)) == (0, 0)


async def test_a_backend_that_fails_goes_down_for_all(begin: Begin) -> None:
    one, other = FakeWorker("w1.0"), FakeWorker("w1.1")
    links = await begin(one, other)
    for number in range(3):
        one.tell(["failed", "d1", f"u{number}", "connect: refused", False])
    _, version, memory = await other.hear("view")
    assert memory["backends"]["d1"]["health"][0] is False
    assert version == links.version
    assert await one.admit("s1", "ann", backend="d1") == Outcome.UNAVAILABLE


async def test_a_login_that_succeeds_makes_up_for_failures(begin: Begin) -> None:
    worker = FakeWorker()
    links = await begin(worker)
    for number in range(4):
        worker.tell(["failed", "d1", f"u{number}", "connect: refused", False])
        await worker.admit(f"s{number}", "ann", backend="d1")
        worker.confirm(f"s{number}")
    await worker.overhear()
    assert all(seen.up for seen in links.registry.cluster.snapshot(time.monotonic()))


async def test_nobody_is_led_where_his_worker_knows_no_backend(begin: Begin) -> None:
    """The view comes before an answer that needs it."""
    one, other = FakeWorker("w1.0"), FakeWorker("w1.1")
    links = await begin(one, other)
    links.registry.cluster.set_weight("d1", 7, time.monotonic())
    other.ask("s1", "ann")
    messages = await other.overhear()
    assert [message[0] for message in messages] == ["view", "admitted"]
    assert messages[0][2]["backends"]["d1"]["said"] == [None, 7]


NONSENSE: list[list[Any]] = [
    ["admit", 1],
    ["admit", 1, "s1", "ann", None, None, "file", True, "192.0.2.7", 4711],
    ["release", "s1"],
    ["release", [["s1"]]],
    ["confirm"],
    ["failed", "d1"],
    ["metrics", 5],
    ["used", []],
    ["lodgers", "no nonce", [["s9", "ann", "c", "l", "d1", "hash", 2, 1.0]]],
    ["report"],
    ["reported", "no nonce"],
    ["of a newer version", {"a": 1}],
    [{"no": "kind"}],
    [None],
]


@pytest.mark.parametrize("message", NONSENSE, ids=[str(message) for message in NONSENSE])
async def test_nonsense_ends_nothing(begin: Begin, message: list[Any]) -> None:
    worker = FakeWorker()
    links = await begin(worker)
    worker.tell(message)
    assert await worker.admit("s1", "ann") in ("d1", "d2")
    assert len(links.registry.guests) == 1


# --- what one says is passed on ---


async def test_failures_are_passed_on_and_told_to_newcomers(begin: Begin) -> None:
    one, other = FakeWorker("w1.0"), FakeWorker("w1.1")
    links = await begin(one, other)
    wrong = ["wrong", ["61", "62", "63", True, 0.0]]
    known = ["known", ["64", 0.0]]
    one.tell(wrong, known)
    assert await other.hear("wrong") == wrong
    assert await other.hear("known") == known
    assert [message for message in await one.overhear() if message[0] in ("wrong", "known")] == []
    newcomer = FakeWorker("w1.2")
    links.add(newcomer.name, end := Packets(newcomer.near_end()))
    await newcomer.report()
    told = [item[:4] for item in (await newcomer.hear("wrong"))[1:]]
    assert told == [["61", "", "63", True], ["", "62", "63", True]]
    assert (await newcomer.hear("known"))[1][0] == "64"
    newcomer.close()
    await trio.testing.wait_all_tasks_blocked()
    end.close()


async def test_what_a_user_used_is_told_where_he_has_sessions(begin: Begin) -> None:
    workers = [FakeWorker(f"w1.{number}") for number in range(3)]
    await begin(*workers)
    for number, name in enumerate(("ann", "ann", "bob")):
        await workers[number].admit(f"s{number}", name)
    workers[0].tell(["used", {"ann": [["all", 5]], "eve": [["all", 1]]}])
    assert await workers[1].hear("used") == ["used", {"ann": [["all", 5]]}]
    for worker in (workers[0], workers[2]):
        assert [message for message in await worker.overhear() if message[0] == "used"] == []


async def test_metrics_of_a_worker_end_with_him_but_for_what_is_counted(begin: Begin) -> None:
    worker = FakeWorker()
    links = await begin(worker)
    before = figure("porter_moves_total")
    worker.tell(["metrics", [["porter_moves_in_flight", [], 7], ["porter_moves_total", ["drain"], 2]]])
    worker.tell(["metrics", [["porter_backend_logins_waiting", ["d1"], 3]]])
    await worker.overhear()
    assert figure("porter_moves_in_flight") == 7
    assert links.logins_waiting("d1") == 3
    worker.die()
    await links.deserted()
    assert figure("porter_moves_in_flight") == 0
    assert figure("porter_moves_total") == before + 2
    assert links.logins_waiting("d1") == 0


# --- workers come and go ---


async def test_the_sessions_of_a_dead_worker_are_gone_at_once(begin: Begin) -> None:
    one, other = FakeWorker("w1.0"), FakeWorker("w1.1")
    settings = settings_of(limits={"connections_per_user": 1, "connections_per_backend": 2})
    links = await begin(one, other, settings=settings)
    assert await one.admit("a1", "ann", backend="d1") == "d1"
    assert await one.admit("a2", "bob", backend="d1", verified=False) == "d1"
    assert await other.admit("b1", "ann", backend="d1") == Outcome.LIMIT
    assert await other.admit("b2", "eve", backend="d1") == Outcome.UNAVAILABLE
    one.die()
    await trio.testing.wait_all_tasks_blocked()
    assert await other.admit("b1", "ann", backend="d1") == "d1"
    assert await other.admit("b2", "eve", backend="d1") == "d1"
    assert {guest.id for guest in links.registry.guests} == {"b1", "b2"}
    assert links.accepting == 1


async def test_a_worker_that_dies_with_logins_that_wait_leaves_nobody(begin: Begin) -> None:
    one, other = FakeWorker("w1.0"), FakeWorker("w1.1")
    links = await begin(one, other)
    await other.admit("b1", "ann", backend="d1")
    one.ask("a1", "ann", backend="d2")
    await other.hear("close")
    one.die()
    await trio.testing.wait_all_tasks_blocked()
    other.release("b1")
    await other.overhear()
    assert len(links.registry.ledger) == 0
    assert figure("porter_moves_waiting_logins") == 0


async def test_a_worker_that_does_not_read_holds_up_nobody(
    begin: Begin, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_link, "MOST_WAITING", 50)
    monkeypatch.setattr(worker_link, "FEW_WAITING", 10)
    monkeypatch.setattr(news, "_MOST_NEWS", 40)
    monkeypatch.setattr(links_module, "FEW_WAITING", 10)
    monkeypatch.setattr(worker_link.WorkerLink.post, "__defaults__", (50,))
    deaf, other = FakeWorker("w1.0"), FakeWorker("w1.1")
    links = await begin(deaf, other)
    before = figure("porter_link_messages_dropped_total")
    for number in range(100):
        other.tell(["wrong", ["61" * 15_000, "62", "63", True, 0.0]])
        assert await other.admit(f"b{number}", f"u{number}") in ("d1", "d2")
    for number in range(2, 200):
        links.registry.cluster.set_weight("d1", number, time.monotonic())
        links.close(["b1"], Outcome.MOVED, patience=0.0)
        links.show_changes()
        (link,) = [link for link in links if link.name == "w1.0"]
        link.post(["close", ["a1"], "moved", 0.0])
    assert link.packets.waiting <= 51
    assert figure("porter_link_messages_dropped_total") > before
    assert [event["worker"] for event in events if event["event"] == "steward.worker_behind"].count("w1.0") == 1
    weight = 0
    while weight != 199:  # once he reads he is told how things are
        links.show_changes()
        views = [message[2] for message in await deaf.overhear() if message[0] == "view"]
        weight = views[-1]["backends"]["d1"]["said"][1] if views else weight


# --- a steward follows another ---


async def test_a_new_steward_learns_who_there_is(begin: Begin, events: Events) -> None:
    one, other = FakeWorker("w1.0"), FakeWorker("w1.1")
    settings = settings_of(limits={"connections_per_user": 3})
    links = await begin(one, other, settings=settings)
    home = await one.admit("a1", "ann")
    links.registry.cluster.set_state(home, "drain", time.monotonic())
    links.show_changes()
    view = (await one.hear("view"))[1:]
    one.view, other.view = (view[0], view[1]), (view[0] - 1, None)
    one.lodgers = [lodger("a1", "ann", home, stage=1), lodger("a2", "bob", "d1")]
    other.lodgers = [lodger("b1", "ann", home), lodger("b2", "ann", home, stage=0)]
    links = await begin(one, other, settings=settings)
    assert links.version > view[0]
    assert {seen.name: seen.state for seen in links.registry.cluster.snapshot(time.monotonic())}[home] == "drain"
    assert len(links.registry.ledger) == 4
    assert await one.admit("a3", "ann") == home, "he lives there"
    assert await one.admit("a4", "ann") == Outcome.LIMIT, "two that count, and the third"
    other.release("b1")
    await trio.testing.wait_all_tasks_blocked()
    assert await one.admit("a4", "ann") == home
    assert [event["reported"] for event in events if event["event"] == "steward.began"] == [2, 2]
    one.die()
    other.die()
    await links.deserted()
    assert (len(links.registry.ledger), len(links.registry.guests)) == (0, 0)


async def test_nobody_is_admitted_until_all_have_reported(begin: Begin, autojump_clock: MockClock) -> None:
    one, late = FakeWorker("w1.0"), FakeWorker("w1.1", lodgers=[lodger("b1", "ann", "d1")])
    links = await begin(one, late, reporting=False)
    began = trio.current_time()
    await one.report()
    question = one.ask("a1", "ann", backend="d2")
    given_up = one.ask("a2", "bob")
    one.tell(["give_up", given_up])
    assert await one.overhear() == [["heard"]], "so that he does not believe that nobody is here"
    assert not links.is_open
    await late.report()
    assert (await late.hear("close"))[1] == ["b1"], "he lives elsewhere, by what is known now"
    late.release("b1")
    assert (await one.answer(question))[2] == "d2"
    assert trio.current_time() - began < HOLD_SECONDS + 10
    assert {guest.id for guest in links.registry.guests} == {"a1"}


async def test_who_does_not_report_in_time_is_heard_once_he_has(
    begin: Begin, events: Events, autojump_clock: MockClock
) -> None:
    one, late = FakeWorker("w1.0"), FakeWorker("w1.1", lodgers=[lodger("b1", "ann", "d1"), lodger("b2", "bob", "d2")])
    links = await begin(one, late, reporting=False)
    await one.report()
    began = trio.current_time()
    assert await one.admit("a1", "ann", backend="d2") == "d2"
    assert trio.current_time() - began <= HOLD_SECONDS + 0.1
    late.ask("b3", "tom")
    late.confirm("b3")
    late.release("b2")
    assert {guest.id for guest in links.registry.guests} == {"a1"}
    before = figure("porter_users_divided_total")
    await late.report()
    assert (await late.hear("close"))[1:3] == [["b1"], Outcome.MOVED], "where he is known to live he stays"
    assert figure("porter_users_divided_total") == before + 1
    assert {guest.id for guest in links.registry.guests} == {"a1", "b1", "b2"}
    assert await late.admit("b3", "tom") in ("d1", "d2")


async def test_what_ends_before_all_have_reported_is_not_restored(begin: Begin, autojump_clock: MockClock) -> None:
    one = FakeWorker("w1.0", lodgers=[lodger("a1", "ann", "d1"), lodger("a2", "ann", "d1", stage=1)])
    silent = FakeWorker("w1.1")
    links = await begin(one, silent, reporting=False)
    await one.report()
    one.release("a1")
    one.confirm("a2")
    await one.hear("view")
    assert {guest.id for guest in links.registry.guests} == {"a2"}
    assert links.registry.ledger.find("ann").sessions == 1  # type: ignore[union-attr]


async def test_a_worker_may_report_once_more(begin: Begin) -> None:
    """Where it has taken the steward for dead, and placed logins alone."""
    worker = FakeWorker()
    links = await begin(worker)
    nonce = links._nonce
    home = await worker.admit("s1", "ann")
    about = {"index": 0, "generation": 1, "pid": 1, "accepting": True}
    worker.tell(["report", nonce, links.version, None, about])
    worker.tell(["lodgers", nonce, [lodger("s1", "ann", home), lodger("s2", "bob", "d2", stage=1)]])
    worker.tell(["reported", nonce])
    await worker.overhear()
    assert {guest.id: guest.stage.name for guest in links.registry.guests} == {"s1": "OPENED", "s2": "COUNTED"}
    worker.release("s1", "s2")
    await worker.overhear()
    assert (len(links.registry.guests), len(links.registry.ledger)) == (0, 0)


async def test_whoever_reports_once_more_knows_best(begin: Begin) -> None:
    """While the steward was silent one session ended, one was placed elsewhere, and one answer is not read yet."""
    worker = FakeWorker()
    links = await begin(worker)
    nonce = links._nonce
    home = await worker.admit("s1", "ann")
    elsewhere = {"d1": "d2", "d2": "d1"}[home]
    await worker.admit("s2", "bob")
    worker.confirm("s1", "s2")
    await worker.admit("s3", "cid")
    about = {"index": 0, "generation": 1, "pid": 1, "accepting": True}
    worker.tell(["report", nonce, links.version, None, about])
    worker.tell(["lodgers", nonce, [lodger("s1", "ann", elsewhere)]])
    worker.tell(["reported", nonce])
    await worker.overhear()
    assert {guest.id for guest in links.registry.guests} == {"s1", "s3"}
    assert await worker.admit("s4", "ann") == elsewhere, "one user, one backend"
    worker.release("s1", "s3", "s4")
    await worker.overhear()
    assert (len(links.registry.guests), len(links.registry.ledger)) == (0, 0)


async def test_figures_are_asked_for_when_somebody_looks(begin: Begin, autojump_clock: MockClock) -> None:
    one, silent = FakeWorker("w1.0"), FakeWorker("w1.1")
    links = await begin(one, silent)
    before = figure("porter_users_divided_total")
    looked = []

    async def look() -> None:
        await links.news.refresh()
        looked.append(figure("porter_users_divided_total") - before)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        nursery.start_soon(look)
        await one.hear("scrape")
        one.tell(["metrics", [["porter_users_divided_total", [], 3]]], ["scraped"])
        await silent.hear("scrape")
        assert looked == []
    assert looked == [3, 3], "who does not answer is not waited for"
    silent.die()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await one.hear("scrape")
        one.tell(["scraped"])


async def test_users_at_two_backends_are_brought_together(begin: Begin) -> None:
    one = FakeWorker("w1.0", lodgers=[lodger("a1", "ann", "d1"), lodger("a2", "ann", "d1")])
    other = FakeWorker("w1.1", lodgers=[lodger("b1", "ann", "d2")])
    await begin(one, other)
    assert (await other.hear("close"))[1:3] == [["b1"], Outcome.MOVED]
    assert [message for message in await one.overhear() if message[0] == "close"] == []


async def test_a_worker_that_dies_before_it_reports_is_not_waited_for(begin: Begin, autojump_clock: MockClock) -> None:
    one, dying = FakeWorker("w1.0"), FakeWorker("w1.1")
    await begin(one, dying, reporting=False)
    await one.report()
    began = trio.current_time()
    question = one.ask("a1", "ann")
    dying.die()
    await one.answer(question)
    assert trio.current_time() - began < HOLD_SECONDS


async def test_dns_is_waited_for_where_nobody_remembers(nursery: trio.Nursery) -> None:
    discovery = {"dns": "mail.test.example", "scheme": "imap", "port": 143}
    settings = settings_of(backends={"servers": [], "discovery": discovery})
    asked = trio.Event()
    worker = FakeWorker()
    links = Links(settings, Throttle(settings.limits, key=bytes(32)))
    links.add(worker.name, end := Packets(worker.near_end()))
    nursery.start_soon(links.run, asked.wait)
    await worker.report()
    question = worker.ask("s1", "ann")
    assert [message for message in await worker.overhear() if message[0] == "refused"] == []
    assert not links.is_open
    asked.set()
    assert (await worker.answer(question))[2] == Outcome.UNAVAILABLE
    nursery.cancel_scope.cancel()
    end.close()
    worker.close()
