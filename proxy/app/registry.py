"""Where all users of a host live: placement, sessions and the rates of logins, asked together for each login.

The steward has one for all workers. It knows sessions as guests, whichever process they live in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from proxy.backends.discovered import Found
from proxy.ledger.guests import Guest, Guests
from proxy.ledger.host import Ledger, Place, SessionCloser
from proxy.ledger.resident import Stage, Whereabouts
from proxy.limits.rates import LoginRates
from proxy.model import Admitted, Identity
from proxy.observe.log import get_logger
from proxy.routing.cluster import Cluster
from proxy.routing.directions import Directions, Said
from proxy.settings.models import Settings

if TYPE_CHECKING:
    from proxy.app.fleet import Member  # and with it coredis, where the settings name a fleet

log = get_logger()


class Registry:
    """Cluster, ledger and rates."""

    def __init__(self, settings: Settings, closer: SessionCloser) -> None:
        """Nobody is there yet.

        Args:
            closer: Whoever can have sessions ended.
        """
        limits = settings.limits
        self.cluster = Cluster(settings.backends, settings.routing, time.monotonic())
        self.ledger = Ledger(limits.connections_per_user, settings.routing, closer, limits.connections_per_backend)
        self.guests = Guests()
        self.addresses: Mapping[str, tuple[str, ...]] = {}  # of the backends that DNS names
        self._address_changes = 0
        self.fleet: Member | None = None  # other proxies that share our users
        self.recalls_discovery = False  # another registry has told which backends DNS names
        self.on_directions: Callable[[list[str]], None] = _unheard  # of these users something else is said
        self._limits = limits
        self._rates = LoginRates(limits)
        self._limits_rates = limits.logins_per_user is not None or limits.logins_per_address is not None
        self._drains: dict[str, float] = {}  # by backend: when its users will all have had their turn

    # --- sessions come and go ---

    def admit_now(self, guest: Guest, identity: Identity) -> Admitted | None:
        """Take a session in before its backend is asked. None: it has to wait, which admit() does.

        Raises:
            Refused: LIMIT, UNAVAILABLE. The session was not taken in.
        """
        place = self._question(guest, identity)
        if self.fleet is not None and self.fleet.is_up:
            return None
        backend = self.ledger.admit_now(guest, place, verified=identity.verified)
        return None if backend is None else self._take_in(guest, identity, backend)

    async def admit(self, guest: Guest, identity: Identity, waits: Callable[[], None] = lambda: None) -> Admitted:
        """As admit_now(), however long it takes.

        Args:
            waits: Called when that is longer than others take to answer; perhaps more than once.

        Raises:
            Refused: As admit_now().
        """
        place = self._question(guest, identity)
        if self.fleet is None or not self.fleet.is_up:
            waits()
            return self._take_in(guest, identity, await self.ledger.admit(guest, place, verified=identity.verified))
        backend, others = await self.fleet.join(guest, place, verified=identity.verified, waits=waits)
        return self._take_in(guest, identity, backend, others)

    def confirm(self, session_id: str) -> Guest | None:
        """Its backend has let a session in: to be called for each; gives it. None: it was not admitted, or gave up.

        Raises:
            Refused: LIMIT, of those whom only the backend could verify. The session is still to be released.
        """
        guest = self.guests.get(session_id)
        if guest is None:
            return None
        self.cluster.login_ended(guest.backend, time.monotonic(), name=guest.name)
        self.ledger.confirm(guest)
        if self.fleet is not None and not guest.verified:
            self.fleet.confirmed(guest)
        if self._limits_rates and guest.stage is not Stage.OPENED:
            # Not before: what fails, for whatever reason, takes no login from anybody.
            self._rates.take(guest.name, guest.address, trio.current_time())
        guest.stage = Stage.OPENED
        return guest

    def release(self, session_id: str, *, opened: bool) -> None:
        """Let a session go; one that was not admitted is no mistake.

        Args:
            opened: Whether it was logged in at its backend, or may have been: nobody heard the answer.
        """
        guest = self.guests.remove(session_id)
        if guest is not None:
            self.ledger.release(guest, opened=opened)

    def failed(self, backend: str, name: str, problem: str, *, reached: bool) -> None:
        """A backend did something wrong with a user's login.

        Args:
            reached: It had greeted before it went wrong.
        """
        self.cluster.login_ended(backend, time.monotonic(), name=name, problem=problem, reached=reached)

    def _question(self, guest: Guest, identity: Identity) -> Place:
        """Where he may live, to be asked once more after a wait.

        Raises:
            Refused: LIMIT: there were too many logins.
        """
        if self._limits_rates:
            self._rates.check(guest.name, guest.address, trio.current_time())
        return partial(self.cluster.place, identity)

    def _take_in(self, guest: Guest, identity: Identity, backend: str, others: int = 0) -> Admitted:
        ledger = self.ledger
        guest.backend, guest.why = backend, ledger.why(guest.id)
        guest.verified = identity.verified
        if identity.verified:
            guest.stage = Stage.COUNTED
        self.guests.add(guest)
        return Admitted(backend, self.cluster.epoch, guest.why, ledger.room(guest.name) - others)

    # --- users have to leave ---

    def drain(self, backend: str, seconds: float) -> None:
        """Move the users who have sessions at a backend, one after the other within so long."""
        self._drains[backend] = trio.current_time() + seconds
        self.ledger.drain(backend, seconds)

    def undrain(self, backend: str) -> None:
        """Whose turn to leave has not come stays."""
        self._drains.pop(backend, None)
        self.ledger.undrain(backend)

    def resume_drains(self) -> None:
        """Go on with what the registry before this one had begun, once the sessions are restored."""
        now = trio.current_time()
        for backend, ends_at in list(self._drains.items()):
            if ends_at > now:
                self.ledger.drain(backend, ends_at - now)
            else:
                del self._drains[backend]

    # --- what administrators say of users ---

    @property
    def directions(self) -> Directions:
        """What they have said."""
        return self.cluster.directions

    def move(self, name: str, backend: str, *, until: float | None, reason: str, by: str) -> int:
        """A user lives at this backend, whatever else says where; gives how many of his sessions have to leave another.

        Args:
            until: Unix time; None: until release_user().
        Raises:
            TooMany: Too many users are moved or held.
        """
        self._direct(name, backend, until=until, reason=reason, by=by)
        there = self.ledger.find(name)
        return self.ledger.move(name) if there is not None and there.sessions and there.backend != backend else 0

    def hold(self, name: str, *, until: float | None, reason: str, by: str) -> int:
        """A user does not get in, and his sessions end; gives how many he has.

        Raises:
            TooMany: As move().
        """
        self._direct(name, None, until=until, reason=reason, by=by)
        return self.ledger.move(name)

    def release_user(self, name: str) -> Said | None:
        """Nothing is said of a user any more; gives what was. He stays where he has sessions until they are gone."""
        known = self.directions.drop(name)
        if known is not None:
            self._freed([name])
            if self.fleet is not None:
                self.fleet.said(name)
        return known

    def adopt(self, name: str, said: Any) -> None:
        """Another proxy has said this of a user, as Directions.memory() has it; nothing: nothing is said any more."""
        rows = [row for row in said if isinstance(row, list) and row[:1] == [name]] if isinstance(said, list) else []
        if rows == self.directions.memory([name]):
            return
        was = self.directions.drop(name)
        self.directions.take(rows)
        if self.directions.get(name) is not None:
            self.on_directions([name])
            self._send_where_he_should_be(name)
        elif was is not None:
            self._freed([name])

    def expire_directions(self) -> None:
        """Time has passed."""
        if over := self.directions.expire(time.time()):
            for name in over:
                log.info("registry.direction_ended", name=name)
            self._freed(over)

    def resume_directions(self) -> None:
        """Go on with what the registry before this one had begun: whoever is where he should not be has to leave."""
        for name in self.directions:
            self._send_where_he_should_be(name)

    def _send_where_he_should_be(self, name: str) -> None:
        said, there = self.directions.get(name), self.ledger.find(name)
        if said is None or there is None or not there.sessions:
            return
        if said.held is not None or there.backend != said.backend:
            self.ledger.move(name)

    def _direct(self, name: str, backend: str | None, *, until: float | None, reason: str, by: str) -> None:
        self.directions.put(name, backend, until=until, reason=reason, by=by, since=time.time())
        self.on_directions([name])
        if self.fleet is not None:
            self.fleet.said(name)

    def _freed(self, names: list[str]) -> None:
        for name in names:
            self.ledger.unbind(name)
        self.on_directions(names)

    async def whereabouts(self, name: str) -> Whereabouts | None:
        """Where a user is or was, here or at other proxies; None: nowhere that counts."""
        there = self.ledger.find(name)
        if self.fleet is None or (there is not None and (there.sessions or there.moving)):
            return there
        return await self.fleet.whereabouts(name) or there

    async def limits_left(self, name: str) -> list[dict[str, Any]]:
        """What a user has left of each limit that is kept here, or at all proxies together."""
        most = self._limits.connections_per_user
        others = 0 if self.fleet is None else await self.fleet.counted_elsewhere(name)
        left = max(0, self.ledger.room(name) - others)
        rows = [{"limit": "connections_per_user", "most": most, "left": left, "per_seconds": None}]
        if (limit := self._limits.logins_per_user) is not None:
            logins = self._rates.left(name, trio.current_time())
            rows.append({"limit": "logins_per_user", "most": limit.rate, "left": logins, "per_seconds": limit.per})
        return rows

    # --- which backends there are ---

    def discovered(self, found: Sequence[Found]) -> None:
        """DNS names these, and those of the settings are not among them."""
        addresses = {each.server.name: each.addresses for each in found}
        if addresses != self.addresses:
            self.addresses = addresses
            self._address_changes += 1
        self.cluster.discovered([each.server for each in found], time.monotonic())

    @property
    def revision(self) -> int:
        """Grows whenever view() has something new to tell."""
        return self.cluster.revision + self._address_changes

    def view(self) -> dict[str, Any]:
        """What other processes have to know of the backends, as Cluster.recall() takes it; JSON."""
        return self.cluster.memory(time.monotonic(), self.addresses)

    # --- one after the other ---

    def memory(self) -> dict[str, Any]:
        """What the next registry has to know, but for the sessions, which are for the workers to tell; JSON."""
        now = trio.current_time()
        drains = {backend: ends_at - now for backend, ends_at in self._drains.items() if ends_at > now}
        said = self.directions.memory()
        return {"cluster": self.view(), "ledger": self.ledger.memory(), "drains": drains, "directions": said}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take over what another's memory() holds, or as much of it as is there."""
        if isinstance(cluster := memory.get("cluster"), dict):
            self.cluster.recall(cluster, time.monotonic())
            self.addresses = self.cluster.addresses
            self.recalls_discovery = cluster.get("discovered") is True
        if isinstance(ledger := memory.get("ledger"), dict):
            self.ledger.recall(ledger)
        self.directions.learn(memory.get("directions"))
        if isinstance(drains := memory.get("drains"), dict):
            now = trio.current_time()
            self._drains = {backend: now + left for backend, left in drains.items() if isinstance(left, int | float)}


def _unheard(_names: list[str]) -> None:
    """Nobody listens."""
