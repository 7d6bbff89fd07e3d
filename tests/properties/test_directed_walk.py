"""Whatever administrators say of users, and whenever: nobody is ever let in at two backends, or where he may not be."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.app import registry as registry_module
from proxy.app.registry import Registry
from proxy.ledger.guests import Guest
from proxy.ledger.resident import Stage
from proxy.model import Identity
from proxy.outcome import Outcome, Refused
from proxy.settings.models import Settings

BACKENDS = ("d1", "d2", "d3")
NAMES = ("ann", "bob")
SETTINGS = Settings.model_validate(
    {
        "version": 1,
        "listeners": [{"address": "127.0.0.1:1143", "tls": "none", "trusted_networks": ["127.0.0.0/8"]}],
        "identity": [{"backend": {}}],
        "backends": {"servers": [{"name": name, "url": f"imap://{name}.test.example"} for name in BACKENDS]},
        "routing": {"move_delay": 2.0, "sticky": 900.0},
    }
)
Step = tuple[Any, ...]

names, backends = st.sampled_from(NAMES), st.sampled_from(BACKENDS)
lasting = st.sampled_from((None, None, 1.0, 30.0))
STEPS = st.one_of(
    st.tuples(st.just("log_in"), names, st.one_of(st.none(), st.none(), backends)),
    st.tuples(st.just("log_in"), names, st.none()),
    st.tuples(st.just("leave"), names),
    st.tuples(st.just("obey"), names),
    st.tuples(st.just("move"), names, backends, lasting),
    st.tuples(st.just("hold"), names, lasting),
    st.tuples(st.just("release"), names),
    st.tuples(st.just("later"), st.sampled_from((0.5, 2.0, 60.0, 1000.0))),
    st.tuples(st.just("say"), backends, st.sampled_from(("up", "drain", "down"))),
    st.tuples(st.just("drain"), backends),
    st.tuples(st.just("restart"), st.booleans()),
)


PEOPLES_TIME = SimpleNamespace(time=trio.current_time, monotonic=time.monotonic)


class Walk:
    """One registry after the other, and the sessions that it has let in."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._numbers = itertools.count()
        self.live: dict[str, Guest] = {}
        self.told: set[str] = set()
        self.waiting = 0
        self._scopes: list[trio.CancelScope] = []  # of what ends with a registry
        self._begin()

    def _begin(self) -> None:
        self.registry = Registry(SETTINGS, self)
        self._nursery.start_soon(self._run, self.registry, self._scope())

    def _scope(self) -> trio.CancelScope:
        self._scopes.append(trio.CancelScope())
        return self._scopes[-1]

    @staticmethod
    async def _run(registry: Registry, scope: trio.CancelScope) -> None:
        with scope:
            await registry.ledger.run()

    def close(self, session_ids: Sequence[str], outcome: Outcome, *, patience: float) -> None:
        """As SessionCloser: they end when `obey` says so."""
        assert all(session_id in self.registry.ledger for session_id in session_ids)
        self.told |= {*session_ids}

    async def step(self, what: str, *values: Any) -> None:
        match what, *values:
            case "log_in", name, backend:
                self._nursery.start_soon(self._log_in, name, backend, self._scope())
            case "leave", name:
                self._end([each for each in self.live.values() if each.name == name][:1])
            case "obey", name:
                self._end([each for each in self.live.values() if each.name == name and each.id in self.told])
            case "move", name, backend, seconds:
                there = self._backends_of(name)
                leaving = self.registry.move(name, backend, until=_until(seconds), reason="r", by="b")
                assert leaving == (0 if there <= {backend} else self._count(name))
            case "hold", name, seconds:
                assert self.registry.hold(name, until=_until(seconds), reason="r", by="b") == self._count(name)
            case "release", name:
                self.registry.release_user(name)
            case "later", seconds:
                await trio.sleep(seconds)
                await trio.testing.wait_all_tasks_blocked()
                self.registry.expire_directions()
            case "say", backend, state:
                self.registry.undrain(backend)
                self.registry.cluster.set_state(backend, state, 0.0)
            case "drain", backend:
                self.registry.drain(backend, 1.0)
            case "restart", hands_over:
                self._restart(hands_over)
        await trio.testing.wait_all_tasks_blocked()
        self._look()

    async def _log_in(self, name: str, backend: str | None, scope: trio.CancelScope) -> None:
        guest = Guest(f"s{next(self._numbers)}", name, "192.0.2.1:4711", "l", "w", time.monotonic())
        registry = self.registry
        self.waiting += 1
        try:
            with scope:
                admitted = await registry.admit(guest, Identity(name, "file", backend))
                # Nothing waits between the answer and this look at what is said just now.
                said = registry.directions.get(name)
                assert said is None or said.held is None
                assert said is None or said.backend in (None, admitted.backend)
                assert said is not None or backend in (None, admitted.backend)
                registry.confirm(guest.id)
                self.live[guest.id] = guest
        except Refused:
            pass
        finally:
            self.waiting -= 1

    def _end(self, guests: list[Guest]) -> None:
        for guest in guests:
            del self.live[guest.id]
            self.told.discard(guest.id)
            self.registry.release(guest.id, opened=True)

    def _restart(self, hands_over: bool) -> None:
        memory = json.loads(json.dumps(self.registry.memory()))
        for scope in self._scopes:
            scope.cancel()
        self._scopes.clear()
        if not hands_over:  # workers know what was said, and nothing else
            memory = {"directions": memory["directions"], "cluster": memory["cluster"]}
        self._begin()
        self.registry.recall(memory)
        self.told.clear()
        for guest in self.live.values():
            self.registry.guests.add(guest)
        self.registry.ledger.restore(list(self.live.values()))
        self.registry.resume_directions()

    def _backends_of(self, name: str) -> set[str]:
        return {each.backend for each in self.live.values() if each.name == name}

    def _count(self, name: str) -> int:
        return sum(each.name == name for each in self.live.values())

    def _look(self) -> None:
        assert len(self.registry.guests) == len(self.registry.ledger) == len(self.live)
        assert all(each.stage is Stage.OPENED for each in self.live.values())
        for name in NAMES:
            there = self._backends_of(name)
            assert len(there) <= 1
            found = self.registry.ledger.find(name)
            assert not there or (found is not None and {found.backend} == there)

    async def end(self) -> None:
        """Nothing is said any more, all leave, and whoever waits is answered."""
        for name in NAMES:
            self.registry.release_user(name)
        for backend in BACKENDS:
            await self.step("say", backend, "up")
        for _ in range(5):
            self._end(list(self.live.values()))
            await trio.sleep(1000)
            await trio.testing.wait_all_tasks_blocked()
        assert (self.waiting, len(self.live), len(self.registry.directions)) == (0, 0, 0)
        self._nursery.cancel_scope.cancel()


def _until(seconds: float | None) -> float | None:
    return None if seconds is None else trio.current_time() + seconds


async def walk(steps: list[Step]) -> None:
    async with trio.open_nursery() as nursery:
        walker = Walk(nursery)
        for step in steps:
            await walker.step(*step)
        await walker.end()


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=30))
def test_steered_users(steps: list[Step]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry_module, "time", PEOPLES_TIME)
        trio.run(walk, steps, clock=trio.testing.MockClock(autojump_threshold=0))
