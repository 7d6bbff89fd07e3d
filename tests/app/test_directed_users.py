"""Users whom administrators move, hold and release: what becomes of their sessions and of their next logins."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from trio.testing import MockClock

from proxy.app import registry as registry_module
from proxy.app.registry import Registry
from proxy.outcome import Outcome, Refused
from proxy.routing import directions
from proxy.routing.directions import TooMany
from tests.app.fake_workers import settings_of
from tests.app.test_registry import OPENED, Closer, guest, identity, overseen

OTHER = {"d1": "d2", "d2": "d1"}


class Told(list[list[str]]):
    """Of whom others have to be told."""

    def __call__(self, names: list[str]) -> None:
        self.append(names)


def furnished(*session_ids: str, name: str = "ann", backend: str = "d1") -> tuple[Registry, Closer, Told]:
    """A registry, and a user with these sessions at that backend."""
    closer, told = Closer(), Told()
    registry = Registry(settings_of(), closer)
    registry.on_directions = told
    for session_id in session_ids:
        assert registry.admit_now(guest(session_id, name), identity(name, backend)) is not None
        registry.confirm(session_id)
    return registry, closer, told


def move(registry: Registry, backend: str, *, name: str = "ann", until: float | None = None) -> int:
    return registry.move(name, backend, until=until, reason="a full disk", by="ops")


def hold(registry: Registry, *, name: str = "ann", until: float | None = None) -> int:
    return registry.hold(name, until=until, reason="a copy", by="ops")


def log_in(registry: Registry, session_id: str, backend: str | None = None) -> str:
    """Where ann gets in, at once; or why not."""
    try:
        admitted = registry.admit_now(guest(session_id, "ann"), identity("ann", backend))
    except Refused as refusal:
        return refusal.detail
    return "waits" if admitted is None else admitted.backend


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time that people have, which goes on when told."""
    now = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(registry_module, "time", SimpleNamespace(time=lambda: now.now, monotonic=time.monotonic))
    return now


async def test_a_move_of_somebody_who_is_not_there() -> None:
    registry, closer, told = furnished()
    for number, backend in enumerate(("d1", "d2")):
        assert move(registry, backend) == 0
        assert log_in(registry, f"s{number}", backend="d1") == backend
        registry.release(f"s{number}", opened=False)
    assert (closer.closed, told) == ([], [["ann"], ["ann"]])


async def test_a_move_ends_his_sessions_elsewhere(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    registry, closer, _ = furnished("s1", "s2")
    nursery.start_soon(registry.ledger.run)
    assert move(registry, "d2") == 2
    ((ids, outcome, patience),) = closer.closed
    assert (sorted(ids), outcome) == (["s1", "s2"], Outcome.MOVED)
    assert patience == settings_of().routing.move_patience
    assert log_in(registry, "s3") == "waits"
    registry.release("s1", opened=True)
    assert log_in(registry, "s3") == "waits", "one session is still there"
    registry.release("s2", opened=True)
    await trio.sleep(1)
    assert log_in(registry, "s3") == "d2"
    assert registry.guests.get("s3").why == "override"  # type: ignore[union-attr]


async def test_a_move_to_where_he_is() -> None:
    registry, closer, told = furnished("s1")
    assert move(registry, "d1") == 0
    assert (closer.closed, told) == ([], [["ann"]])
    assert log_in(registry, "s2", backend="d2") == "d1", "whatever his source says from now on"


async def test_a_hold_ends_all_his_sessions_and_refuses_the_next(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    registry, closer, _ = furnished("s1", "s2")
    nursery.start_soon(registry.ledger.run)
    assert hold(registry) == 2
    assert closer.ids == ["s1", "s2"]
    assert {outcome for _, outcome, _ in closer.closed} == {Outcome.MOVED}
    assert log_in(registry, "s3") == "held by ops: a copy", "nor does he wait for sessions that end"
    for session_id in ("s1", "s2"):
        registry.release(session_id, opened=True)
    await trio.sleep(1)
    assert log_in(registry, "s3") == "held by ops: a copy"
    assert registry.release_user("ann") is not None
    assert log_in(registry, "s3") in OTHER


async def test_who_waits_for_his_move_hears_that_he_is_held(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    registry, _, _ = furnished("s1")
    nursery.start_soon(registry.ledger.run)
    move(registry, "d2")
    refusals: list[str] = []

    async def wait() -> None:
        try:
            await registry.admit(guest("s2", "ann"), identity("ann"))
        except Refused as refusal:
            refusals.append(refusal.detail)

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    hold(registry)
    assert refusals == []
    registry.release("s1", opened=True)
    await trio.sleep(1)
    assert refusals == ["held by ops: a copy"]
    assert len(registry.guests) == len(registry.ledger) == 0


async def test_moved_while_he_is_held(nursery: trio.Nursery, autojump_clock: MockClock, clock: SimpleNamespace) -> None:
    """The natural order: hold, copy the mail, move. What ends first takes the other with it nowhere."""
    registry, _, told = furnished()
    hold(registry, until=1060.0)
    move(registry, "d2")
    assert log_in(registry, "s1", backend="d1") == "held by ops: a copy"
    clock.now = 1060.0
    with capture_logs() as logged:
        registry.expire_directions()
        registry.expire_directions()
    assert [(each["event"], each["name"], each["log_level"]) for each in logged] == [
        ("registry.direction_ended", "ann", "info")
    ]
    assert told == [["ann"], ["ann"], ["ann"]]
    assert log_in(registry, "s1", backend="d1") == "d2"


async def test_released() -> None:
    registry, closer, told = furnished()
    assert registry.release_user("ann") is None
    assert told == []
    move(registry, "d2")
    hold(registry)
    was = registry.release_user("ann")
    assert was is not None
    assert (was.backend, was.held is not None, told) == ("d2", True, [["ann"]] * 3)
    assert log_in(registry, "s1", backend="d1") == "d1"
    assert closer.closed == []


async def test_who_is_released_stays_until_his_sessions_are_gone(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    registry, closer, _ = furnished()
    nursery.start_soon(registry.ledger.run)
    home = registry.cluster.place(identity("ann")).home
    move(registry, OTHER[home])
    assert log_in(registry, "s1") == OTHER[home]
    registry.confirm("s1")
    registry.release_user("ann")
    assert log_in(registry, "s2") == OTHER[home]
    assert closer.closed == []
    registry.release("s2", opened=True)
    registry.cluster.set_state(OTHER[home], "drain", 0.0)
    registry.drain(OTHER[home], 0.0)
    await trio.sleep(1)
    assert closer.ids == ["s1"], "nothing binds him there any more"
    registry.release("s1", opened=True)
    await trio.sleep(1)
    assert log_in(registry, "s3") == home


async def test_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directions, "MOST", 2)
    registry, closer, told = furnished("s1")
    move(registry, "d2", name="bob")
    hold(registry, name="cid")
    with pytest.raises(TooMany):
        move(registry, "d2")
    with pytest.raises(TooMany):
        hold(registry)
    assert (closer.closed, told) == ([], [["bob"], ["cid"]]), "nothing has happened"
    assert log_in(registry, "s2", backend="d1") == "d1"


async def test_the_next_registry_goes_on(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """Sessions that the steward before had no time to end are told so by the next."""
    before, _, _ = overseen(settings_of())
    move(before, "d2", until=2e9)
    hold(before, name="bob")
    move(before, "d1", name="cid")
    memory = json.loads(json.dumps(before.memory()))

    after, overseer, closer = overseen(settings_of())
    after.recall(memory)
    assert after.directions.memory() == before.directions.memory()
    sessions = [("s1", "ann", "d1"), ("s2", "bob", "d1"), ("s3", "cid", "d1"), ("s4", "dan", "d1")]
    for session_id, name, backend in sessions:
        after.guests.add(guest(session_id, name, backend, OPENED))
    after.ledger.restore(after.guests)
    overseer.resume()
    nursery.start_soon(after.ledger.run)
    await trio.sleep(1)
    assert closer.ids == ["s1", "s2"]
    assert log_in(after, "s9") == "waits"
    after.release("s1", opened=True)
    await trio.sleep(1)
    assert log_in(after, "s9") == "d2"


@pytest.mark.parametrize("memory", [None, 5, {}, [5], [["ann", None]], [["ann", "d1", None, "", "", "now", 1]]])
async def test_a_memory_of_directions_that_makes_no_sense(memory: object) -> None:
    registry, _, _ = furnished()
    registry.recall({"directions": memory})
    assert len(registry.directions) == 0


async def test_limits_left(autojump_clock: MockClock) -> None:
    settings = settings_of(limits={"connections_per_user": 3, "logins_per_user": {"rate": 2, "per": 60.0}})
    registry = Registry(settings, Closer())

    async def left() -> dict[str, object]:
        return {row["limit"]: row["left"] for row in await registry.limits_left("ann")}

    assert await left() == {"connections_per_user": 3, "logins_per_user": 2}
    registry.admit_now(guest("s1", "ann"), identity("ann"))
    assert await left() == {"connections_per_user": 2, "logins_per_user": 2}, "no login before the backend's yes"
    registry.confirm("s1")
    assert await left() == {"connections_per_user": 2, "logins_per_user": 1}
    assert {row["limit"]: row["left"] for row in await registry.limits_left("bob")} == {
        "connections_per_user": 3,
        "logins_per_user": 2,
    }
    plain, _, _ = furnished()
    assert [(row["limit"], row["per_seconds"]) for row in await plain.limits_left("ann")] == [
        ("connections_per_user", None)
    ]
