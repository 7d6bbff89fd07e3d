"""How users leave their backends: so many at once, in their order, each step at its time.

A move is SCHEDULED (an eviction, until its time comes) or QUEUED (until fewer than routing.moves_in_flight are under
way), then CLOSING until the last session is gone, then DELAYED for routing.move_delay, and over. Evictions are spread
by time and don't queue. Users of a backend that drains are on no move before it begins: until then they may log in
there, and they don't keep others waiting who cannot. Pure: the time is handed in, and what has to be done with sessions
is only noted (`closings`).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from proxy.ledger.resident import Move, MoveReason, Phase, Resident, Stage
from proxy.outcome import Outcome
from proxy.settings.backend_models import Routing

# Sessions are told again to end if they are still there so long after their patience.
_REPEAT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Closing:
    """Sessions that have to end now."""

    name: str
    backend: str
    session_ids: Sequence[str]
    outcome: Outcome
    patience: float
    reason: MoveReason
    begins: bool = False  # with this the move begins; else they were told before
    repeated: bool = False  # they were told before, and that long ago
    abandoned: int = 0  # so many of them, let in by a backend that cannot be reached, are given up by this


@dataclass(frozen=True, slots=True, eq=False)
class Stray:
    """Sessions of a user at another backend than his."""

    name: str
    backend: str
    session_ids: Sequence[str]
    is_there: Callable[[str], bool]  # whether one of them has not ended yet


class Moves:
    """All moves of a ledger."""

    def __init__(self, routing: Routing, jitter: Callable[[], float]) -> None:
        """Args:
        jitter: Gives random numbers of [0, 1).
        """
        self._most, self._delay, self._patience = routing.moves_in_flight, routing.move_delay, routing.move_patience
        self._jitter = jitter
        self._agenda: list[tuple[float, int, Callable[[float], None]]] = []  # a heap; what is out of date does nothing
        self._numbers = itertools.count()
        self._queue: deque[tuple[Resident, Move]] = deque()  # what is not QUEUED any more is passed over
        self._drains: dict[str, _Drain] = {}
        self._turns: deque[tuple[Resident, _Drain]] = deque()  # after the queue
        self.in_flight = 0
        self.closings: list[Closing] = []  # what has to be done; whoever does it takes it from here
        self.ended: list[tuple[Resident, Move]] = []

    # --- who has to leave ---

    def queue(self, resident: Resident, reason: MoveReason, now: float) -> None:
        """He moves as soon as it is his turn."""
        resident.move = Move(reason, Outcome.MOVED, self._patience, Phase.QUEUED, now)
        self._queue.append((resident, resident.move))
        self._fill(now)

    def hold(self, resident: Resident, until: float, now: float) -> None:
        """He has left by himself; until then nobody logs in under his name."""
        resident.move = Move(None, Outcome.MOVED, 0.0, Phase.DELAYED, now)
        self._at(until, partial(self._end, resident, resident.move))

    def evict(
        self, residents: Sequence[Resident], outcome: Outcome, patience: float, spread: float, now: float
    ) -> None:
        """All of these have to leave, wherever they go."""
        for resident, due in zip(residents, self._times(len(residents), spread, now), strict=True):
            move = resident.move
            if move is not None and move.phase is Phase.CLOSING:
                abandons = move.outcome is not Outcome.BACKEND_CLOSED
                move.reason, move.outcome, move.patience = MoveReason.EVICTION, outcome, min(patience, move.patience)
                self._close(resident, move, MoveReason.EVICTION, abandons=abandons)
            else:
                move = resident.move = Move(MoveReason.EVICTION, outcome, patience, Phase.SCHEDULED, now)
                self._at(due, partial(self._start, resident, move))

    def drain(self, backend: str, residents: Sequence[Resident], seconds: float, now: float) -> None:
        """All of these have to leave, one after the other; who was to leave this backend before is told anew."""
        self.undrain(backend)
        if residents:
            drain = self._drains[backend] = _Drain(backend, len(residents))
            for resident, due in zip(residents, self._times(len(residents), seconds, now), strict=True):
                self._at(due, partial(self._take_turn, drain, resident))

    def undrain(self, backend: str) -> None:
        """Whose turn has not come stays."""
        self._drains.pop(backend, None)

    def call_off(self, residents: Iterable[Resident]) -> list[str]:
        """Whose eviction has not begun stays, unless his backend is lost; gives their names."""
        staying = []
        for resident in residents:
            move = resident.move
            if move is not None and move.phase is Phase.SCHEDULED and move.outcome is not Outcome.BACKEND_CLOSED:
                resident.move = None
                staying.append(resident.name)
        return staying

    def part(self, stray: Stray, now: float) -> None:
        """Sessions of somebody live where he does not, and have to end whatever he does himself."""
        self._part(stray, now, repeated=False)

    def joined(self, resident: Resident) -> None:
        """He has more sessions than were told to end."""
        move = resident.move
        if move is not None and move.phase is Phase.CLOSING and move.reason is not None:
            self._close(resident, move, move.reason)

    def forget(self, resident: Resident, now: float) -> None:
        """He is not on the move any more."""
        move, resident.move = resident.move, None
        if move is not None:
            self.in_flight -= move.in_flight
            self._fill(now)

    def hasten(self, resident: Resident, now: float) -> None:
        """Somebody waits to log in: the eviction need not wait for its time."""
        if resident.move is not None:
            self._start(resident, resident.move, now)

    # --- steps ---

    def emptied(self, resident: Resident, move: Move, now: float) -> None:
        """The last session of somebody on the move is gone."""
        move.phase = Phase.DELAYED
        self._at(now + self._delay, partial(self._end, resident, move))

    def next_due(self) -> float:
        """When advance() has something to do."""
        return self._agenda[0][0] if self._agenda else math.inf

    def advance(self, now: float) -> None:
        """Take the steps whose time has come."""
        while self._agenda and self._agenda[0][0] <= now:
            _, _, step = heapq.heappop(self._agenda)
            step(now)

    def _at(self, due: float, step: Callable[[float], None]) -> None:
        heapq.heappush(self._agenda, (due, next(self._numbers), step))

    def _times(self, count: int, seconds: float, now: float) -> Iterator[float]:
        """So many moments, spread evenly but for jitter."""
        for position in range(count):
            yield now + seconds * (position + self._jitter()) / count

    def _take_turn(self, drain: _Drain, resident: Resident, now: float) -> None:
        self._turns.append((resident, drain))
        self._fill(now)

    def _start(self, resident: Resident, move: Move, now: float) -> None:
        if resident.move is move and move.phase is Phase.SCHEDULED:
            self._begin(resident, move, now)

    def _fill(self, now: float) -> None:
        while self.in_flight < self._most:
            if self._queue:
                resident, move = self._queue.popleft()
                if resident.move is move and move.phase is Phase.QUEUED:
                    self._begin(resident, move, now)
            elif self._turns:
                resident, drain = self._turns.popleft()
                if self._drains.get(drain.backend) is drain:
                    self._leave(resident, drain, now)
            else:
                break

    def _leave(self, resident: Resident, drain: _Drain, now: float) -> None:
        drain.left -= 1
        if not drain.left:
            del self._drains[drain.backend]
        if resident.move is None and resident.sessions:
            resident.move = Move(MoveReason.DRAIN, Outcome.MOVED, self._patience, Phase.CLOSING, now)
            self._begin(resident, resident.move, now)

    def _begin(self, resident: Resident, move: Move, now: float) -> None:
        move.phase, move.in_flight = Phase.CLOSING, True
        self.in_flight += 1
        assert move.reason is not None  # only a delay has none
        self._close(resident, move, move.reason, begins=True, abandons=True)
        self._at(now + move.patience + _REPEAT_SECONDS, partial(self._repeat, resident, move))

    def _close(
        self,
        resident: Resident,
        move: Move,
        reason: MoveReason,
        *,
        begins: bool = False,
        repeated: bool = False,
        abandons: bool = False,
    ) -> None:
        abandoned = 0
        if abandons and move.outcome is Outcome.BACKEND_CLOSED:
            abandoned = sum(stage is Stage.OPENED for stage in resident.sessions.values())
        self.closings.append(
            Closing(
                resident.name,
                resident.backend,
                tuple(resident.sessions),
                move.outcome,
                move.patience,
                reason,
                begins,
                repeated,
                abandoned,
            )
        )

    def _repeat(self, resident: Resident, move: Move, now: float) -> None:
        """What was told may have been lost on the way, and its user cannot log in until all is closed."""
        if resident.move is move and move.phase is Phase.CLOSING and move.reason is not None:
            self._close(resident, move, move.reason, repeated=True)
            self._at(now + move.patience + _REPEAT_SECONDS, partial(self._repeat, resident, move))

    def _part(self, stray: Stray, now: float, *, repeated: bool = True) -> None:
        there = tuple(filter(stray.is_there, stray.session_ids))
        if there:
            self.closings.append(
                Closing(
                    stray.name,
                    stray.backend,
                    there,
                    Outcome.MOVED,
                    self._patience,
                    MoveReason.HOME_CHANGED,
                    repeated=repeated,
                )
            )
            self._at(now + self._patience + _REPEAT_SECONDS, partial(self._part, stray))

    def _end(self, resident: Resident, move: Move, now: float) -> None:
        if resident.move is move:
            self.in_flight -= move.in_flight
            self.ended.append((resident, move))
            self._fill(now)


@dataclass(slots=True, eq=False)
class _Drain:
    """A backend whose users leave one after the other."""

    backend: str
    left: int  # how many have not had their turn
