"""The ledger of one host: its live sessions, by user, and the logins that wait for a user's move."""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import trio

from proxy.ledger.homes import Homes
from proxy.ledger.moves import Closing
from proxy.ledger.resident import Move, MoveReason, Occupancy, Resident, Whereabouts
from proxy.ledger.session import Session
from proxy.model import Placement
from proxy.observe import metrics
from proxy.observe.log import get_logger
from proxy.outcome import Outcome, Refused
from proxy.settings.backend_models import Routing

log = get_logger()

_MOST_WAITING = 100  # logins of one user
_WAIT_SECONDS = 20.0  # for the move of a user, beyond routing.move_patience and routing.move_delay
_TICK_SECONDS = 5.0

_MOVES = metrics.counter(
    "porter_moves_total",
    "Users whose sessions at a backend had to end, so that they log in elsewhere.",
    reason=MoveReason,
)
_MOVES_IN_FLIGHT = metrics.gauge(
    "porter_moves_in_flight", "Users whose sessions are being closed for a move, or have just been."
)
_WAITING = metrics.gauge("porter_moves_waiting_logins", "Logins that wait until their user's move has ended.")
_PINS_DROPPED = metrics.counter(
    "porter_placement_pins_dropped_total",
    "Users whose last backend was forgotten before its time, for want of room.",
)
_ABANDONED = metrics.counter(
    "porter_sessions_abandoned_total",
    "Sessions given up at a backend that could not be reached, and that may live on there.",
    backend=None,
)

Place = Callable[[], Placement]


def know_backends(names: Iterable[str]) -> None:
    """Make zero visible in what is counted by backend."""
    for name in names:
        _ABANDONED.labels(name)


class SessionCloser(Protocol):
    """Whoever holds the sessions and can end them."""

    def close(self, session_ids: Sequence[str], outcome: Outcome, *, patience: float) -> None:
        """End these sessions at their next safe point, and after `patience` seconds in any case.

        Sessions that are not logged in yet are ended before their client is told that they are.
        """
        ...


class Ledger:
    """Live sessions, where their users live, and the limits over them.

    `admit` is async because the ledger may live in another process, and for the sake of users on the move; usually it
    answers at once. Check and change stand in one piece, without a checkpoint between them. Moves go on only while
    run() runs.
    """

    def __init__(self, connections_per_user: int, routing: Routing, closer: SessionCloser) -> None:
        self._homes = Homes(connections_per_user, routing, random.random)
        self._closer = closer
        self._patience = routing.move_patience + routing.move_delay + _WAIT_SECONDS
        self._waiting: dict[str, deque[_Waiter]] = {}
        self._pins_dropped = 0
        self._wakes_at = math.inf  # run() does
        self._hurry = trio.Event()

    def __len__(self) -> int:
        return len(self._homes)

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

    async def admit(self, session: Session, place: Place, *, verified: bool) -> str:
        """Take a session in before its backend is asked; gives the backend. May wait for a move of its user.

        Args:
            place: Where the user may live just now; asked again after a wait, perhaps from another task.
            verified: The session counts in connections_per_user from now on; else from confirm() on.
        Raises:
            Refused: LIMIT, the user has as many sessions as he may. UNAVAILABLE. The session was not taken in.
        """
        now = trio.current_time()
        backend = self._homes.admit(session.id, session.name, place(), now, verified=verified)
        if backend is None:
            backend = await self._wait(_Waiter(session.id, session.name, place, verified))
        return backend

    def confirm(self, session: Session) -> None:
        """A session was let in by its backend, verified or not: to be called for each.

        Raises:
            Refused: LIMIT, of those that were not verified: the user has as many sessions as he may. The session is
                still to be released.
        """
        self._homes.confirm(session.id)

    def release(self, session: Session, *, opened: bool) -> None:
        """Let a session go; one that was not admitted is no mistake.

        Args:
            opened: Whether it was logged in at its backend, or may have been: nobody heard the answer.
        """
        if self._homes.release(session.id, trio.current_time(), opened=opened):
            self._act()

    async def _wait(self, waiter: _Waiter) -> str:
        queue = self._waiting.setdefault(waiter.name, deque())
        if len(queue) >= _MOST_WAITING:
            raise Refused(Outcome.UNAVAILABLE, f"{len(queue)} logins of this user wait already for the end of his move")
        queue.append(waiter)
        _WAITING.inc()
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
            _WAITING.dec()
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

    # --- users have to leave ---

    def move(self, name: str) -> int:
        """Close the sessions of a user, who then goes where placement says; gives how many he has."""
        sessions = self._homes.move(name, trio.current_time())
        self._act()
        return sessions

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
            _account(closings)
            for closing in closings:
                self._closer.close(closing.session_ids, closing.outcome, patience=closing.patience)
            for resident, move in ended:
                _tell(resident, move)
                self._wake(resident.name)
        _MOVES_IN_FLIGHT.set(homes.moves_in_flight)
        _PINS_DROPPED.inc(homes.pins_dropped - self._pins_dropped)
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


def _account(closings: Iterable[Closing]) -> None:
    """Count them: all together, for evictions come in thousands."""
    moves: Counter[MoveReason] = Counter()
    abandoned: Counter[str] = Counter()
    for closing in closings:
        count = len(closing.session_ids)
        if closing.repeated:
            log.warning("ledger.move_stuck", name=closing.name, backend=closing.backend, sessions=count)
            continue
        moves[closing.reason] += closing.begins
        if closing.abandoned:
            abandoned[closing.backend] += closing.abandoned
    for reason, users in moves.items():
        _MOVES.labels(reason).inc(users)
    for backend, sessions in abandoned.items():
        _ABANDONED.labels(backend).inc(sessions)


def _tell(resident: Resident, move: Move) -> None:
    if move.reason is not None:
        seconds = trio.current_time() - move.since
        log.info(
            "ledger.moved", name=resident.name, backend=resident.backend, reason=move.reason.value, seconds=seconds
        )


class _Waiter:
    """A login that may have to wait."""

    __slots__ = ("answer", "decided", "name", "place", "session_id", "verified")

    def __init__(self, session_id: str, name: str, place: Place, verified: bool) -> None:
        self.session_id, self.name, self.place, self.verified = session_id, name, place, verified
        self.answer: str | Exception | None = None
        self.decided = trio.Event()

    def ask(self, homes: Homes) -> str | None:
        return homes.admit(self.session_id, self.name, self.place(), trio.current_time(), verified=self.verified)
