"""The ledger of one host: its live sessions, by user, and the logins that wait for a user's move."""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import trio

from proxy.ledger import accounts
from proxy.ledger.guests import Guest
from proxy.ledger.homes import Homes
from proxy.ledger.resident import Occupancy, Share, Whereabouts, Why
from proxy.model import Placement
from proxy.observe.log import get_logger
from proxy.outcome import Outcome, Refused
from proxy.settings.backend_models import Routing

log = get_logger()

_MOST_WAITING = 100  # logins of one user
_WAIT_SECONDS = 20.0  # for the move of a user, beyond routing.move_patience and routing.move_delay
_TICK_SECONDS = 5.0
_SLICE = 500  # sessions that are released without looking at anything else: about a millisecond
_MOST_NAMES = 10  # in one line of the log

Place = Callable[[], Placement]


class Lodger(Protocol):
    """Who wants to be admitted: a session, wherever it lives."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str:
        """Canonical."""
        ...


class SessionCloser(Protocol):
    """Whoever holds the sessions and can end them."""

    def close(self, session_ids: Sequence[str], outcome: Outcome, *, patience: float) -> None:
        """End these sessions at their next safe point, and after `patience` seconds in any case.

        Sessions that are not logged in yet are ended before their client is told that they are.
        """
        ...


class Ledger:
    """Live sessions, where their users live, and the limits over them.

    `admit` is async for the sake of users on the move; usually it answers at once, and whoever has no task for each
    login asks `admit_now` first. Check and change stand in one piece, without a checkpoint between them. Moves go on
    only while run() runs.
    """

    def __init__(
        self,
        connections_per_user: int,
        routing: Routing,
        closer: SessionCloser,
        connections_per_backend: int | None = None,
    ) -> None:
        self._homes = Homes(
            connections_per_user, routing, random.random, connections_per_backend=connections_per_backend
        )
        self._closer = closer
        self._patience = routing.move_patience + routing.move_delay + _WAIT_SECONDS
        self._waiting: dict[str, deque[_Waiter]] = {}
        self._pins_dropped = 0
        self._wakes_at = math.inf  # run() does
        self._hurry = trio.Event()

    def __len__(self) -> int:
        return len(self._homes)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._homes

    @property
    def moves_in_flight(self) -> int:
        """How many users are on the way from one backend to another."""
        return self._homes.moves_in_flight

    async def run(self) -> None:
        """Let moves go on, until cancelled."""
        while True:
            self._act()
            self._wakes_at = min(self._homes.next_due(), trio.current_time() + _TICK_SECONDS)
            with trio.move_on_at(self._wakes_at):
                await self._hurry.wait()
            self._hurry = trio.Event()

    # --- sessions come and go ---

    async def admit(self, lodger: Lodger, place: Place, *, verified: bool) -> str:
        """Take a session in before its backend is asked; gives the backend. May wait for a move of its user.

        Args:
            place: Where the user may live just now; asked again after a wait, perhaps from another task.
            verified: The session counts in connections_per_user from now on; else from confirm() on.
        Raises:
            Refused: LIMIT, the user has as many sessions as he may. UNAVAILABLE. The session was not taken in.
        """
        backend = self._ask(lodger, place, verified)
        return await self._wait(_Waiter(lodger, place, verified)) if backend is None else backend

    def admit_now(self, lodger: Lodger, place: Place, *, verified: bool) -> str | None:
        """As admit(), without waiting. None: it has to wait, which wait_for() does, and was not taken in yet.

        Raises:
            Refused: As admit().
        """
        backend = self._ask(lodger, place, verified)
        if backend is None:
            self._act()  # a move begins, whether or not this login lives to see its end
        return backend

    def _ask(self, lodger: Lodger, place: Place, verified: bool) -> str | None:
        if lodger.id in self._homes:
            self.release(lodger, opened=True)  # it tries again, and nobody has heard how it fared
        return self._homes.admit(lodger.id, lodger.name, place(), trio.current_time(), verified=verified)

    async def wait_for(self, lodger: Lodger, place: Place, *, verified: bool) -> str:
        """What admit_now() could not answer; the move may be over by now.

        Raises:
            Refused: As admit().
        """
        return await self.admit(lodger, place, verified=verified)

    def why(self, session_id: str) -> Why:
        """Why a session was led where it is.

        Raises:
            KeyError: It was not admitted.
        """
        return self._homes.why(session_id)

    def room(self, name: str) -> int:
        """How many sessions more a user may have. One that is not verified does not count before confirm(): it needs
        room for itself.
        """
        return self._homes.room(name)

    def confirm(self, lodger: Lodger) -> None:
        """A session was let in by its backend, verified or not: to be called for each. One that was not admitted is no
        mistake.

        Raises:
            Refused: LIMIT, of those that were not verified: the user has as many sessions as he may. The session is
                still to be released.
        """
        self._homes.confirm(lodger.id)

    def release(self, lodger: Lodger, *, opened: bool) -> None:
        """Let a session go; one that was not admitted is no mistake.

        Args:
            opened: Whether it was logged in at its backend, or may have been: nobody heard the answer.
        """
        if self._homes.release(lodger.id, trio.current_time(), opened=opened):
            self._act()

    async def release_all(self, session_ids: Iterable[str]) -> None:
        """Let many sessions go at once: nobody knows how they ended. Goes on to its end even where it is cancelled."""
        ids = iter(session_ids)
        while some := list(islice(ids, _SLICE)):
            now = trio.current_time()
            moved = False
            for session_id in some:
                moved |= self._homes.release(session_id, now, opened=True)
            if moved:
                self._act()
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _wait(self, waiter: _Waiter) -> str:
        queue = self._waiting.setdefault(waiter.name, deque())
        if len(queue) >= _MOST_WAITING:
            raise Refused(Outcome.UNAVAILABLE, f"{len(queue)} logins of this user wait already for the end of his move")
        queue.append(waiter)
        accounts.WAITING.inc()
        try:
            self._act()
            with trio.move_on_after(self._patience):
                await waiter.decided.wait()
        except BaseException:
            # It may have been let in at the very moment that it gave up.
            if self._homes.release(waiter.session_id, trio.current_time(), opened=False):
                self._act()
            raise
        finally:
            accounts.WAITING.dec()
            if not waiter.decided.is_set():
                queue.remove(waiter)
            if not queue and self._waiting.get(waiter.name) is queue:
                del self._waiting[waiter.name]
        if waiter.answer is None:
            where = self._homes.find(waiter.name, trio.current_time())
            detail = f"{where.backend}, {where.moving}" if where is not None else ""
            raise Refused(Outcome.UNAVAILABLE, f"the user's move took too long: {detail}")
        if isinstance(waiter.answer, Exception):
            raise waiter.answer
        return waiter.answer

    # --- what lived before ---

    def restore(self, guests: Iterable[Guest]) -> None:
        """Take in sessions that live already, whatever the limits: all that are known at once, as far as possible.

        Who has sessions at two backends stays where he is known to live, else where most of them are, else where the
        oldest is; the others are told to end, and until they have he gets in nowhere else. One that is known already
        is taken in once.
        """
        now = trio.current_time()
        restored = self._homes.restore(guests, now, now - time.monotonic())
        divided = restored.divided
        if divided:
            accounts.DIVIDED.inc(len(divided))
            log.warning("ledger.users_divided", users=len(divided), names=divided[:_MOST_NAMES])
        if restored.sessions:
            log.info("ledger.restored", sessions=restored.sessions, sessions_in_all=len(self._homes))
        for name in restored.settled:
            self._wake(name)
        self._act()

    def memory(self) -> dict[str, Any]:
        """Where users were who have no sessions just now, for the next ledger; JSON."""
        return self._homes.memory(trio.current_time())

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take over what the ledger before this one remembered. What makes no sense is passed over."""
        self._homes.recall(memory, trio.current_time())

    # --- what other proxies know ---

    def watch(self) -> None:
        """From now on note whose sessions are not what they were, for take_touched()."""
        self._homes.touched = set()

    def take_touched(self, but: Collection[str]) -> list[str]:
        """Whose sessions are not what they were at the last call; these names wait for the next one."""
        touched = self._homes.touched
        if not touched:
            return []
        taken = [name for name in touched if name not in but]
        touched.difference_update(taken)
        return taken

    def told(self, name: str, share: Share) -> None:
        """They know this share of a user; if it is still his, nothing has to be told."""
        if self._homes.touched is not None and self.share(name) == share:
            self._homes.touched.discard(name)

    def share(self, name: str) -> Share:
        """What there is of a user here."""
        return self._homes.share(name, trio.current_time())

    def occupants(self) -> list[str]:
        """Who has sessions here."""
        return self._homes.occupants()

    def absent(self) -> list[str]:
        """Who has none, and had until a while ago."""
        return self._homes.absent(trio.current_time())

    def remember(self, name: str, backend: str, seconds: float, *, sticky: bool) -> None:
        """Others know that a user without sessions was at this backend so many seconds ago, and nowhere since."""
        self._homes.remember(name, backend, trio.current_time() - seconds, sticky=sticky)

    def part(self, divided: Sequence[str]) -> list[str]:
        """These users live elsewhere by what other proxies say: their sessions here have to end; gives those who were
        not on the move already.
        """
        parted = [name for name in divided if (there := self.find(name)) is not None and not there.moving]
        accounts.DIVIDED.inc(len(parted))
        for name in divided:
            self.move(name)
        return parted

    # --- users have to leave ---

    def move(self, name: str) -> int:
        """Close the sessions of a user, who then goes where placement says; gives how many he has."""
        sessions = self._homes.move(name, trio.current_time())
        self._act()
        return sessions

    def unbind(self, name: str) -> None:
        """Nobody says any more where this user has to be: he may leave where he is like others."""
        self._homes.unbind(name)

    def evict(self, backend: str, outcome: Outcome, *, spread: float, patience: float) -> int:
        """Close all sessions at a backend, spread over so many seconds; gives how many there are.

        With BACKEND_CLOSED those that the backend has let in count as abandoned: nobody knows whether it learns of
        their end.
        """
        there = self._homes.evict(backend, outcome, trio.current_time(), spread=spread, patience=patience)
        for name in self._waiting:
            self._homes.hasten(name, trio.current_time())
        log.info("ledger.evicting", backend=backend, users=there.users, sessions=there.sessions, outcome=outcome.value)
        self._act()
        return there.sessions

    def drain(self, backend: str, seconds: float) -> int:
        """Move the users of a backend one after the other within so many seconds; gives how many there are.

        Users that an override keeps there stay. With many users, routing.moves_in_flight makes it take longer.
        """
        there = self._homes.drain(backend, seconds, trio.current_time())
        log.info("ledger.draining", backend=backend, users=there.users, sessions=there.sessions, seconds=seconds)
        self._act()
        return there.users

    def undrain(self, backend: str) -> None:
        """Let the users of a backend stay whose turn to leave has not come, be it by a drain or by an eviction.

        An eviction for BACKEND_CLOSED goes on: there is nothing to stay at.
        """
        for name in self._homes.undrain(backend):
            self._wake(name)
        self._act()

    # --- for people ---

    def find(self, name: str) -> Whereabouts | None:
        """Where a user is, or was and would go back to; by canonical name."""
        return self._homes.find(name, trio.current_time())

    def residents_of(self, backend: str) -> Occupancy:
        """How many users and sessions there are at a backend."""
        return self._homes.residents_of(backend)

    # --- carrying out ---

    def _act(self) -> None:
        """Do what is due, and what follows from it."""
        homes = self._homes
        while True:
            homes.advance(trio.current_time())
            closings, ended = homes.take_closings(), homes.take_ended()
            if not closings and not ended:
                break
            accounts.count_closings(closings)
            for closing in closings:
                self._closer.close(closing.session_ids, closing.outcome, patience=closing.patience)
            for resident, move in ended:
                accounts.tell_moved(resident, move)
                self._wake(resident.name)
        accounts.MOVES_IN_FLIGHT.set(homes.moves_in_flight)
        accounts.PINS_DROPPED.inc(homes.pins_dropped - self._pins_dropped)
        self._pins_dropped = homes.pins_dropped
        if homes.next_due() < self._wakes_at:
            self._hurry.set()

    def _wake(self, name: str) -> None:
        """Decide about the logins that have waited, in their order."""
        queue = self._waiting.get(name, ())
        while queue:
            try:
                answer: str | Exception | None = queue[0].ask(self._homes)
            except Exception as exc:  # belongs to that login's task
                answer = exc
            if answer is None:
                break  # he has to move again, for the sake of this one
            waiter = queue.popleft()
            waiter.answer = answer
            waiter.decided.set()


class _Waiter:
    """A login that may have to wait."""

    __slots__ = ("answer", "decided", "name", "place", "session_id", "verified")

    def __init__(self, lodger: Lodger, place: Place, verified: bool) -> None:
        self.session_id, self.name, self.place, self.verified = lodger.id, lodger.name, place, verified
        self.answer: str | Exception | None = None
        self.decided = trio.Event()

    def ask(self, homes: Homes) -> str | None:
        return homes.admit(self.session_id, self.name, self.place(), trio.current_time(), verified=self.verified)
