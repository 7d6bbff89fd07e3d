"""Where users live: the rule that nobody has sessions at two backends at once.

Theory of operation. A user is a resident from his first session on, one that his backend has not let in yet included,
to the end of his last one or of his move. All sessions of a resident are at his one backend; there is no other way in
than admit(), which gives that backend, or lets the newcomer wait until nobody is left there. What remains of a user
without sessions is a pin: where he was, for as long as `routing.sticky` and `routing.move_delay` say. Only sessions
that a backend has let in leave one.

Pure: every method decides and changes in one piece, and the time is handed in. What has to be done with sessions is
noted for the host, who carries it out (take_closings), as are the names whose move has ended (take_ended).
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.ledger.moves import Closing, Moves
from proxy.ledger.pins import Pin, Pins
from proxy.ledger.resident import Move, MoveReason, Occupancy, Resident, Stage, Whereabouts
from proxy.model import Placement
from proxy.outcome import Outcome, Refused
from proxy.settings.backend_models import Routing

MOST_PINS = 200_000


class Homes:
    """Residents by canonical name, and their sessions by id."""

    def __init__(
        self, connections_per_user: int, routing: Routing, jitter: Callable[[], float], most_pins: int = MOST_PINS
    ) -> None:
        """Args:
        jitter: Gives random numbers of [0, 1).
        """
        self._most_sessions = connections_per_user
        self._sticky, self._delay = routing.sticky, routing.move_delay
        self._residents: dict[str, Resident] = {}
        self._sessions: dict[str, Resident] = {}
        self._by_backend: dict[str, dict[str, Resident]] = {}
        self._pins = Pins(max(routing.sticky, routing.move_delay), most_pins)
        self._moves = Moves(routing, jitter)

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def moves_in_flight(self) -> int:
        return self._moves.in_flight

    @property
    def pins_dropped(self) -> int:
        return self._pins.dropped

    # --- sessions come and go ---

    def admit(self, session_id: str, name: str, placement: Placement, now: float, *, verified: bool) -> str | None:
        """Take a session in; gives its backend, or None: it has to wait until the move of this user has ended.

        Args:
            verified: Whether it counts in connections_per_user from now on; else from confirm() on.
        Raises:
            Refused: LIMIT or UNAVAILABLE; nothing has changed.
        """
        resident = self._residents.get(name)
        if resident is None:
            backend = self._first_backend(name, placement, now)
            if backend is None:
                return None
            why = placement.why if backend == placement.home else "hash"
            resident = self._take_in(Resident(name, backend, why, now))
        elif resident.move is None and _may_join(resident.backend, placement):
            _check_open(resident.backend, placement)
            if verified:
                self._check_room(resident)
            if resident.backend == placement.home:
                resident.why = placement.why
        else:
            _check_open(placement.home, placement)  # nothing is closed, or waited for, for the sake of a login in vain
            if resident.move is None:
                self._moves.queue(resident, MoveReason.HOME_CHANGED, now)
            else:
                self._moves.hasten(resident, now)
            return None
        resident.sessions[session_id] = Stage.COUNTED if verified else Stage.TRYING
        resident.counted += verified
        self._sessions[session_id] = resident
        return resident.backend

    def confirm(self, session_id: str) -> None:
        """A session was let in by its backend; if it was not verified it counts from now on.

        Raises:
            Refused: LIMIT, of those that were not verified; it is still there, to be released.
        """
        resident = self._sessions[session_id]
        if resident.sessions[session_id] is Stage.TRYING:
            self._check_room(resident)
            resident.counted += 1
        resident.sessions[session_id] = Stage.OPENED

    def release(self, session_id: str, now: float, *, opened: bool) -> bool:
        """A session is gone; gives whether that is a step of a move. One that is not there is no mistake.

        Args:
            opened: Whether its backend had let it in, or may have.
        """
        resident = self._sessions.pop(session_id, None)
        if resident is None:
            return False
        resident.counted -= resident.sessions.pop(session_id) is not Stage.TRYING
        if opened:
            resident.left_at = now
        if resident.sessions:
            return False
        if resident.move is not None:
            self._moves.emptied(resident, resident.move, now)
            return True
        self._let_go(resident)
        if resident.left_at is not None:
            # From a substitute he returns as soon as he can.
            self._pins.put(resident.name, Pin(resident.backend, resident.left_at, resident.why != "failover"))
        return False

    def _first_backend(self, name: str, placement: Placement, now: float) -> str | None:
        """Where somebody without sessions goes; None: he has left another backend only just now."""
        home = placement.home
        pin = self._pins.get(name, now)
        if pin is not None and pin.backend != home:
            if (
                pin.sticky
                and placement.why != "override"
                and now < pin.left_at + self._sticky
                and pin.backend in placement.sticky
                and pin.backend not in placement.closed
            ):
                return pin.backend
            _check_open(home, placement)
            free_at = pin.left_at + self._delay
            if now < free_at:
                absent = self._take_in(Resident(name, pin.backend, "hash", pin.left_at))
                self._moves.hold(absent, free_at, now)
                return None
        _check_open(home, placement)
        return home

    def _check_room(self, resident: Resident) -> None:
        if resident.counted >= self._most_sessions:
            detail = f"connections_per_user: {resident.counted} sessions of {self._most_sessions}"
            raise Refused(Outcome.LIMIT, detail, limit="connections_per_user")

    def _take_in(self, resident: Resident) -> Resident:
        self._residents[resident.name] = resident
        neighbours = self._by_backend.get(resident.backend)
        if neighbours is None:
            neighbours = self._by_backend[resident.backend] = {}
        neighbours[resident.name] = resident
        return resident

    def _let_go(self, resident: Resident) -> None:
        del self._residents[resident.name]
        neighbours = self._by_backend[resident.backend]
        del neighbours[resident.name]
        if not neighbours:
            del self._by_backend[resident.backend]

    # --- users have to leave ---

    def move(self, name: str, now: float) -> int:
        """Close the sessions of a user, to log in anew where placement says; gives how many there are."""
        self._pins.loosen(name)
        resident = self._residents.get(name)
        if resident is None:
            return 0
        if resident.move is None:
            self._moves.queue(resident, MoveReason.REQUEST, now)
        else:
            self._moves.hasten(resident, now)
        return len(resident.sessions)

    def hasten(self, name: str, now: float) -> None:
        """Logins of this user wait: he does not, until his eviction's time has come."""
        resident = self._residents.get(name)
        if resident is not None:
            self._moves.hasten(resident, now)

    def evict(self, backend: str, outcome: Outcome, now: float, *, spread: float, patience: float) -> Occupancy:
        """Close all sessions at a backend, user by user, spread over so many seconds."""
        there = [resident for resident in self._by_backend.get(backend, {}).values() if resident.sessions]
        self._moves.evict(there, outcome, patience, spread, now)
        return _count(there)

    def drain(self, backend: str, seconds: float, now: float) -> Occupancy:
        """The users of a backend move one after the other. An override stays: nobody else has that mail."""
        there = [
            resident
            for resident in self._by_backend.get(backend, {}).values()
            if resident.sessions and resident.why != "override"
        ]
        self._moves.drain(backend, there, seconds, now)
        return _count(there)

    def undrain(self, backend: str) -> list[str]:
        """Whose turn to leave has not come stays; gives who was to be evicted."""
        self._moves.undrain(backend)
        return self._moves.call_off(self._by_backend.get(backend, {}).values())

    # --- time passes ---

    def next_due(self) -> float:
        """When advance() has something to do. Old pins don't count: they are of no use, and do no harm."""
        return self._moves.next_due()

    def advance(self, now: float) -> None:
        """Take the steps whose time has come, and forget what is of no use."""
        self._pins.expire(now)
        self._moves.advance(now)
        for resident, move in self._moves.ended:
            if resident.move is move:  # else it is noted since an earlier call, and done
                resident.move = None
                self._let_go(resident)
                if move.reason is not None:  # he goes where placement says; the delay is over
                    self._pins.drop(resident.name)

    def take_closings(self) -> list[Closing]:
        """The sessions that have to be closed since the last call."""
        taken, self._moves.closings = self._moves.closings, []
        return taken

    def take_ended(self) -> list[tuple[Resident, Move]]:
        """The moves that have ended since the last call."""
        taken, self._moves.ended = self._moves.ended, []
        return taken

    # --- for people ---

    def find(self, name: str, now: float) -> Whereabouts | None:
        """Where a user is or was; None: nowhere that counts."""
        resident = self._residents.get(name)
        if resident is not None:
            move = resident.move
            moving = f"{move.reason or 'delay'}: {move.phase.value}" if move is not None else ""
            left_at = None if resident.sessions else resident.left_at
            since = resident.since if left_at is None else left_at
            return Whereabouts(resident.backend, len(resident.sessions), since, None, moving)
        pin = self._pins.get(name, now)
        if pin is None or not pin.sticky or pin.left_at + self._sticky <= now:
            return None
        return Whereabouts(pin.backend, 0, pin.left_at, pin.left_at + self._sticky)

    def residents_of(self, backend: str) -> Occupancy:
        """How many there are at a backend."""
        return _count([resident for resident in self._by_backend.get(backend, {}).values() if resident.sessions])


def _may_join(backend: str, placement: Placement) -> bool:
    return backend == placement.home or (backend in placement.joinable and placement.why != "override")


def _check_open(backend: str, placement: Placement) -> None:
    if not backend:
        raise Refused(Outcome.UNAVAILABLE, placement.problem or "there is no backend for this user")
    if backend in placement.closed:
        raise Refused(Outcome.UNAVAILABLE, f"{backend}: {placement.closed[backend]}")


def _count(residents: list[Resident]) -> Occupancy:
    return Occupancy(len(residents), sum(len(resident.sessions) for resident in residents))
