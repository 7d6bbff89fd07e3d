"""A proxy among others: where logins go, what is told and heard, and what becomes of all that without a server."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from proxy.app import fleet as module
from proxy.app import fleet_logins
from proxy.ledger import fleet as ledger_module
from proxy.ledger.fleet import DEAD_SECONDS, Fleet, FleetLost
from proxy.observe.metrics import METRICS
from proxy.outcome import Outcome, Refused
from proxy.routing.directions import released
from tests.app.fleet_proxies import PATIENCE_SECONDS, Proxy, make_brisk, new_proxy, proxies, until
from tests.servers.own_valkey import ask
from tests.servers.valkey import Valkey

pytestmark = pytest.mark.server

OTHER = {"d1": "d2", "d2": "d1"}


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    make_brisk(monkeypatch)


@pytest.fixture
async def pair(valkey: Valkey) -> AsyncIterator[tuple[Proxy, Proxy]]:
    async with proxies(valkey, "ab") as (a, b):
        yield a, b


async def known(valkey: Valkey, name: str = "ann") -> dict[str, str]:
    user: dict[str, str] = json.loads(await ask(valkey, "--json", "HGETALL", f"imap-porter:user:{name}")) or {}
    ended = not any(not field.startswith("@") for field in user)
    return {field: value for field, value in user.items() if field != "@left" and (ended or field != "@sticky")}


async def known_soon(valkey: Valkey, expected: dict[str, str], name: str = "ann") -> None:
    """The server knows soon that it is so."""
    with trio.move_on_after(PATIENCE_SECONDS):
        while await known(valkey, name) != expected:  # noqa: ASYNC110 - a server's doing
            await trio.sleep(0.02)
    assert await known(valkey, name) == expected


async def refused(proxy: Proxy, backend: str | None = None, name: str = "ann") -> Refused:
    with pytest.raises(Refused) as caught:
        await proxy.log_in(name, backend)
    return caught.value


# --- where logins go ---


async def test_a_login_is_known_at_once_and_its_end_soon(valkey: Valkey, pair: tuple[Proxy, Proxy]) -> None:
    a, _ = pair
    guest = await a.admit("ann", "d1")
    assert await known(valkey) == {"@backend": "d1", "a": "1 1"}
    a.registry.confirm(guest.id)
    another = await a.log_in()
    assert await known(valkey) == {"@backend": "d1", "a": "2 2"}
    a.end(guest)
    await known_soon(valkey, {"@backend": "d1", "a": "1 1"})
    a.end(another)
    await known_soon(valkey, {"@backend": "d1", "@sticky": "1"})


async def test_who_was_never_let_in_leaves_nothing(valkey: Valkey, pair: tuple[Proxy, Proxy]) -> None:
    a, _ = pair
    guest = await a.admit("ann", verified=False)
    assert await known(valkey) == {"@backend": guest.backend, "a": "1 0"}
    a.end(guest, opened=False)
    await known_soon(valkey, {})


async def test_whoever_has_sessions_elsewhere_joins_them_there(pair: tuple[Proxy, Proxy]) -> None:
    """Though this proxy would place him elsewhere."""
    a, b = pair
    first = await a.log_in()
    b.registry.cluster.set_state(first.backend, "drain", 0.0)
    second = await b.log_in()
    third = await b.log_in()
    assert {first.backend, second.backend, third.backend} == {first.backend}
    assert b.registry.ledger.why(second.id) == "hash"
    assert (await b.log_in("bob")).backend == OTHER[first.backend]
    assert a.closed == b.closed == []


async def test_room_is_counted_at_all_proxies(valkey: Valkey) -> None:
    async with proxies(valkey, "ab", limits={"connections_per_user": 3}) as (a, b):
        first = await a.log_in()
        await a.log_in()
        await b.log_in()
        assert b.room == 0
        for proxy in (a, b):
            refusal = await refused(proxy)
            assert (refusal.outcome, refusal.limit) == (Outcome.LIMIT, "connections_per_user")
        assert len(b.registry.ledger) == len(b.registry.guests) == 1
        a.end(first)
        await known_soon(valkey, {"@backend": first.backend, "a": "1 1", "b": "1 1"})
        await b.log_in()
        await refused(a)


async def test_he_goes_back_to_where_he_was_by_another_proxy(pair: tuple[Proxy, Proxy], valkey: Valkey) -> None:
    a, b = pair
    first = await a.log_in()
    a.end(first)
    await known_soon(valkey, {"@backend": first.backend, "@sticky": "1"})
    b.registry.cluster.set_weight(first.backend, 0, 0.0)
    assert (await b.log_in("bob")).backend == OTHER[first.backend]
    assert (await b.log_in()).backend == first.backend


async def test_where_he_may_not_go_back_he_waits_for_the_delay(valkey: Valkey) -> None:
    async with proxies(valkey, "ab", routing={"move_delay": 1.0}) as (a, b):
        guest = await a.log_in(backend="d1")
        began = trio.current_time()
        a.end(guest)
        await known_soon(valkey, {"@backend": "d1", "@sticky": "1"})
        assert (await b.log_in(backend="d2")).backend == "d2"
        assert 1.0 <= trio.current_time() - began < PATIENCE_SECONDS
        assert await known(valkey) == {"@backend": "d2", "b": "1 1"}


async def test_a_login_that_fails_does_not_make_it_forgotten_where_he_was(
    pair: tuple[Proxy, Proxy], valkey: Valkey
) -> None:
    """Nobody has to know a password for it, at least where the backend asks."""
    a, b = pair
    first = await a.log_in()
    a.end(first)
    remembered = {"@backend": first.backend, "@sticky": "1"}
    await known_soon(valkey, remembered)
    stranger = await b.admit(verified=False)
    assert stranger.backend == first.backend
    b.end(stranger, opened=False)
    await trio.sleep(0.3)
    await known_soon(valkey, remembered)


async def test_sessions_that_may_not_be_joined_are_told_to_end(pair: tuple[Proxy, Proxy]) -> None:
    a, b = pair
    first = [await a.log_in(backend="d1") for _ in range(3)]
    with capture_logs() as logged, trio.fail_after(PATIENCE_SECONDS):
        assert (await b.log_in(backend="d2")).backend == "d2"
    assert sorted(a.closed) == [guest.id for guest in first]
    assert (a.live, b.live) == ({}, {"ann": ["d2"]})
    told = {each["event"]: each for each in logged}
    assert (told["fleet.waits"]["name"], told["fleet.waits"]["others"]) == ("ann", 3)
    assert (told["fleet.order"]["kind"], told["fleet.order"]["sessions"]) == ("close", 3)


async def test_who_is_closed_at_all_proxies_and_comes_back_to_all_gets_in(pair: tuple[Proxy, Proxy]) -> None:
    """Each has sessions to end, and a login that waits for those of the other."""
    for proxy in pair:
        for _ in range(2):
            await proxy.log_in(backend="d1")
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            for proxy in pair * 3:
                nursery.start_soon(proxy.log_in, "ann", "d2")
    assert [proxy.live for proxy in pair] == [{"ann": ["d2"] * 3}] * 2


async def test_a_move_at_all_proxies_while_all_his_clients_come_back(pair: tuple[Proxy, Proxy]) -> None:
    for proxy in pair:
        await proxy.log_in(backend="d1")
    a, _ = pair
    assert a.registry.move("ann", "d2", until=None, reason="r", by="b") == 1

    async def come_back(proxy: Proxy) -> None:
        while proxy.live != {"ann": ["d2"]}:
            if not proxy.live:
                await proxy.log_in()
            await trio.sleep(0.01)

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            for proxy in pair:
                nursery.start_soon(come_back, proxy)


async def test_a_wait_has_an_end(pair: tuple[Proxy, Proxy], valkey: Valkey) -> None:
    a, b = pair
    a.stubborn = True
    await a.log_in(backend="d1")
    b.member._logins._patience = 0.3
    refusal = await refused(b, "d2")
    assert refusal.outcome is Outcome.UNAVAILABLE
    assert refusal.detail == "his 1 sessions at other proxies, at d1, have not ended"
    assert len(b.registry.ledger) == 0
    assert b.member._logins._turns == {}
    await known_soon(valkey, {"@backend": "d1", "a": "1 1"})


async def test_two_who_wait_for_the_same_do_so_at_the_same_time(pair: tuple[Proxy, Proxy], valkey: Valkey) -> None:
    a, b = pair
    a.stubborn = True
    await a.log_in(backend="d1")
    b.member._logins._patience = 2.0
    refusals: list[Refused] = []

    async def wait() -> None:
        refusals.append(await refused(b, "d2"))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
    assert 2.0 <= trio.current_time() - began < 3.5, "one patience, not one after the other"
    assert [refusal.outcome for refusal in refusals] == [Outcome.UNAVAILABLE] * 2
    assert (len(b.registry.ledger), len(b.registry.guests), b.member._logins._turns) == (0, 0, {})
    await known_soon(valkey, {"@backend": "d1", "a": "1 1"})


async def test_whoever_gives_up_leaves_no_trace(pair: tuple[Proxy, Proxy], valkey: Valkey) -> None:
    a, b = pair
    a.stubborn = True
    await a.log_in(backend="d1")
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(b.log_in, "ann", "d2")
        await trio.sleep(0.3)
        nursery.cancel_scope.cancel()
    assert (len(b.registry.ledger), len(b.registry.guests), b.member._logins._turns) == (0, 0, {})
    await known_soon(valkey, {"@backend": "d1", "a": "1 1"})
    with trio.move_on_after(0.0):
        await b.log_in("bob")
    await trio.sleep(0.3)
    assert (len(b.registry.ledger), b.member._logins._turns, await known(valkey, "bob")) == (0, {}, {})


@pytest.mark.parametrize("after", [0.0, 0.0005, 0.001, 0.002, 0.004])
async def test_whoever_gives_up_at_any_moment_leaves_no_trace(
    pair: tuple[Proxy, Proxy], valkey: Valkey, after: float
) -> None:
    _, b = pair
    for number in range(20):
        with trio.move_on_after(after):
            b.end(await b.admit(f"u{number % 3}"), opened=False)
    await trio.sleep(0.3)
    assert (len(b.registry.ledger), len(b.registry.guests), b.member._logins._turns) == (0, 0, {})
    for number in range(3):
        await known_soon(valkey, {}, f"u{number}")
    assert b.member.is_up


async def test_only_so_many_wait(pair: tuple[Proxy, Proxy], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_logins, "_MOST_WAITING", 3)
    a, b = pair
    a.stubborn = True
    await a.log_in(backend="d1")
    async with trio.open_nursery() as nursery:
        for _ in range(4):  # one asks
            nursery.start_soon(b.log_in, "ann", "d2")
        await trio.sleep(0.1)
        refusal = await refused(b, "d2")
        assert refusal.outcome is Outcome.UNAVAILABLE
        assert "wait already" in refusal.detail
        nursery.cancel_scope.cancel()


async def test_many_logins_of_one_user_end_at_one_backend(pair: tuple[Proxy, Proxy], valkey: Valkey) -> None:
    a, b = pair
    home = (await a.log_in("probe")).backend
    b.registry.cluster.set_state(home, "drain", 0.0)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            for proxy in pair:
                nursery.start_soon(proxy.log_in, f"u{number % 4}")
    for number in range(4):
        assert len({*a.live[f"u{number}"], *b.live[f"u{number}"]}) == 1
        await known_soon(valkey, {"@backend": a.live[f"u{number}"][0], "a": "5 5", "b": "5 5"}, f"u{number}")
    assert a.closed == b.closed == []
    assert a.member._logins._turns == b.member._logins._turns == {}


async def test_many_logins_of_one_user_are_asked_for_together(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the server is: nobody waits until all before him have been answered."""
    ask_now, batches = Fleet._ask, []

    async def ask_slowly(self: Fleet, questions: Sequence[Any]) -> list[Any]:
        batches.append(len(questions))
        await trio.sleep(0.1)
        return await ask_now(self, questions)

    async with proxies(valkey, "a", limits={"connections_per_user": 100}) as (a,):
        monkeypatch.setattr(Fleet, "_ask", ask_slowly)
        with capture_logs() as logged, trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for _ in range(60):
                    nursery.start_soon(a.log_in)
        asked = list(batches)
        assert {name: len({*backends}) for name, backends in a.live.items()} == {"ann": 1}
        assert len(a.live["ann"]) == 60
        assert len(asked) < 30, asked
        assert not logged, "nobody lost the fleet for it"
        await known_soon(valkey, {"@backend": a.live["ann"][0], "a": "60 60"})


def delayed(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
    """Something happens once, while a login's question is on its way."""
    stand = Fleet.stand
    done: list[str] = []

    async def stand_late(self: Fleet, name: str, *args: Any, **values: Any) -> Any:
        verdict = await stand(self, name, *args, **values)
        if not done:
            done.append(name)
            meanwhile()
            await trio.testing.wait_all_tasks_blocked(0.01)
        return verdict

    monkeypatch.setattr(Fleet, "stand", stand_late)


async def test_who_is_held_while_he_asks_does_not_get_in(
    pair: tuple[Proxy, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = pair
    delayed(monkeypatch, lambda: void(a.registry.hold("ann", until=None, reason="r", by="ops")))
    refusal = await refused(a)
    assert refusal.detail == "held by ops: r"
    assert (len(a.registry.ledger), a.live) == (0, {})


async def test_who_is_moved_while_he_asks_goes_there(
    pair: tuple[Proxy, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = pair
    delayed(monkeypatch, lambda: void(a.registry.move("ann", "d2", until=None, reason="r", by="ops")))
    with trio.fail_after(PATIENCE_SECONDS):
        assert (await a.log_in(backend="d1")).backend == "d2"


def void(_answer: object) -> None:
    """Nothing is made of it."""


# --- what is told without being asked ---


async def test_one_who_waits_for_his_move_and_gives_up_hides_nothing(pair: tuple[Proxy, Proxy], valkey: Valkey) -> None:
    """While a login of his waits nothing is told of him; afterwards it is."""
    a, _ = pair
    a.stubborn = True
    guests = [await a.log_in(backend="d1") for _ in range(3)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.log_in, "ann", "d2")
        await trio.testing.wait_all_tasks_blocked()
        a.end(*guests[:2])
        # As if its turn to be told of had come just before the login's.
        names = a.registry.ledger.take_touched(())
        assert names == ["ann"]
        fleet = a.member._logins.fleet
        assert fleet is not None
        await a.member._tell(fleet, names)
        nursery.cancel_scope.cancel()
    await known_soon(valkey, {"@backend": "d1", "a": "1 1"})


async def test_what_unverified_sessions_are_too_many_end(valkey: Valkey) -> None:
    async with proxies(valkey, "ab", limits={"connections_per_user": 2}) as (a, b):
        guests = [await a.admit("ann", "d1", verified=False) for _ in range(2)]
        for guest in guests:
            a.registry.confirm(guest.id)
        await known_soon(valkey, {"@backend": "d1", "a": "2 2"})
        late = await b.log_in("ann", "d1", verified=False)
        await until(lambda: b.too_many == [late.id])
        await known_soon(valkey, {"@backend": "d1", "a": "2 2"})
        assert a.too_many == []


async def test_all_is_said_again_before_it_is_forgotten(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AGAIN_SECONDS", 0.2)
    async with proxies(valkey, "a") as (a,):
        await a.log_in(backend="d1")
        await ask(valkey, "DEL", "imap-porter:user:ann", "imap-porter:here:a")
        await known_soon(valkey, {"@backend": "d1", "a": "1 1"})


async def test_who_was_taken_for_dead_says_all_again(pair: tuple[Proxy, Proxy], valkey: Valkey) -> None:
    """Whoever asked of a user meanwhile has thrown away what it had said of him."""
    a, b = pair
    for name in ("ann", "ann", "bob"):
        await a.log_in(name, "d1")
    with capture_logs() as logged:
        await ask(valkey, "DEL", "imap-porter:user:ann")
        await ask(valkey, "HSET", "imap-porter:members", "a", str(time.time() - DEAD_SECONDS - 5))
        await known_soon(valkey, {"@backend": "d1", "a": "2 2"})
        await known_soon(valkey, {"@backend": "d1", "a": "1 1"}, "bob")
        await a.until(up=True)
    (error,) = [each["error"] for each in logged if each["event"] == "fleet.lost"]
    assert error.endswith("this proxy was not heard of for 15 s")
    await until(lambda: a.member.others == b.member.others == 1)


async def test_where_somebody_is(pair: tuple[Proxy, Proxy], valkey: Valkey) -> None:
    a, b = pair
    assert await b.registry.whereabouts("ann") is None
    guest = await a.log_in(backend="d1")
    for proxy in pair:
        found = await proxy.registry.whereabouts("ann")
        assert found is not None
        assert (found.backend, found.sessions) == ("d1", 1)
    a.end(guest)
    await known_soon(valkey, {"@backend": "d1", "@sticky": "1"})
    found = await b.registry.whereabouts("ann")
    assert found is not None
    assert (found.backend, found.sessions) == ("d1", 0)
    assert found.sticky_until is not None


async def test_a_look_while_the_fleet_ends_says_nothing(pair: tuple[Proxy, Proxy], valkey: Valkey) -> None:
    a, b = pair
    await a.log_in(backend="d1")
    found: list[object] = []

    async def look() -> None:
        found.append(await b.registry.whereabouts("ann"))

    valkey.send(signal.SIGSTOP)
    try:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)  # on its way
            await trio.sleep(0.05)
            nursery.start_soon(look)  # it waits for that one
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert found == []
            b.member._lose(FleetLost("a test's doing"))
        assert found == [None, None]
        assert trio.current_time() - began < 0.9, "nobody waits for an answer that does not come"
        assert await b.registry.whereabouts("ann") is None
    finally:
        valkey.send(signal.SIGCONT)
    await b.until(up=True)
    there = await b.registry.whereabouts("ann")
    assert there is not None
    assert there.backend == "d1"


async def test_a_slow_look_does_not_lose_the_fleet(
    pair: tuple[Proxy, Proxy], valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that waits for the answer to others and then for its own may take too long, though the server does not."""
    a, b = pair
    for name in ("ann", "bob"):
        await a.log_in(name, "d1")
    monkeypatch.setattr(ledger_module, "_ANSWER_SECONDS", 3.0)
    ask_now = Fleet._ask

    async def ask_slowly(self: Fleet, questions: Sequence[Any]) -> list[Any]:
        await trio.sleep(1.8)
        return await ask_now(self, questions)

    monkeypatch.setattr(Fleet, "_ask", ask_slowly)
    found: dict[str, Any] = {}

    async def look(name: str) -> None:
        found[name] = await b.registry.whereabouts(name)

    with capture_logs() as logged:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look, "ann")
            await trio.sleep(0.1)
            nursery.start_soon(look, "bob")
        await trio.sleep(1.0)
    assert found["ann"].backend == "d1"
    assert found["bob"] is None
    assert b.member.is_up
    assert logged == []
    monkeypatch.undo()


# --- without a server ---


async def test_a_server_that_is_frozen_stops_nobody(pair: tuple[Proxy, Proxy], valkey: Valkey) -> None:
    a, b = pair
    first = await a.log_in(backend="d1")
    valkey.send(signal.SIGSTOP)
    try:
        began = trio.current_time()
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(a.log_in, f"u{number % 3}", "d1")
            await a.until(up=False)
            await a.log_in("bob", "d1")
        assert trio.current_time() - began < 8
        a.end(first)
        assert await b.registry.whereabouts("ann") is None
        assert a.member.status()["error"]
        assert a.member.status()["members"] == []
    finally:
        valkey.send(signal.SIGCONT)
    for proxy in pair:
        await proxy.until(up=True)
    await known_soon(valkey, {"@backend": "d1", "a": "1 1"}, "bob")
    await known_soon(valkey, {"@backend": "d1", "a": "7 7"}, "u0")
    assert "a" not in await known(valkey)


async def test_a_server_that_is_gone_and_comes_back_empty(pair: tuple[Proxy, Proxy], valkey: Valkey) -> None:
    a, b = pair
    await a.log_in(backend="d1")
    a.registry.hold("bob", until=None, reason="r", by="ops")
    await until(lambda: b.registry.directions.get("bob"))
    with capture_logs() as logged:
        valkey.stop()
        try:
            for proxy in pair:
                await proxy.until(up=False)
            with trio.fail_after(PATIENCE_SECONDS):
                assert (await b.log_in(backend="d1")).backend == "d1"
            await trio.sleep(0.5)
        finally:
            valkey.start()
        for proxy in pair:
            await proxy.until(up=True)
    await known_soon(valkey, {"@backend": "d1", "a": "1 1", "b": "1 1"})
    assert (await a.log_in(backend="d1")).backend == "d1"
    said = json.loads(await ask(valkey, "HGET", "imap-porter:said", "bob"))
    assert said == a.registry.directions.memory(["bob"]) == b.registry.directions.memory(["bob"])
    events = [each["event"] for each in logged]
    assert (events.count("fleet.lost"), events.count("fleet.joined")) == (2, 2), "each of both once"


async def test_data_that_is_lost_under_the_members(pair: tuple[Proxy, Proxy], valkey: Valkey) -> None:
    a, b = pair
    await a.log_in(backend="d1")
    await ask(valkey, "FLUSHALL")
    await known_soon(valkey, {"@backend": "d1", "a": "1 1"})
    for proxy in pair:
        await proxy.until(up=True)
    assert (await b.log_in(backend="d1")).backend == "d1"
    assert b.room == b.settings.limits.connections_per_user - 2


async def test_who_got_divided_ends_where_it_is_said_last(pair: tuple[Proxy, Proxy], valkey: Valkey) -> None:
    a, b = pair
    valkey.stop()
    try:
        for proxy in pair:
            await proxy.until(up=False)
        b.registry.cluster.set_state("d1", "drain", 0.0)
        a.registry.cluster.set_state("d2", "drain", 0.0)
        guests = {proxy.name: [await proxy.log_in() for _ in range(3)] for proxy in pair}
        assert (a.live, b.live) == ({"ann": ["d1"] * 3}, {"ann": ["d2"] * 3})
    finally:
        with capture_logs() as logged:
            valkey.start()
            for proxy in pair:
                await proxy.until(up=True)
            await until(lambda: bool(a.live) != bool(b.live))
            await trio.sleep(0.3)
    loser, winner = (a, b) if b.live else (b, a)
    assert sorted(loser.closed) == [guest.id for guest in guests[loser.name]]
    assert winner.closed == []
    assert [(each["users"], each["names"]) for each in logged if each["event"] == "fleet.divided"] == [(1, ["ann"])]
    assert (await loser.log_in()).backend == winner.live["ann"][0]


async def test_nothing_grows_while_nobody_hears_it(valkey: Valkey) -> None:
    async with proxies(valkey, "a") as (a,):
        valkey.stop()
        try:
            await a.until(up=False)
            for number in range(500):
                a.end(await a.admit(f"stranger{number}", verified=False), opened=False)
                a.orders.say_failure(["wrong", ["", "", str(number), True, 0.0]])
                a.registry.release_user("nobody")
            await trio.sleep(0.5)
            assert a.registry.ledger.take_touched(()) == []
        finally:
            valkey.start()
        await a.until(up=True)
        await trio.sleep(0.2)
        assert await ask(valkey, "XLEN", "imap-porter:orders") == "0", "that was said to nobody"


async def test_a_name_that_is_taken(pair: tuple[Proxy, Proxy], valkey: Valkey, nursery: trio.Nursery) -> None:
    a, _ = pair
    again = new_proxy("a", valkey, nursery, instance="another")
    with capture_logs() as logged:
        await nursery.start(again.run)
        await trio.sleep(0.5)
    assert not again.member.is_up
    assert 'another proxy is called "a"' in again.member.status()["error"]
    assert [each["event"] for each in logged] == ["fleet.name_taken"]
    assert (await again.log_in()).backend
    await a.stop(leaves=True)
    await again.until(up=True)


async def test_the_next_generation_goes_on(pair: tuple[Proxy, Proxy], valkey: Valkey, nursery: trio.Nursery) -> None:
    a, b = pair
    guest = await a.log_in(backend="d1")
    await a.stop()
    heir = new_proxy("a", valkey, nursery)
    heir.member.recall(json.loads(json.dumps(a.member.memory())))
    heir.registry.recall(a.registry.memory())
    heir.registry.guests.add(guest)
    heir.registry.ledger.restore([guest])
    await nursery.start(heir.run)
    assert heir.member.is_up
    assert await known(valkey) == {"@backend": "d1", "a": "1 1"}
    await until(lambda: heir.member.others == b.member.others == 1)


async def test_who_comes_anew_under_another_name_counts_once(valkey: Valkey, nursery: trio.Nursery) -> None:
    """A reload of settings whose `fleet.name` is another one: what the old name had counts no more, at once."""
    limits = {"connections_per_user": 3}
    async with proxies(valkey, "ab", limits=limits) as (a, b):
        guests = [await a.log_in(backend="d1") for _ in range(2)]
        await a.stop()
        heir = new_proxy("z", valkey, nursery, instance="a", limits=limits)
        heir.member.recall(json.loads(json.dumps(a.member.memory())))
        for guest in guests:
            heir.registry.guests.add(guest)
        heir.registry.ledger.restore(guests)
        await nursery.start(heir.run)
        assert heir.member.is_up
        with trio.fail_after(5):
            await heir.log_in(backend="d1")
        assert heir.room == 0
        await known_soon(valkey, {"@backend": "d1", "z": "3 3"})
        assert (await refused(b)).outcome is Outcome.LIMIT
        assert sorted((await ask(valkey, "HKEYS", "imap-porter:members")).split()) == ["b", "z"]
        await until(lambda: b.member.others == 1)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("within", [False, True])
async def test_a_mistake_of_ours_does_not_end_the_steward(
    pair: tuple[Proxy, Proxy], valkey: Valkey, monkeypatch: pytest.MonkeyPatch, within: bool
) -> None:
    """Before this proxy is a member, or while it is one."""
    a, b = pair
    await a.log_in(backend="d1")
    times = []

    async def crash(*args: Any, **values: Any) -> Any:
        times.append(trio.current_time())
        if len(times) <= (1 if within else 3):
            raise RuntimeError("a test's doing")
        return await undisturbed(*args, **values)

    target: tuple[object, str] = (a.member, "_keep_telling") if within else (a.orders, "catch_up")
    undisturbed = getattr(*target)
    monkeypatch.setattr(*target, crash)
    with capture_logs() as logged:
        a.member._lose(FleetLost("a test's doing"))
        await until(lambda: times)
        await a.until(up=False)
        assert (await a.log_in("bob", "d1")).backend == "d1", "mail goes on"
        await until(lambda: len(times) > (1 if within else 3))
        await a.until(up=True)
    crashes = [each for each in logged if each["event"] == "fleet.crashed"]
    assert [each["log_level"] for each in crashes] == ["error"], "once per spell"
    assert not a.ended.is_set()
    assert a.member.status()["error"] is None
    await known_soon(valkey, {"@backend": "d1", "a": "1 1"}, "bob")
    assert (await b.log_in(backend="d1")).backend == "d1"
    await known_soon(valkey, {"@backend": "d1", "a": "1 1", "b": "1 1"})


@pytest.mark.parametrize("busy", [False, True])
async def test_who_goes_for_good_says_so(pair: tuple[Proxy, Proxy], valkey: Valkey, busy: bool) -> None:
    a, b = pair
    await a.log_in(backend="d1")
    async with trio.open_nursery() as nursery:

        async def be_busy() -> None:
            while True:
                a.end(await a.log_in("bob"))
                await trio.lowlevel.checkpoint()

        if busy:
            for _ in range(3):
                nursery.start_soon(be_busy)
            await trio.sleep(0.1)
        await a.stop(leaves=True)
        nursery.cancel_scope.cancel()
    assert await ask(valkey, "HKEYS", "imap-porter:members") == "b"
    with trio.fail_after(PATIENCE_SECONDS):
        assert (await b.log_in(backend="d2")).backend == "d2", "nobody waits for sessions of his"


# --- what administrators say ---


async def test_what_is_said_of_a_user_holds_everywhere(pair: tuple[Proxy, Proxy]) -> None:
    a, b = pair
    guest = await b.log_in(backend="d1")
    a.registry.move("ann", "d2", until=None, reason="a full disk", by="ops")
    await until(lambda: b.closed == [guest.id])
    assert b.registry.directions.memory() == a.registry.directions.memory()
    with trio.fail_after(PATIENCE_SECONDS):
        assert (await b.log_in(backend="d1")).backend == "d2"
    b.registry.hold("ann", until=time.time() + 60, reason="a copy", by="ops")
    await until(lambda: a.registry.directions.memory() == b.registry.directions.memory())
    assert (await refused(a)).detail == "held by ops: a copy"
    assert a.registry.release_user("ann") is not None
    await until(lambda: not len(b.registry.directions))
    with trio.fail_after(PATIENCE_SECONDS):
        await b.log_in()


async def test_what_was_said_while_one_was_away(
    pair: tuple[Proxy, Proxy], valkey: Valkey, nursery: trio.Nursery
) -> None:
    a, b = pair
    for name in ("ann", "bob"):
        a.registry.hold(name, until=None, reason="r", by="ops")
    await until(lambda: len(b.registry.directions) == 2)
    await b.stop()
    a.registry.release_user("ann")
    a.registry.hold("cid", until=None, reason="r", by="ops")
    b.registry.hold("dan", until=None, reason="r", by="ops")
    b.registry.release_user("bob")
    await trio.sleep(0.3)
    heir = new_proxy("b", valkey, nursery)
    heir.registry.recall(b.registry.memory())
    heir.member.recall(json.loads(json.dumps(b.member.memory())))
    await nursery.start(heir.run)
    await until(lambda: {*heir.registry.directions} == {*a.registry.directions} == {"cid", "dan"})


async def test_what_is_over_harms_nobody(pair: tuple[Proxy, Proxy], valkey: Valkey) -> None:
    """Its end has come, and a server that was away has it still."""
    a, b = pair
    now = time.time()
    rows = {
        "ann": [["ann", None, now - 60, "r", "ops", now - 600, 1]],
        "bob": [["bob", None, now - 8 * 86400, "r", "ops", now - 9 * 86400, 2]],
        "cid": [["cid", None, now - 60, "r", "ops", now, 3], ["cid", "d1", None, "r", "ops", now, 4]],
    }
    guests = [await a.log_in(name, "d1") for name in rows]
    for name, said in rows.items():
        await ask(valkey, "HSET", "imap-porter:said", name, json.dumps(said, separators=(",", ":")))
    a.member._lose(FleetLost("a test's doing"))
    await a.until(up=False)
    await a.until(up=True)
    b.orders.say("said", list(rows))
    await until(lambda: a.registry.directions.get("cid"))
    await trio.sleep(0.3)
    assert a.closed == []
    assert {*a.registry.guests} == {*guests}
    said_of_cid = a.registry.directions.get("cid")
    assert said_of_cid is not None
    assert said_of_cid.held is None
    assert "bob" not in (await ask(valkey, "HKEYS", "imap-porter:said")).split()
    for name in rows:
        assert (await a.log_in(name, "d1")).backend == "d1"


async def test_what_is_said_while_it_is_being_told_is_told_as_well(
    pair: tuple[Proxy, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    put = Fleet.put_said
    again = ["d1"]

    async def put_late(self: Fleet, said: Any) -> None:
        await put(self, said)
        if again:
            a.registry.move("ann", again.pop(), until=None, reason="r", by="ops")

    monkeypatch.setattr(Fleet, "put_said", put_late)
    a.registry.move("ann", "d2", until=None, reason="r", by="ops")
    await until(lambda: not again)

    def at_d1() -> bool:
        said = b.registry.directions.get("ann")
        return said is not None and said.backend == "d1"

    await until(at_d1, 5)


async def test_a_release_is_known_to_those_who_come_late(pair: tuple[Proxy, Proxy], valkey: Valkey) -> None:
    """Said while the server was away, and all was lost there: whoever has not heard it must not say it again."""
    a, b = pair
    a.registry.hold("ann", until=None, reason="r", by="ops")
    await until(lambda: b.registry.directions.get("ann"))
    for proxy in pair:
        proxy.member._lose(FleetLost("a test's doing"))
    a.registry.release_user("ann")
    valkey.ask("FLUSHALL")
    for proxy in pair:
        await proxy.until(up=True)
    await until(lambda: b.registry.directions.get("ann") is None)
    await trio.sleep(0.5)
    assert a.registry.directions.get("ann") is None
    # And whoever comes anew, with the memory of somebody who has not heard it.
    b.registry.directions.put("ann", None, until=None, reason="r", by="ops", since=time.time() - 60)
    b.member._lose(FleetLost("a test's doing"))
    await b.until(up=False)
    await b.until(up=True)
    assert b.registry.directions.get("ann") is None


async def test_a_release_holds_nobody_where_a_clock_is_behind(
    pair: tuple[Proxy, Proxy], valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release is put down as a word that is over: by that clock it is not yet."""
    a, b = pair

    def released_ahead(name: str, now: float) -> list[list[Any]]:
        return released(name, now + 60)

    monkeypatch.setattr(module, "released", released_ahead)
    a.registry.move("ann", "d1", until=None, reason="r", by="ops")
    await until(lambda: b.registry.directions.get("ann"))
    guest = await b.log_in()
    heard = len(b.kicked)
    a.registry.release_user("ann")
    await until(lambda: not a.member._unsaid)
    # What is heard after that has been heard.
    a.member.kick({"user": "nobody"})
    await until(lambda: len(b.kicked) > heard)
    assert b.registry.directions.get("ann") is None
    assert (await b.log_in()).backend == "d1"
    b.member._lose(FleetLost("a test's doing"))  # and as one who reads it when he comes
    await b.until(up=False)
    await b.until(up=True)
    assert b.registry.directions.get("ann") is None
    assert b.closed == a.closed == []
    assert guest in [*b.registry.guests]


async def test_what_is_said_outlasts_a_server_that_forgets(pair: tuple[Proxy, Proxy], valkey: Valkey) -> None:
    """In the very moment that somebody reads there."""
    a, b = pair
    a.registry.hold("ann", until=None, reason="r", by="ops")
    await until(lambda: b.registry.directions.get("ann"))
    valkey.ask("DEL", "imap-porter:said")
    a.orders.say("said", ["ann"])
    b.member._lose(FleetLost("a test's doing"))
    await b.until(up=False)
    await b.until(up=True)
    assert b.registry.directions.get("ann") is not None
    assert "ann" in await ask(valkey, "HKEYS", "imap-porter:said")


async def test_directions_of_nobody_are_not_sessions(pair: tuple[Proxy, Proxy], valkey: Valkey) -> None:
    """Who was released is remembered there for a while, and at no proxy."""
    a, b = pair
    for number in range(50):
        a.registry.hold(f"u{number}", until=None, reason="r", by="ops")
        a.registry.release_user(f"u{number}")
    await until(lambda: not a.member._unsaid)
    assert await ask(valkey, "HLEN", "imap-porter:said") == "50"
    await until(lambda: not [*b.registry.directions])


@pytest.mark.parametrize(
    "memory",
    [{}, {"unsaid": 5, "name": "b"}, {"unsaid": {}}, {"unsaid": ["ann"], "name": 5}, {"unsaid": [5], "name": "a"}],
)
async def test_a_memory_that_makes_no_sense(valkey: Valkey, nursery: trio.Nursery, memory: dict[str, Any]) -> None:
    proxy = new_proxy("a", valkey, nursery)
    proxy.member.recall(memory)
    assert proxy.member.memory() == {"unsaid": [], "name": "a"}


# --- orders ---


async def test_kicks_are_heard(pair: tuple[Proxy, Proxy]) -> None:
    a, b = pair
    await until(lambda: a.member.others == 1)
    with capture_logs() as logged:
        assert a.member.kick({"user": "ann"}) == 1
        await until(lambda: b.kicked)
    assert (b.kicked, a.kicked) == ([{"user": "ann"}], [])
    assert [(each["kind"], each["member"], each["sessions"]) for each in logged if each["event"] == "fleet.order"] == [
        ("kick", "a", 1)
    ]


async def test_failures_are_heard_and_by_who_comes_later_with_their_age(
    pair: tuple[Proxy, Proxy], valkey: Valkey, nursery: trio.Nursery
) -> None:
    a, b = pair
    wrong, right = ["wrong", ["aa", "bb", "cc", True, 0.0]], ["known", ["bb", 0.0]]
    a.orders.say_failure(wrong)
    a.orders.say_failure(right)
    await until(lambda: len(b.failures) == 2)
    assert (b.failures, a.failures) == ([wrong, right], [])
    await trio.sleep(0.5)
    late = new_proxy("c", valkey, nursery)
    await nursery.start(late.run)
    ((kind, [*item, age]), (_, [person, since])) = late.failures
    assert (kind, item, person) == ("wrong", ["aa", "bb", "cc", True], "bb")
    assert 0.3 < age < PATIENCE_SECONDS
    assert 0.3 < since < PATIENCE_SECONDS
    alone = new_proxy("d", valkey, nursery)
    alone.orders._shares_failures = False
    await nursery.start(alone.run)
    alone.orders.say_failure(wrong)
    await trio.sleep(0.2)
    assert alone.failures == []
    assert len(b.failures) == 2


REFUSED = "fleet.order_refused"
GARBAGE: list[tuple[str, str]] = [
    ("close", "{}"),
    ("close", "[null, 5, [\"ann\"], {}]"),
    ("close", "null"),
    ("close", '["ann", ["ann"], ["ann", null], ["ann", "d2"], [null, "d1"], ["ann", "d1", 5]]'),
    ("kick", "[]"),
    ("kick", "{}"),
    ("kick", '{"user": 5}'),
    ("kick", '{"self": "x"}'),
    ("said", "[]"),
    ("said", "[5, null]"),
    ("said", '{"ann": 1}'),
    ("said", '["\\ud800"]'),
    ("close", '["\\ud800"]'),
    ("failures", "5"),
    ("failures", '[5, [], ["wrong"], ["wrong", 5, []], ["known", [null]], ["?", ["a"]], [["wrong"]]]'),
    ("failures", '[["wrong", ["a", "b", "c", true, 1e999], ["a", "b", "c", true, NaN]]]'),
    ("failures", f'[["wrong", ["a", "b", "c", true, 1{"0" * 400}]]]'),
    ("failures", f'[["wrong", {"[" * 500}{"]" * 500}]]'),
    ("", "[]"),
    ("future", '["ann"]'),
    ("close", "["),
]  # fmt: skip


async def test_orders_that_make_no_sense_are_passed_over(pair: tuple[Proxy, Proxy], valkey: Valkey) -> None:
    a, b = pair
    guest = await a.log_in(backend="d1")
    with capture_logs() as logged:
        for kind, body in GARBAGE:
            await ask(valkey, "XADD", "imap-porter:orders", "*", "member", "z", "kind", kind, "body", body)
        await ask(valkey, "XADD", "imap-porter:orders", "*", "x", "y")
        b.orders.say("kick", {"user": "ann"})
        await until(lambda: a.kicked)
    events = {each["event"] for each in logged}
    assert events <= {"fleet.order", "fleet.order_refused"}, "nobody lost the fleet for it"
    refused_by_both = [each["member"] for each in logged if (each["event"], each.get("kind")) == (REFUSED, "kick")]
    assert refused_by_both == ["z"] * 6, "three are objects"
    assert a.kicked[-1] == {"user": "ann"}
    assert a.closed == []
    assert [*a.registry.guests] == [guest]


SAID: list[str] = [
    "5", "null", "[]", "{}", "{", "[5]", '[["ann"]]', '[["bob", "d1", null, "", "", 0, 1]]',
    '[["ann", 5, 5, 5, 5, 5, 5]]',
    '[["ann", "d1", 1e999, "r", "b", 5, 1]]', '[["ann", "d1", null, "r", "b", NaN, 1]]', "[" * 100_000,
    f'[["ann", "d1", 1{"0" * 400}, "r", "b", 5, 1]]', f'[["ann", "d1", null, "r", "b", 5, 1{"0" * 5000}]]',
]  # fmt: skip


@pytest.mark.parametrize("text", SAID, ids=range(len(SAID)))
async def test_what_is_said_that_makes_no_sense_is_passed_over(
    pair: tuple[Proxy, Proxy], valkey: Valkey, text: str
) -> None:
    a, b = pair
    guest = await a.log_in(backend="d1")
    await ask(valkey, "HSET", "imap-porter:said", "ann", text)
    b.orders.say("said", ["ann"])
    b.orders.say("kick", {"user": "ann"})
    await until(lambda: a.kicked)
    a.member._lose(FleetLost("a test's doing"))
    await a.until(up=False)
    await a.until(up=True)
    assert a.closed == []
    assert [*a.registry.guests] == [guest]
    assert a.registry.directions.get("ann") is None


WRECKS: dict[str, tuple[str, ...]] = {
    "user": ("SET", "imap-porter:user:ann", "x"),
    "members": ("SET", "imap-porter:members", "x"),
    "instances": ("SET", "imap-porter:instances", "x"),
    "here": ("SET", "imap-porter:here:a", "x"),
    "said": ("SET", "imap-porter:said", "x"),
    "life": ("LPUSH", "imap-porter:life", "x"),
    "orders": ("SET", "imap-porter:orders", "x"),
    "user's numbers": ("HSET", "imap-porter:user:ann", "@left", "inf", "@backend", "d2"),
    "user's octets": ("HSET", "imap-porter:user:ann", "@backend", "\udcff", "z", "1 1"),
    "said octets": ("HSET", "imap-porter:said", "\udcff", "\udcfe"),
}


@pytest.mark.parametrize("words", WRECKS.values(), ids=WRECKS)
async def test_whatever_stands_there_mail_goes_on(valkey: Valkey, words: tuple[str, ...]) -> None:
    """And the fleet, as soon as it makes sense again."""
    async with proxies(valkey, "a") as (a,):
        key = words[1]
        await ask(valkey, "DEL", key)
        await ask(valkey, *words)
        with capture_logs() as logged, trio.fail_after(PATIENCE_SECONDS):
            for _ in range(3):
                guest = await a.log_in(backend="d1")
                await trio.sleep(0.1)
                a.end(guest)
                await trio.sleep(0.1)
            guest = await a.log_in(backend="d1")
        assert not [each for each in logged if each["log_level"] == "error"]
        await ask(valkey, "DEL", key)
        await a.until(up=True)
        a.end(guest)
        await known_soon(valkey, {"@backend": "d1", "@sticky": "1"})


async def test_figures(valkey: Valkey) -> None:
    def figure(name: str) -> float:
        text = "".join(line for line in METRICS.exposition()[0].decode().splitlines() if line.startswith(f"{name} "))
        return float(text.rpartition(" ")[2])

    async with proxies(valkey, "ab") as (a, b):
        lost, waits = figure("porter_fleet_lost_total"), figure("porter_fleet_waits_total")
        for member in "ab":
            await until(lambda member=member: figure(f'porter_fleet_members{{member="{member}"}}') == 2)  # type: ignore[misc]
            assert figure(f'porter_fleet_up{{member="{member}"}}') == 1
        await a.log_in(backend="d1")
        await b.log_in(backend="d2")
        assert figure("porter_fleet_waits_total") == waits + 1
        assert figure("porter_fleet_request_duration_seconds_count") >= 2
        await b.stop()
        a.member._lose(FleetLost("a test's doing"))
        await until(lambda: figure("porter_fleet_lost_total") == lost + 1)
        await a.until(up=True)
    for member in "ab":
        assert figure(f'porter_fleet_up{{member="{member}"}}') == 0
        assert figure(f'porter_fleet_members{{member="{member}"}}') == 0
