"""Logins in a fleet: each asks what other proxies have of its user, and goes where that leads.

Theory of operation. The ledger is asked first, as if there were no fleet, then the server, which takes the place or
tells that the user is elsewhere, or was until a while ago. Then the place in the ledger is given back, and the ledger
asked again, knowing that. So what is a good place is decided by the same rules as with one proxy. Whoever may not go
where the user is has him leave there, and waits for that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import trio

from proxy.app.fleet_orders import Orders
from proxy.ledger.fleet import Fleet, FleetLost, Verdict
from proxy.ledger.guests import Guest
from proxy.ledger.homes import may_join
from proxy.ledger.host import Ledger, Place
from proxy.ledger.resident import Whereabouts
from proxy.model import Placement
from proxy.observe import metrics
from proxy.observe.log import get_logger
from proxy.outcome import Outcome, Refused
from proxy.settings.models import Settings

log = get_logger()

_LOOK_SECONDS = 0.1  # whether the sessions at other proxies have ended
_ASK_AGAIN_SECONDS = 5.0  # to end them
_WAIT_SECONDS = 20.0  # for that, beyond routing.move_patience and routing.move_delay
_MOST_WAITING = 1000  # logins of one user

_WAITS = metrics.counter("porter_fleet_waits_total", "Logins that waited for sessions at other proxies to end.")


class Logins:
    """Those under way, and what the server says to them while there is one."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        orders: Orders,
        lose: Callable[[Fleet, FleetLost], None],
        close: Callable[[str, str], None],
    ) -> None:
        """Args:
        lose: Called where the server has not answered.
        close: Ends a session, by id and reason: its user has too many.
        """
        routing = settings.routing
        self._sticky = routing.sticky
        self._patience = routing.move_patience + routing.move_delay + _WAIT_SECONDS
        self._most = settings.limits.connections_per_user
        self._ledger, self._orders, self._lose, self._close = ledger, orders, lose, close
        self.fleet: Fleet | None = None  # None: nobody is asked
        self.telling: frozenset[str] = frozenset()  # of whom the server is told just now
        self._turns: dict[str, trio.Lock] = {}  # by user: one of his logins asks at a time
        self._deciding: dict[str, str] = {}  # by user: the login whose turn it is, by session
        self._unproved: dict[str, list[str]] = {}  # sessions that count by their backend's word alone, by user

    def end(self) -> None:
        """From now on nobody is asked."""
        self.fleet = None
        self._unproved.clear()

    def undecided(self) -> set[str]:
        """Whose login is being decided on, so that it is nobody's business yet what he has here. While it waits, for a
        move or for sessions at other proxies, others have to hear what ends here: they may wait for that.
        """
        return {name for name, session_id in self._deciding.items() if session_id in self._ledger}

    async def join(self, guest: Guest, place: Place, *, verified: bool, waits: Callable[[], None]) -> tuple[str, int]:
        """As Ledger.admit(), over all proxies; gives how many sessions of his count at others, too.

        Args:
            waits: Called when it takes longer than a question.
        Raises:
            Refused: As there.
        """
        login = _Login(guest, place, verified, waits, trio.current_time() + self._patience)
        name, is_first = guest.name, False
        while True:
            if not is_first and self._has_a_place(name):
                if (found := await self._join_his_own(login)) is not None:
                    return found
                is_first = True  # he is elsewhere, though he is here: that is for one login after the other
            async with self._turn(login):
                if not is_first and self._has_a_place(name):
                    continue  # whose turn it was has found it
                self._deciding[name] = guest.id
                try:
                    return await self._find_a_place(login)
                finally:
                    del self._deciding[name]

    def _has_a_place(self, name: str) -> bool:
        """Whether he has sessions here that the fleet knows of, and that stay."""
        return name not in self._deciding and self._ledger.share(name).sessions > 0 and not self._leaves(name)

    async def _join_his_own(self, login: _Login) -> tuple[str, int] | None:
        """Sessions that he has here; many logins may do so at once. None: that was not to be."""
        ledger, guest = self._ledger, login.guest
        backend = ledger.admit_now(guest, login.place, verified=login.verified)
        if backend is None:
            return None
        verdict = await self._ask(login, firm="0")
        if (verdict is None or verdict.kind == "in") and not self._leaves(guest.name):
            return backend, 0 if verdict is None else verdict.others_counted
        ledger.release(guest, opened=False)
        if verdict is not None and verdict.kind == "full":
            raise self._too_many(verdict)
        return None

    async def _find_a_place(self, login: _Login) -> tuple[str, int]:
        ledger, guest, name = self._ledger, login.guest, login.guest.name
        firm, bound = "0", ""
        while True:
            where = partial(_bound, login.place, bound) if bound else login.place
            backend = ledger.admit_now(guest, where, verified=login.verified)
            if backend is None:
                login.waits()
                backend = await ledger.wait_for(guest, where, verified=login.verified)
            verdict = await self._ask(login, firm=firm)
            if (verdict is None or verdict.kind == "in") and not self._leaves(name):
                return backend, 0 if verdict is None else verdict.others_counted
            ledger.release(guest, opened=False)
            firm, bound = "0", ""
            if verdict is None or verdict.kind == "in":
                continue  # meanwhile his sessions were told to end, and nobody could be told so of this one
            if verdict.kind == "full":
                raise self._too_many(verdict)
            home = login.place()
            if verdict.kind == "was" and trio.current_time() < login.gives_up_at:
                firm = verdict.left  # if he has been elsewhere since, that is another question
                ledger.remember(name, verdict.backend, verdict.seconds, sticky=verdict.sticky)
                continue
            if trio.current_time() >= login.gives_up_at:
                detail = f"his {verdict.others} sessions at other proxies, at {verdict.backend}, have not ended"
                raise Refused(Outcome.UNAVAILABLE, detail)
            if may_join(verdict.backend, home):
                bound = verdict.backend
                ledger.remember(name, bound, 0.0, sticky=True)
            else:
                login.waits()
                self._have_him_leave(login, verdict, home)
                await trio.sleep(_LOOK_SECONDS)

    async def _ask(self, login: _Login, *, firm: str) -> Verdict | None:
        """As _stand(); whoever does not hear the answer has no place."""
        try:
            return await self._stand(login.guest.name, verified=login.verified, firm=firm)
        except BaseException:
            self._ledger.release(login.guest, opened=False)
            raise

    def _too_many(self, verdict: Verdict) -> Refused:
        detail = f"connections_per_user: {verdict.others_counted} sessions at other proxies, of {self._most}"
        return Refused(Outcome.LIMIT, detail, limit="connections_per_user")

    def _have_him_leave(self, login: _Login, verdict: Verdict, home: Placement) -> None:
        name, now = login.guest.name, trio.current_time()
        if not login.asks_again_at:
            _WAITS.inc()
            log.info("fleet.waits", name=name, backend=verdict.backend, home=home.home, others=verdict.others)
        if now >= login.asks_again_at:
            self._orders.say("close", [[name, verdict.backend]])
            login.asks_again_at = now + _ASK_AGAIN_SECONDS

    async def _stand(self, name: str, *, verified: bool, firm: str) -> Verdict | None:
        """What the fleet says to one session more; None: there is none."""
        fleet = self.fleet
        if fleet is None:
            return None
        share = self._ledger.share(name)
        try:
            verdict = await fleet.stand(name, share, most=self._most if verified else -1, firm=firm)
        except FleetLost as exc:
            self._lose(fleet, exc)
            return None
        if verdict.kind == "in":
            if verdict.seconds:  # if this one fails, that is where he was
                self._ledger.remember(name, verdict.backend, verdict.seconds, sticky=verdict.sticky)
            if name not in self.telling and name not in self._unproved:
                self._ledger.told(name, share)
        return verdict

    def _leaves(self, name: str) -> bool:
        """Whether his sessions here are about to end."""
        there = self._ledger.find(name)
        return there is not None and bool(there.moving)

    @asynccontextmanager
    async def _turn(self, login: _Login) -> AsyncIterator[None]:
        """One login of a user at a time looks for a place: what it hears is where the others go.

        Raises:
            Refused: UNAVAILABLE: his turn has not come.
        """
        name = login.guest.name
        lock = self._turns.get(name)
        if lock is None:
            lock = self._turns[name] = trio.Lock()
        if (waiting := lock.statistics().tasks_waiting) >= _MOST_WAITING:
            raise Refused(Outcome.UNAVAILABLE, f"{waiting} logins of this user wait already")
        if lock.locked():
            login.waits()
        try:
            with trio.move_on_at(login.gives_up_at) as patience:
                await lock.acquire()
            if patience.cancelled_caught:
                raise Refused(Outcome.UNAVAILABLE, "another login of this user still waits for his sessions to end")
            try:
                yield
            finally:
                lock.release()
        finally:
            if not lock.locked() and self._turns.get(name) is lock:
                del self._turns[name]

    # --- those who count late ---

    def confirmed(self, guest: Guest) -> None:
        """A session counts from now on, by its backend's word; whether there is room is asked when that is told."""
        if self.fleet is not None:
            self._unproved.setdefault(guest.name, []).append(guest.id)

    def take_unproved(self, name: str) -> list[str]:
        """The sessions of a user of whom that is told now."""
        return self._unproved.pop(name, [])

    def close_beyond(self, session_ids: Sequence[str], counted: int) -> None:
        """So many sessions of a user count at all proxies; those that are too many end, of these."""
        for session_id in reversed(session_ids):
            if counted <= self._most:
                break
            counted -= 1
            self._close(session_id, f"connections_per_user: more than {self._most} sessions at all proxies")

    # --- for whoever wants to know ---

    async def counted_elsewhere(self, name: str, members: Sequence[str]) -> int:
        """How many sessions of a user count at these others, so far as is known."""
        verdict = await self._look(name, members)
        return 0 if verdict is None else verdict.others_counted

    async def whereabouts(self, name: str, members: Sequence[str]) -> Whereabouts | None:
        """Where a user without sessions here is, or was, by what these others say; None: nothing is known."""
        verdict = await self._look(name, members)
        if verdict is None:
            return None
        since = trio.current_time() - verdict.seconds
        if verdict.others:
            return Whereabouts(verdict.backend, verdict.others, since)
        if not verdict.sticky or verdict.seconds >= self._sticky:
            return None
        return Whereabouts(verdict.backend, 0, since, since + self._sticky)

    async def _look(self, name: str, members: Sequence[str]) -> Verdict | None:
        fleet = self.fleet
        if fleet is None:
            return None
        try:
            return await fleet.look(name, members)
        except FleetLost:  # whoever only asks ends nothing for those who log in
            return None


class _Login:
    """One that looks for a place."""

    __slots__ = ("asks_again_at", "gives_up_at", "guest", "place", "verified", "waits")

    def __init__(
        self, guest: Guest, place: Place, verified: bool, waits: Callable[[], None], gives_up_at: float
    ) -> None:
        self.guest, self.place, self.verified = guest, place, verified
        self.waits, self.gives_up_at = waits, gives_up_at
        self.asks_again_at = 0.0  # others, to end his sessions; 0: nobody was asked yet


def _bound(place: Place, backend: str) -> Placement:
    """There he has sessions, by other proxies: nothing else will do."""
    placement = place()
    if backend == placement.home:
        return placement
    return replace(placement, home=backend, why="hash", joinable=(), sticky=())
