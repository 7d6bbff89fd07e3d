"""Proxies that are members of one fleet, without workers: registries, and what they want done with sessions."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from proxy.app import fleet, fleet_logins
from proxy.app.fleet import Member
from proxy.app.fleet_orders import Orders
from proxy.app.registry import Registry
from proxy.ledger.guests import Guest
from proxy.ledger.resident import Whereabouts
from proxy.model import Admitted, Identity
from proxy.outcome import Outcome
from tests.app.fake_workers import settings_of
from tests.servers.valkey import Valkey

PATIENCE_SECONDS = 20.0


def make_brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tests are short."""
    for module, name, seconds in (
        (fleet, "_RETRY_SECONDS", 0.1),
        (fleet, "_SHORT_SECONDS", 0.0),
        (fleet, "BEAT_SECONDS", 0.2),
        (fleet_logins, "_LOOK_SECONDS", 0.05),
        (fleet_logins, "_ASK_AGAIN_SECONDS", 0.5),
    ):
        monkeypatch.setattr(module, name, seconds)


class Proxy:
    """One of them. Sessions that are told to end do so, unless they are stubborn; others' kicks are noted, and end them
    where that is asked for.
    """

    _numbers = itertools.count()

    def __init__(self, name: str, valkey: Valkey, nursery: trio.Nursery, *, instance: str = "", **changes: Any) -> None:
        ours = {"valkey": valkey.url, "password": {"file": str(valkey.password_file)}, **changes.pop("fleet", {})}
        changes["routing"] = {"move_patience": 1.0, **changes.pop("routing", {})}
        self.name, self._nursery = name, nursery
        self.stubborn = self.kicks_end = False
        self.settings = settings_of(fleet=ours, **changes)
        self.registry = Registry(self.settings, self)
        self.orders = Orders(name, self, shares_failures=True)
        self.closed: list[str] = []  # sessions that were told to end
        self.too_many: list[str] = []  # of these because there were too many at all proxies
        self.kicked: list[dict[str, Any]] = []
        self.failures: list[list[Any]] = []
        registry = self.registry
        self.member = Member(
            self.settings,
            name,
            instance or name,
            registry.ledger,
            registry.directions,
            self.orders,
            registry.adopt,
            self._close_for_limit,
        )
        registry.fleet = self.member
        self._scope = trio.CancelScope()
        self.ended = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """From now on it is a member, until stop()."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.registry.ledger.run)
                    nursery.start_soon(self.member.run)
                    await self.member.tried.wait()
                    task_status.started()
        finally:
            self.ended.set()

    async def stop(self, *, leaves: bool = False) -> None:
        self.member.leaves = leaves
        self._scope.cancel()
        await self.ended.wait()

    async def until(self, *, up: bool = True) -> None:
        await until(lambda: self.member.is_up is up)

    # --- sessions ---

    async def log_in(self, name: str = "ann", backend: str | None = None, *, verified: bool = True) -> Guest:
        """A session that its backend lets in.

        Args:
            backend: Where the user's source says that he lives.
        """
        guest = await self.admit(name, backend, verified=verified)
        self.registry.confirm(guest.id)
        return guest

    async def admit(self, name: str = "ann", backend: str | None = None, *, verified: bool = True) -> Guest:
        """One that is asked for as the steward does."""
        guest = Guest(f"{self.name}{next(self._numbers)}", name, "192.0.2.7:4711", "imaps", "w", time.monotonic())
        identity = Identity(name, "file", backend, verified=verified)
        admitted: Admitted | None = self.registry.admit_now(guest, identity)
        if admitted is None:
            admitted = await self.registry.admit(guest, identity)
        assert admitted.backend == guest.backend
        self.room = admitted.room
        return guest

    def end(self, *guests: Guest, opened: bool = True) -> None:
        for guest in guests:
            self.registry.release(guest.id, opened=opened)

    def close(self, session_ids: Sequence[str], outcome: Outcome, *, patience: float) -> None:
        """As SessionCloser."""
        self.closed.extend(session_ids)
        if not self.stubborn:
            for session_id in session_ids:
                self._nursery.start_soon(self._obey, session_id)

    async def _obey(self, session_id: str) -> None:
        await trio.sleep(0.01)
        self.registry.release(session_id, opened=True)

    def _close_for_limit(self, session_id: str, why: str) -> None:
        assert "sessions at all proxies" in why
        self.too_many.append(session_id)
        self.close([session_id], Outcome.LIMIT, patience=0.0)

    @property
    def live(self) -> dict[str, list[str]]:
        """The backends of all sessions by user."""
        found: dict[str, list[str]] = {}
        for guest in self.registry.guests:
            found.setdefault(guest.name, []).append(guest.backend)
        return found

    def find(self, name: str = "ann") -> Whereabouts | None:
        return self.registry.ledger.find(name)

    # --- as Hands, whom others' orders reach ---

    def close_user(self, name: str, backend: str) -> int:
        there = self.find(name)
        at_it = there is not None and there.sessions and there.backend == backend
        return self.registry.ledger.move(name) if at_it else 0

    def kick(self, whom: Mapping[str, Any]) -> int:
        if not isinstance(whom.get("user"), str):
            raise ValueError("a kick that makes no sense")
        self.kicked.append(dict(whom))
        return self.kick_here(whom["user"]) if self.kicks_end else 1

    def kick_here(self, name: str) -> int:
        """As the desk does."""
        found = [guest.id for guest in self.registry.guests if guest.name == name]
        self.close(found, Outcome.KICKED, patience=0.0)
        return len(found)

    def failed(self, message: list[Any]) -> None:
        self.failures.append(message)


class _HandsOf:
    """Its `close` is another one than that of a SessionCloser."""

    def __init__(self, proxy: Proxy) -> None:
        self.close, self.kick, self.failed = proxy.close_user, proxy.kick, proxy.failed


def new_proxy(name: str, valkey: Valkey, nursery: trio.Nursery, **changes: Any) -> Proxy:
    """One that is not begun."""
    proxy = Proxy(name, valkey, nursery, **changes)
    proxy.orders._hands = _HandsOf(proxy)
    return proxy


@asynccontextmanager
async def proxies(valkey: Valkey, names: str, **changes: Any) -> AsyncIterator[list[Proxy]]:
    """So many that are members."""
    async with trio.open_nursery() as nursery:
        made = [new_proxy(name, valkey, nursery, **changes) for name in names]
        with trio.fail_after(PATIENCE_SECONDS):
            for proxy in made:
                await nursery.start(proxy.run)
                await proxy.until(up=True)
        yield made
        nursery.cancel_scope.cancel()


async def until(holds: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for what comes in its own time; math.inf: as long as the test lives."""
    with trio.fail_after(seconds) if seconds < math.inf else trio.CancelScope():
        while not holds():  # noqa: ASYNC110 - a server's doing
            await trio.sleep(0.01)
