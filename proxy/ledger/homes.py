"""Where users live: the rule that nobody has sessions at two backends at once.

Theory of operation. A user is a resident from his first session on, one that his backend has not let in yet included,
to the end of his last one or of his move. All sessions of a resident are at his one backend; there is no other way in
than admit(), which gives that backend, or lets the newcomer wait until nobody is left there. What remains of a user
without sessions is a pin: where he was, for as long as `routing.sticky` and `routing.move_delay` say. Only sessions
that a backend has let in leave one.

Only restore() can bring in more: sessions that live already, and that nobody asked this ledger about. Where such a one
is at another backend than its user, who is at two then, it is a stray: it is told to end, and until it has he gets in
nowhere but where he lives.

Pure: every method decides and changes in one piece, and the time is handed in. What has to be done with sessions is
noted for the host, who carries it out (take_closings), as are the names whose move has ended (take_ended).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from proxy.ledger.guests import Guest
from proxy.ledger.moves import Closing, Moves, Stray
from proxy.ledger.pins import Pin, Pins
from proxy.ledger.resident import NOTHING, Move, MoveReason, Occupancy, Resident, Share, Stage, Whereabouts, Why
from proxy.model import Placement
from proxy.outcome import Outcome, Refused
from proxy.settings.backend_models import Routing

MOST_PINS = 200_000


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of sessions that lived already."""

    sessions: int  # that were not known
    divided: tuple[str, ...]  # users who are at two backends by this
    settled: tuple[str, ...]  # users who had left, as it seemed, and have not


class Homes:
    """Residents by canonical name, and their sessions by id."""

    def __init__(
        self,
        connections_per_user: int,
        routing: Routing,
        jitter: Callable[[], float],
        most_pins: int = MOST_PINS,
        connections_per_backend: int | None = None,
    ) -> None:
        """Args:
        jitter: Gives random numbers of [0, 1).
        """
        self._most_sessions, self._most_there = connections_per_user, connections_per_backend
        self._sticky, self._delay = routing.sticky, routing.move_delay
        self._residents: dict[str, Resident] = {}
        self._sessions: dict[str, Resident] = {}
        self._by_backend: dict[str, dict[str, Resident]] = {}
        self._crowds: dict[str, int] = {}  # by backend: how many sessions are there, those logging in included
        self._strays: dict[str, str] = {}  # by session: where it is, and its user is not
        self._pins = Pins(max(routing.sticky, routing.move_delay), most_pins)
        self._moves = Moves(routing, jitter)
        self.touched: set[str] | None = None  # whose sessions are not what they were; None: nobody wants to know

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

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
            self._check_crowd(backend)
            why = placement.why if backend == placement.home else "hash"
            resident = self._take_in(Resident(name, backend, why, now))
        elif resident.move is None and may_join(resident.backend, placement):
            _check_open(resident.backend, placement)
            if verified:
                self._check_room(resident)
            self._check_crowd(resident.backend)
            if resident.backend == placement.home:
                resident.why = placement.why
        else:
            # Nothing is closed, or waited for, for the sake of a login in vain.
            _check_open(placement.home, placement)
            self._check_crowd(placement.home)
            if resident.move is None:
                self._moves.queue(resident, MoveReason.HOME_CHANGED, now)
            else:
                self._moves.hasten(resident, now)
            return None
        self._enter(resident, session_id, resident.backend, Stage.COUNTED if verified else Stage.TRYING)
        return resident.backend

    def confirm(self, session_id: str) -> None:
        """A session was let in by its backend; if it was not verified it counts from now on. One that is
        not there is no mistake.

        Raises:
            Refused: LIMIT, of those that were not verified; it is still there, to be released.
        """
        resident = self._sessions.get(session_id)
        if resident is None:
            return
        if resident.sessions[session_id] is Stage.TRYING:
            self._check_room(resident)
            resident.counted += 1
            self._touch(resident.name)
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
        self._touch(resident.name)
        backend = self._strays.pop(session_id, resident.backend)
        self._crowds[backend] -= 1
        if not self._crowds[backend]:
            del self._crowds[backend]
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

    def why(self, session_id: str) -> Why:
        """Why the user of a session is where he is.

        Raises:
            KeyError: There is no such session.
        """
        return self._sessions[session_id].why

    def room(self, name: str) -> int:
        """How many sessions more a user may have. Those that nobody has verified yet don't count."""
        resident = self._residents.get(name)
        return self._most_sessions - (0 if resident is None else resident.counted)

    def _enter(self, resident: Resident, session_id: str, backend: str, stage: Stage) -> None:
        resident.sessions[session_id] = stage
        resident.counted += stage is not Stage.TRYING
        self._sessions[session_id] = resident
        self._crowds[backend] = self._crowds.get(backend, 0) + 1
        self._touch(resident.name)

    def _touch(self, name: str) -> None:
        if self.touched is not None:
            self.touched.add(name)

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

    def _check_crowd(self, backend: str) -> None:
        most = self._most_there
        if most is not None and self._crowds.get(backend, 0) >= most:
            # The user has done nothing wrong, so it is no LIMIT to him.
            detail = f"connections_per_backend: {backend} has {self._crowds[backend]} sessions of {most}"
            raise Refused(Outcome.UNAVAILABLE, detail, limit="connections_per_backend")

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

    # --- what lived before ---

    def restore(self, guests: Iterable[Guest], now: float, shift: float = 0.0) -> Restored:
        """Take in sessions that live already, whatever the limits. Those that are known are taken in once.

        A user lives where he is known to, else where most of these sessions of his are, else where the oldest is.

        Args:
            guests: All at once, so far as they are known: what comes later does not change where anybody lives.
            shift: What to add to their `since` for the clock that `now` is of.
        """
        newcomers: dict[str, dict[str, Guest]] = {}
        for guest in guests:
            if not guest.backend:  # it waits to be admitted, and asks anew
                continue
            known = self._sessions.get(guest.id)
            if known is None:
                newcomers.setdefault(guest.name, {})[guest.id] = guest
            elif known.name == guest.name:
                _catch_up(known, guest)
        divided, settled = [], []
        for name, mine in newcomers.items():
            resident = self._residents.get(name)
            if resident is not None and not resident.sessions:
                self._moves.forget(resident, now)
                self._let_go(resident)
                if resident.left_at is not None:
                    self._pins.put(name, Pin(resident.backend, resident.left_at, sticky=False))
                settled.append(name)
                resident = None
            if resident is None:
                resident = self._take_in(_resident(name, mine.values(), shift))
            was_divided = not self._strays.keys().isdisjoint(resident.sessions)
            if self._bring_back(resident, mine.values(), now) and not was_divided:
                divided.append(name)
        return Restored(sum(map(len, newcomers.values())), tuple(divided), tuple(settled))

    def _bring_back(self, resident: Resident, guests: Iterable[Guest], now: float) -> bool:
        """Gives whether some are strays."""
        strays: dict[str, list[str]] = {}
        for guest in guests:
            self._enter(resident, guest.id, guest.backend, guest.stage)
            if guest.backend != resident.backend:
                self._strays[guest.id] = guest.backend
                strays.setdefault(guest.backend, []).append(guest.id)
        self._moves.joined(resident)
        for backend, session_ids in strays.items():
            self._moves.part(Stray(resident.name, backend, session_ids, self._strays.__contains__), now)
        return bool(strays)

    def memory(self, now: float) -> dict[str, Any]:
        """Where users were last, for another ledger; JSON. Sessions are for their workers to tell of.

        Who has some is where he is: they may end before anybody tells of them.
        """
        here = []
        for resident in self._residents.values():
            left_at = now if Stage.OPENED in resident.sessions.values() else resident.left_at
            if left_at is not None:
                sticky = resident.why != "failover" and resident.move is None
                here.append([resident.name, resident.backend, round(now - left_at, 3), sticky])
        return {"pins": self._pins.memory(now) + here}

    def recall(self, memory: Mapping[str, Any], now: float) -> None:
        """Take over what another ledger remembers."""
        self._pins.recall(memory.get("pins"), now)

    # --- what other proxies know ---

    def share(self, name: str, now: float) -> Share:
        """What there is of a user here, for them."""
        resident = self._residents.get(name)
        if resident is None:
            pin = self._pins.get(name, now)
            return NOTHING if pin is None else Share(pin.backend, 0, 0, now - pin.left_at, pin.sticky)
        if resident.sessions:
            return Share(resident.backend, len(resident.sessions), resident.counted)
        left = None if resident.left_at is None else now - resident.left_at
        return Share(resident.backend, 0, 0, left, sticky=False)  # he is on the move

    def occupants(self) -> list[str]:
        """Who has sessions here."""
        return [resident.name for resident in self._residents.values() if resident.sessions]

    def absent(self, now: float) -> list[str]:
        """Who has none, and had until a while ago."""
        return self._pins.names(now)

    def remember(self, name: str, backend: str, left_at: float, *, sticky: bool) -> None:
        """He was at this backend later than anywhere that is known here; without effect while he has sessions."""
        self._pins.put(name, Pin(backend, left_at, sticky))

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

    def unbind(self, name: str) -> None:
        """What bound him to his backend does not any more."""
        resident = self._residents.get(name)
        if resident is not None and resident.why == "override":
            resident.why = "hash"  # until his next login tells

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
        users = sum(bool(resident.sessions) for resident in self._by_backend.get(backend, {}).values())
        return Occupancy(users, self._crowds.get(backend, 0))


def _resident(name: str, guests: Collection[Guest], shift: float) -> Resident:
    """A user as his sessions tell of him."""
    crowds = Counter(guest.backend for guest in guests)
    most = max(crowds.values())
    oldest = min((guest for guest in guests if crowds[guest.backend] == most), key=lambda guest: guest.since)
    newest = max((guest for guest in guests if guest.backend == oldest.backend), key=lambda guest: guest.since)
    return Resident(name, oldest.backend, newest.why, oldest.since + shift)


def _catch_up(resident: Resident, guest: Guest) -> None:
    """A session that is known may have come further than was heard."""
    stage = resident.sessions[guest.id]
    if stage is Stage.TRYING and guest.stage is not Stage.TRYING:
        resident.counted += 1
    if stage is not Stage.OPENED and guest.stage is not Stage.TRYING:
        resident.sessions[guest.id] = guest.stage


def may_join(backend: str, placement: Placement) -> bool:
    """Whether a user may join sessions that he has at a backend."""
    return backend == placement.home or (backend in placement.joinable and placement.why != "override")


def _check_open(backend: str, placement: Placement) -> None:
    if not backend:
        raise Refused(Outcome.UNAVAILABLE, placement.problem or "there is no backend for this user")
    if backend in placement.closed:
        raise Refused(Outcome.UNAVAILABLE, f"{backend}: {placement.closed[backend]}")


def _count(residents: list[Resident]) -> Occupancy:
    return Occupancy(len(residents), sum(len(resident.sessions) for resident in residents))
