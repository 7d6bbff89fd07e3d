"""The backends as placement sees them just now: settings, what administrators said since, discovery and health.

Nothing here acts, waits or reads a clock: it is told what happened and when, and answers where people belong.

With `failover` a backend that is down long enough is taken out of the hash, and put back when it has been up again for
`hold_down`. Two rules keep a large outage from making itself worse. Nobody is taken out while nobody else in its pool
could take its users: they would be refused either way. And the hold-down is for a backend that others stand in for:
where no one else takes homes, who is up again is back at once.

With `failover` a backend that discovery adds later on is out of the hash until it has been checked: it may not be
ready. Without, mail is local, and nobody else could take its users meanwhile.

One process of a host is told what happens. The others, and whoever comes after it, recall what it remembers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

from proxy.model import Identity, Placement
from proxy.routing.backend import Backend
from proxy.routing.directions import Directions
from proxy.routing.explanation import Explanation, explain
from proxy.routing.health import Health
from proxy.routing.memory import Memo, memos, what_is_asked
from proxy.routing.rendezvous import CACHED_KEYS
from proxy.routing.view import BY_ADMINISTRATOR, Standing, View
from proxy.settings.models import Backends, Routing, Server, State

Kind = Literal["went_down", "came_up", "failed_over", "returned", "closed", "added", "removed", "changed"]


@dataclass(frozen=True, slots=True)
class BackendEvent:
    """What has happened to a backend.

    went_down, came_up: its health. failed_over: its users go elsewhere now; returned: they may come back, or to a new
    one come at all. closed: an administrator has set it down. added, removed: by discovery. changed: state, weight or
    where it is.
    """

    backend: str
    kind: Kind
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """One backend, for people and metrics."""

    name: str
    tag: str
    weight: int
    state: State  # the administrators' word
    up: bool  # whether it works
    since: float  # when that last changed
    seconds: float  # how long ago that was
    reason: str  # why it is not up, or why not in the hash though it is
    failed_over: bool  # its users go to their next choice; new and not checked yet included
    url: str
    discovered: bool


class Cluster:
    """All backends, and who belongs where."""

    def __init__(self, backends: Backends, routing: Routing, now: float) -> None:
        self._health = backends.health
        self._failover = None if backends.failover == "never" else backends.failover
        self._tag_attribute = routing.tags.attribute
        self._asked = what_is_asked(backends)
        self._backends = {
            server.name: Backend(server, Health(self._health, now), discovered=False) for server in backends.servers
        }
        self._has_discovered = False
        self.addresses: Mapping[str, tuple[str, ...]] = {}  # of discovered servers, as they were recalled
        self.directions = Directions()  # what administrators said of users
        self.revision = 0  # grows whenever there is something for others to recall; ages and counts are not
        self.on_event: Callable[[BackendEvent], None] = _unheard
        self._show(View(self._standings(), routing))

    @property
    def epoch(self) -> str:
        """A short name for who is there and who takes whom: proxies that show the same one place alike."""
        return self._view.epoch

    @property
    def epoch_number(self) -> int:
        """The epoch as a number that a double holds."""
        return int(self._view.epoch, 16)

    def place(self, identity: Identity) -> Placement:
        """Say where somebody belongs.

        Raises:
            Refused: UNAVAILABLE: a backend is named for him, or a tag given, that there is not.
        """
        asked = (identity.name, identity.backend, identity.attributes.get(self._tag_attribute), identity.source)
        if self.directions and (said := self.directions.get(identity.name)) is not None:
            return self._view.directed(said, partial(self._placed, *asked))
        return self._placed(*asked)

    def explain(self, identity: Identity) -> Explanation:
        """Say it with reasons, for people.

        Raises:
            Refused: As `place`.
        """
        return explain(self._view, identity, self.directions.get(identity.name))

    def servers(self) -> tuple[Server, ...]:
        """The backends as they were set or found, whatever was said of them since."""
        return tuple(backend.server for backend in self._backends.values())

    def snapshot(self, now: float) -> tuple[Seen, ...]:
        """All backends, in the order of `servers`."""
        return tuple(
            Seen(
                each.name,
                each.tag,
                each.weight,
                each.state,
                each.up,
                backend.health.since,
                now - backend.health.since,
                each.reason,
                each.out,
                str(each.server.url),
                backend.discovered,
            )
            for each, backend in zip(self._view.standings, self._backends.values(), strict=True)
        )

    def checked(self, backend: str, now: float, reason: str = "") -> None:
        """A check has ended.

        Args:
            backend: Which was checked; one that is gone meanwhile is no mistake.
            now: The time.
            reason: What went wrong; "": nothing.
        """
        at = self._backends.get(backend)
        if at is None:
            return
        if reason:
            turned = at.health.failed(now, reason, checked=True, reached=False)
        else:
            turned = at.health.succeeded(now, checked=True)
        if at.unproved is not None:
            at.unproved = self._health.up_after if reason else at.unproved - 1
        self._told(at, now, turned=turned)

    def login_ended(self, backend: str, now: float, *, name: str, problem: str = "", reached: bool = True) -> None:
        """A user's login at a backend has ended.

        Args:
            backend: Where; one that is gone meanwhile is no mistake.
            now: The time.
            name: Whose login it was.
            problem: What the backend did wrong; "": it did its part, be it by refusing a password.
            reached: It had greeted before it went wrong.
        """
        at = self._backends.get(backend)
        if at is None:
            return
        if problem:
            turned = at.health.failed(now, problem, checked=False, name=name, reached=reached)
            self._told(at, now, turned=turned)
        else:
            at.health.succeeded(now, checked=False)

    def set_state(self, backend: str, state: State, now: float) -> None:
        """An administrator's word, until the next settings.

        Raises:
            KeyError: There is no such backend.
        """
        at = self._backends[backend]
        before, at.said_state = at.state, state
        if state == before:
            return
        if state == "down":
            self._changed(now, BackendEvent(backend, "closed", BY_ADMINISTRATOR))
        else:
            self._changed(now, BackendEvent(backend, "changed", f"state {state}"))

    def set_weight(self, backend: str, weight: int, now: float) -> None:
        """An administrator's word, until the next settings.

        Raises:
            KeyError: There is no such backend.
            ValueError: The weight is negative.
        """
        at = self._backends[backend]
        if weight < 0:
            raise ValueError(f"weight {weight} is below 0")
        before, at.said_weight = at.weight, weight
        if weight != before:
            self._changed(now, BackendEvent(backend, "changed", f"weight {weight}"))

    def discovered(self, servers: Sequence[Server], now: float) -> None:
        """Take what discovery has found instead of what it had found before; names in the settings win.

        Who stays keeps his health and what administrators said; who comes back later is new. What the first call finds
        need not prove itself: nobody would be there until then.
        """
        found = {server.name: server for server in sorted(servers, key=lambda server: server.name)}
        events = []
        for name, backend in list(self._backends.items()):
            if backend.discovered and name not in found:
                del self._backends[name]
                events.append(BackendEvent(name, "removed", "discovery lists it no more"))
        for name, server in found.items():
            known = self._backends.get(name)
            if known is None:
                known = self._backends[name] = Backend(server, Health(self._health, now), discovered=True)
                if self._has_discovered and self._failover is not None:
                    known.failed_over, known.unproved = True, self._health.up_after
                events.append(BackendEvent(name, "added", str(server.url)))
            elif known.discovered and known.server != server:
                known.server = server
                events.append(BackendEvent(name, "changed", str(server.url)))
        if not self._has_discovered:
            self._has_discovered = True
            self.revision += 1
        if events:
            self._changed(now, *events)

    def tick(self, now: float) -> None:
        """Time has passed; to be called about once a second."""
        if self._failover is not None:
            self._changed(now)

    # --- for other processes ---

    def memory(self, now: float, addresses: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
        """All that was told since the settings, for recall(); JSON.

        Args:
            addresses: Of servers that were discovered; None: those that were recalled.
        """
        known: Mapping[str, Sequence[str]] = self.addresses if addresses is None else addresses
        return {
            "asked": self._asked,
            "discovered": self._has_discovered,
            "backends": {
                name: backend.memo(now, known.get(name, ())).as_json() for name, backend in self._backends.items()
            },
        }

    def recall(self, memory: Mapping[str, Any], now: float) -> tuple[BackendEvent, ...]:
        """Take over what another cluster remembers, as often as it does: what it does not tell of stays as it is.

        With the same settings both place alike afterwards. With others, backends that are not known here are passed
        over, and those of the settings win over discovered ones. Nobody is told of it by `on_event`.

        Returns:
            What has become different here by it.
        """
        told = dict(memos(memory))
        if self._asked is not None and memory.get("asked") == self._asked:
            self._recall_discovered(told, now)
            self._has_discovered |= memory.get("discovered") is True
        for name, backend in self._backends.items():
            memo = told.get(name)
            if memo is not None:
                backend.recall(memo, now, failover=self._failover is not None)
        before = self._view.standings
        if not self._look():
            return ()
        self.revision += 1
        return tuple(_differences(before, self._view.standings))

    def _recall_discovered(self, told: Mapping[str, Memo], now: float) -> None:
        addresses = {}
        for name in [name for name, backend in self._backends.items() if backend.discovered]:
            if name not in told or told[name].server is None:
                del self._backends[name]
        for name, memo in told.items():
            known = self._backends.get(name)
            if memo.server is None or (known is not None and not known.discovered):
                continue
            if known is None or known.document != memo.server:
                server = memo.discovered_server()
                if server is None or server.name != name:
                    continue
                if known is None:
                    self._backends[name] = Backend(server, Health(self._health, now), discovered=True)
                else:
                    known.server = server
            addresses[name] = memo.addresses
        self.addresses = addresses

    # --- conclusions ---

    def _told(self, backend: Backend, now: float, *, turned: bool) -> None:
        """Health was told something that may be no news."""
        health = backend.health
        if turned:
            kind: Kind = "came_up" if health.up else "went_down"
            self._changed(now, BackendEvent(backend.name, kind, "" if health.up else health.reason))
        elif not health.up or backend.unproved is not None:
            self._changed(now)  # the reason may be another, or a new one has proved itself

    def _changed(self, now: float, *events: BackendEvent) -> None:
        """Draw the conclusions, and only then tell of it: who listens places anew."""
        happened = [*events, *self._conclusions(now)]
        if self._look() or happened:
            self.revision += 1
        for event in happened:
            self.on_event(event)

    def _look(self) -> bool:
        """Whether something is not as it was; if so, places are given by how it is."""
        standings = self._standings()
        if standings == self._view.standings:
            return False
        self._show(View(standings, self._view.routing, self._view))
        return True

    def _show(self, view: View) -> None:
        self._view = view
        self._placed = lru_cache(CACHED_KEYS)(view.place)

    def _standings(self) -> tuple[Standing, ...]:
        failover = self._failover is not None
        return tuple(backend.standing(failover=failover) for backend in self._backends.values())

    def _conclusions(self, now: float) -> Iterator[BackendEvent]:
        """Who goes out of the hash, and who comes back, or in."""
        if self._failover is None:
            return
        pools: dict[str, list[Backend]] = {}
        # By name: whatever the order of the settings, the same things happen one after the other.
        for name in sorted(self._backends):
            backend = self._backends[name]
            pools.setdefault(backend.server.tag or "", []).append(backend)
        for _, pool in sorted(pools.items()):
            yield from self._returns(pool, now)
            yield from self._failovers(pool, now, self._failover)

    def _returns(self, pool: Sequence[Backend], now: float) -> Iterator[BackendEvent]:
        somebody_stands_in = any(backend.takes_homes for backend in pool)
        for backend in pool:
            if not (backend.failed_over and backend.health.up):
                continue
            if backend.unproved is None:
                ready = now - backend.health.since >= self._health.hold_down
            else:
                ready = backend.unproved <= 0
            if ready or not somebody_stands_in:
                backend.failed_over, backend.unproved = False, None
                yield BackendEvent(backend.name, "returned")

    def _failovers(self, pool: Sequence[Backend], now: float, after: float) -> Iterator[BackendEvent]:
        if not any(backend.takes_homes for backend in pool):
            return
        for backend in pool:
            health = backend.health
            if not backend.failed_over and not health.up and now - health.since >= after:
                backend.failed_over = True
                yield BackendEvent(backend.name, "failed_over", health.reason)


def _differences(before: Iterable[Standing], after: Iterable[Standing]) -> Iterator[BackendEvent]:
    """What has happened between two moments, as it would have been told."""
    old = {each.name: each for each in before}
    new = {each.name: each for each in after}
    for name in sorted(old.keys() - new.keys()):
        yield BackendEvent(name, "removed", "discovery lists it no more")
    for name, now in new.items():
        was = old.get(name)
        if was is None:
            yield BackendEvent(name, "added", str(now.server.url))
            was = Standing(now.server, now.weight, now.state, up=True, reason="", out=now.out)
        if was.up and not now.up:
            yield BackendEvent(name, "went_down", now.reason)
        elif now.up and not was.up:
            yield BackendEvent(name, "came_up")
        if now.state == "down" != was.state:
            yield BackendEvent(name, "closed", BY_ADMINISTRATOR)
        elif (was.server, was.state, was.weight) != (now.server, now.state, now.weight):
            yield BackendEvent(name, "changed", str(now.server.url))
        if now.out and not was.out and now.state != "down":
            yield BackendEvent(name, "failed_over", now.reason)
        elif was.out and not now.out:
            yield BackendEvent(name, "returned")


def _unheard(event: BackendEvent) -> None:
    """Nobody listens yet."""
