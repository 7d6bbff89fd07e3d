"""Placement, sessions and what the next registry is told of both."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from proxy.app.overseer import Overseer
from proxy.app.registry import Registry
from proxy.backends.discovered import Found
from proxy.backends.pool import Pool
from proxy.ledger.guests import Guest
from proxy.ledger.resident import Stage
from proxy.model import Identity
from proxy.outcome import Outcome, Refused
from proxy.settings.addresses import parse_backend_url
from proxy.settings.models import Server, Settings
from tests.app.fake_workers import settings_of

OPENED = Stage.OPENED


class Closer:
    """Notes who has to end."""

    def __init__(self) -> None:
        self.closed: list[tuple[list[str], Outcome, float]] = []

    def close(self, session_ids: Sequence[str], outcome: Outcome, *, patience: float) -> None:
        self.closed.append(([*session_ids], outcome, patience))

    @property
    def ids(self) -> list[str]:
        return sorted(session_id for session_ids, _, _ in self.closed for session_id in session_ids)


def guest(session_id: str, name: str, backend: str = "", stage: Stage = Stage.TRYING) -> Guest:
    return Guest(session_id, name, "192.0.2.7:4711", "imaps", "w1.0", 0.0, backend, stage)


def identity(name: str, backend: str | None = None, *, verified: bool = True) -> Identity:
    return Identity(name, "file", backend, verified=verified)


def overseen(settings: Settings) -> tuple[Registry, Overseer, Closer]:
    closer = Closer()
    registry = Registry(settings, closer)
    return registry, Overseer(settings, registry, Pool(settings.backends, settings.timeouts)), closer


def refused(registry: Registry, session_id: str, who: Identity) -> Refused:
    with pytest.raises(Refused) as caught:
        registry.admit_now(guest(session_id, who.name), who)
    return caught.value


async def test_a_session_comes_and_goes() -> None:
    registry = Registry(settings_of(limits={"connections_per_user": 2}), Closer())
    admitted = registry.admit_now(guest("s1", "ann"), identity("ann", "d2"))
    assert admitted is not None
    assert (admitted.backend, admitted.why, admitted.room) == ("d2", "override", 1)
    assert admitted.epoch == registry.cluster.epoch
    known = registry.guests.get("s1")
    assert known is not None
    assert (known.backend, known.why, known.stage) == ("d2", "override", Stage.COUNTED)
    registry.confirm("s1")
    assert known.stage is OPENED
    registry.release("s1", opened=True)
    registry.release("s1", opened=True)
    registry.confirm("s1")
    assert (len(registry.guests), len(registry.ledger)) == (0, 0)


async def test_what_is_refused_leaves_nothing() -> None:
    registry = Registry(settings_of(limits={"connections_per_user": 1}), Closer())
    registry.admit_now(guest("s1", "ann"), identity("ann"))
    assert refused(registry, "s2", identity("ann")).limit == "connections_per_user"
    assert refused(registry, "s3", identity("bob", "d9")).outcome is Outcome.UNAVAILABLE
    assert len(registry.guests) == 1


async def test_unverified_logins_may_not_take_a_users_places() -> None:
    registry = Registry(settings_of(limits={"connections_per_user": 1}), Closer())
    for number in range(3):
        admitted = registry.admit_now(guest(f"s{number}", "ann"), identity("ann", verified=False))
        assert admitted is not None
        assert admitted.room == 1
    registry.confirm("s0")
    with pytest.raises(Refused):
        registry.confirm("s1")
    registry.release("s1", opened=True)


RATE = {"rate": 2, "per": 60.0}


@pytest.mark.parametrize("limit", ["logins_per_user", "logins_per_address"])
async def test_too_many_logins_by_time(limit: str, autojump_clock: MockClock) -> None:
    registry = Registry(settings_of(limits={limit: RATE}), Closer())
    for number in range(2):
        assert registry.admit_now(guest(f"s{number}", "ann"), identity("ann")) is not None
        registry.confirm(f"s{number}")
        registry.release(f"s{number}", opened=True)
    assert refused(registry, "s2", identity("ann")).limit == limit
    assert refused(registry, "s2", identity("ann", verified=False)).limit == limit
    await trio.sleep(60)
    assert registry.admit_now(guest("s2", "ann"), identity("ann")) is not None


async def test_who_fails_at_the_backend_takes_no_login_from_a_user() -> None:
    registry = Registry(settings_of(limits={"logins_per_user": RATE}), Closer())
    for number in range(10):
        assert registry.admit_now(guest(f"s{number}", "ann"), identity("ann", verified=False)) is not None
        registry.release(f"s{number}", opened=False)
    assert registry.admit_now(guest("s10", "ann"), identity("ann", verified=False)) is not None


async def test_memory_outlives_its_registry() -> None:
    before, overseer, _ = overseen(settings_of())
    for number in range(4):
        before.admit_now(guest(f"s{number}", f"u{number}"), identity(f"u{number}"))
        before.confirm(f"s{number}")
    homes = {f"u{number}": before.ledger.find(f"u{number}").backend for number in range(4)}  # type: ignore[union-attr]
    for number in range(4):
        before.release(f"s{number}", opened=True)
    before.cluster.set_weight("d1", 3, 0.0)
    for _ in range(3):
        overseer._checked("d2", "connect: refused")
    memory = json.loads(json.dumps(before.memory()))

    after, _, _ = overseen(settings_of())
    after.recall(memory)
    assert {name: after.ledger.find(name).backend for name in homes} == homes  # type: ignore[union-attr]
    assert {seen.name: (seen.weight, seen.up) for seen in after.cluster.snapshot(0.0)} == {
        "d1": (3, True),
        "d2": (1, False),
    }
    assert after.cluster.epoch == before.cluster.epoch


@pytest.mark.parametrize(
    "memory", [{}, {"cluster": 5, "ledger": [], "drains": None}, {"cluster": {}, "ledger": {"pins": 1}, "drains": {}}]
)
async def test_a_memory_that_makes_no_sense_is_passed_over(memory: dict[str, object]) -> None:
    registry = Registry(settings_of(), Closer())
    registry.recall(memory)
    assert registry.admit_now(guest("s1", "ann"), identity("ann")) is not None


async def test_whoever_was_to_leave_is_told_again(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    settings = settings_of(backends={"failover": 1.0, "disconnect_spread": 0.01})
    before, overseer, _ = overseen(settings)
    for _ in range(3):
        overseer._checked("d2", "connect: refused")
    before.cluster.tick(1e9)
    before.cluster.set_state("d1", "down", 1e9)
    memory = before.memory()

    after, overseer, closer = overseen(settings)
    after.recall(memory)
    restored = [guest("s1", "ann", "d1", OPENED), guest("s2", "bob", "d2", OPENED), guest("s3", "eve", "d2", OPENED)]
    after.ledger.restore(restored)
    overseer.resume()
    nursery.start_soon(after.ledger.run)
    await trio.sleep(1)
    assert set(closer.ids) == {"s1", "s2", "s3"}
    assert {outcome for ids, outcome, _ in closer.closed if "s1" in ids} == {Outcome.DRAINED}


async def test_a_drain_goes_on(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    before, _, _ = overseen(settings_of())
    before.admit_now(guest("s0", "tom"), identity("tom"))
    before.cluster.set_state("d1", "drain", 0.0)
    before.drain("d1", 600.0)
    before.drain("d2", 600.0)
    before.undrain("d2")
    await trio.sleep(500)
    memory = before.memory()

    after, overseer, closer = overseen(settings_of())
    after.recall(memory)
    after.ledger.restore([guest(f"s{number}", f"u{number}", "d1", OPENED) for number in range(10)])
    overseer.resume()
    nursery.start_soon(after.ledger.run)
    await trio.sleep(101)
    assert len(set(closer.ids)) == 10
    assert after.memory()["drains"] == {}


async def test_where_dns_finds_a_backend_is_told_to_others() -> None:
    registry, overseer, _ = overseen(settings_of())
    server = Server(name="d3", url=parse_backend_url("imap://d3.test.example"))
    overseer._found([Found(server, ("192.0.2.3",))])
    told = registry.revision
    overseer._found([Found(server, ("192.0.2.3",))])
    assert registry.revision == told
    overseer._found([Found(server, ("192.0.2.4",))])
    assert registry.revision > told
    assert registry.view()["backends"]["d3"]["addresses"] == ["192.0.2.4"]
