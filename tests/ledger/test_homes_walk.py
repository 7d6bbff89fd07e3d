"""Whatever logins, routing, administrators and the clock do: no user ever has sessions at two backends.

But for those who were let in without asking anybody, and are told to end as soon as the ledger hears of them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from functools import partial

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.ledger.guests import Guest
from proxy.ledger.homes import Homes
from proxy.ledger.resident import Stage
from proxy.model import Placement
from proxy.outcome import Outcome, Refused
from proxy.settings.backend_models import Routing

BACKENDS = ("a", "b", "c")
NAMES = ("ann", "bob")
MOST_SESSIONS = 2
backends = st.sampled_from(BACKENDS)
names = st.sampled_from(NAMES)
some = st.frozensets(backends)


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    """Any, those too that routing would never make; more often one that lets in."""
    if draw(st.booleans()):
        home = draw(backends)
        joinable = draw(st.sampled_from((frozenset(BACKENDS), frozenset(home))))
        return Placement(home, "hash", joinable, joinable)
    joinable = draw(some)
    return Placement(
        home=draw(st.sampled_from(("", *BACKENDS, *BACKENDS))),
        why=draw(st.sampled_from(("hash", "hash", "failover", "override"))),
        joinable=joinable,
        sticky=joinable & draw(some),
        closed=dict.fromkeys(draw(st.frozensets(backends, max_size=1)), "down"),
        problem="nowhere",
    )


@dataclass(eq=False)
class Live:
    """A session that was admitted and not released."""

    id: str
    name: str
    backend: str
    counts: bool
    since: float
    opened: bool = False

    def as_guest(self) -> Guest:
        stage = Stage.OPENED if self.opened else Stage.COUNTED if self.counts else Stage.TRYING
        return Guest(self.id, self.name, "192.0.2.1:4711", "[::]:993", "w1.0", self.since, self.backend, stage)


class Walk(RuleBasedStateMachine):
    """The model beside it knows only what callers see."""

    @initialize(
        sticky=st.sampled_from((0.0, 5.0, 900.0)),
        delay=st.sampled_from((0.0, 2.0)),
        most=st.integers(1, 3),
        most_there=st.sampled_from((None, None, 2)),
        jitter=st.floats(0, 1, exclude_max=True),
    )
    def furnish(self, sticky: float, delay: float, most: int, most_there: int | None, jitter: float) -> None:
        self.delay, self.most, self.most_there, self.evicts = delay, most, most_there, False
        routing = Routing(sticky=sticky, move_delay=delay, moves_in_flight=most)
        self.made = partial(Homes, MOST_SESSIONS, routing, lambda: jitter, connections_per_backend=most_there)
        self.homes = self.made()
        self.now = 1000.0
        self.numbers = itertools.count()
        self.live: list[Live] = []
        self.waiting: dict[str, tuple[str, bool]] = {}  # by id: whose, and whether he is verified
        self.left: dict[str, tuple[str, float]] = {}  # by name: where he had the last session that was let in
        self.told: set[str] = set()  # sessions that were told to end
        self.lives: dict[str, str] = {}  # by name, of those with sessions: where all but strays are
        self.strays: set[str] = set()
        self.alone: list[Live] = []  # sessions that the ledger has not heard of

    # --- what happens ---

    @rule(name=names, placement=placements(), verified=st.booleans())
    def log_in(self, name: str, placement: Placement, verified: bool) -> None:
        self._ask(f"{name}-{next(self.numbers)}", name, placement, verified)

    def _ask(self, session_id: str, name: str, placement: Placement, verified: bool) -> None:
        before = self._seen(name)
        self.waiting.pop(session_id, None)
        try:
            backend = self.homes.admit(session_id, name, placement, self.now, verified=verified)
        except Refused as refusal:
            self._refused(name, before, refusal.outcome)
            return
        if backend is None:
            self.waiting[session_id] = (name, verified)
        else:
            self._admitted(session_id, name, placement, backend, verified)

    def _refused(self, name: str, before: object, outcome: Outcome) -> None:
        assert self._seen(name) == before  # nothing has changed
        if outcome is Outcome.LIMIT:
            assert self._counting(name) >= MOST_SESSIONS

    def _counting(self, name: str) -> int:
        return sum(session.counts for session in self.live if session.name == name)

    def _admitted(self, session_id: str, name: str, placement: Placement, backend: str, verified: bool) -> None:
        assert backend not in placement.closed
        assert backend == placement.home or backend in placement.joinable
        if placement.why == "override":
            assert backend == placement.home
        last, left_at = self.left.get(name, (backend, 0.0))
        if last != backend and not any(each.name == name for each in self.live):
            assert self.now >= left_at + self.delay
        assert not verified or self._counting(name) < MOST_SESSIONS
        assert self.most_there is None or sum(each.backend == backend for each in self.live) < self.most_there
        assert self.lives.setdefault(name, backend) == backend
        self.live.append(Live(session_id, name, backend, verified, self.now))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(self.live))
        counting = self._counting(session.name)
        try:
            self.homes.confirm(session.id)
        except Refused:
            assert counting >= MOST_SESSIONS
            self._release(session, opened=True)
        else:
            assert session.counts or counting < MOST_SESSIONS
            session.counts = session.opened = True

    @precondition(lambda self: self.live)
    @rule(data=st.data(), opened=st.booleans())
    def release(self, data: st.DataObject, opened: bool) -> None:
        self._release(data.draw(st.sampled_from(self.live)), opened)

    def _release(self, session: Live, opened: bool) -> None:
        self.live.remove(session)
        self.strays.discard(session.id)
        lived = self.lives[session.name]
        if not any(each.name == session.name for each in self.live):
            del self.lives[session.name]
        self.homes.release(session.id, self.now, opened=opened)
        self.homes.release(session.id, self.now, opened=True)  # twice is once
        if opened:
            self.left[session.name] = lived, self.now  # where a stray was does not count

    @rule(share=st.sampled_from((0.5, 1.0)), opened=st.booleans())
    def obey(self, share: float, opened: bool) -> None:
        """Sessions that were told to end do so, or some of them."""
        leaving = [session for session in self.live if session.id in self.told]
        for session in leaving[: round(len(leaving) * share)]:
            self._release(session, opened)

    # --- processes die ---

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def worker_gone(self, data: st.DataObject) -> None:
        """Many sessions end at once, and nobody says how."""
        gone = data.draw(st.sets(st.sampled_from(self.live)))
        for session in sorted(gone, key=lambda session: session.id):
            self._release(session, opened=True)

    @rule(name=names, backend=backends, verified=st.booleans())
    def log_in_alone(self, name: str, backend: str, verified: bool) -> None:
        """A worker cannot ask, and places by itself."""
        self.alone.append(Live(f"{name}-{next(self.numbers)}", name, backend, verified, self.now, opened=verified))

    @precondition(lambda self: self.alone)
    @rule(placement=placements(), again=st.booleans())
    def report(self, placement: Placement, again: bool) -> None:
        """It can again, while the ledger goes on."""
        self._restore(self.alone, self.live if again else [], placement)

    @rule(hands_over=st.booleans(), late=st.booleans(), placement=placements())
    def restart(self, hands_over: bool, late: bool, placement: Placement) -> None:
        """Another ledger, that hears of all sessions, perhaps not of all at once."""
        memory = self.homes.memory(self.now)
        self.homes = self.made()
        if hands_over:
            self.homes.recall(memory, self.now)
        else:
            self.left.clear()
        before = [*self.live, *self.alone]
        self.live, self.alone = [], []
        self.lives.clear()
        self.strays.clear()
        part = len(before) // 2 if late else len(before)
        self._restore(before[:part], [], placement)
        self._restore(before[part:], before[:part], placement)
        for name in NAMES:
            self._ask_anew(name, placement)

    def _restore(self, sessions: list[Live], again: list[Live], placement: Placement) -> None:
        counts = Counter((session.name, session.backend) for session in sessions)
        divided = {session.name for session in self.live if session.id in self.strays}
        reported = [session.as_guest() for session in (*again, *sessions, *again, *sessions)]
        restored = self.homes.restore(reported, self.now)
        assert restored.sessions == len(sessions)
        self.live += sessions
        if sessions is self.alone:
            self.alone = []
        for name in {session.name for session in sessions}:
            found = self.homes.find(name, self.now)
            assert found is not None
            if name not in self.lives:
                assert counts[name, found.backend] == max(counts[name, backend] for backend in BACKENDS)
            assert self.lives.setdefault(name, found.backend) == found.backend
        self.strays |= {session.id for session in sessions if session.backend != self.lives[session.name]}
        now_divided = {session.name for session in self.live if session.id in self.strays}
        assert set(restored.divided) == now_divided - divided
        for name in restored.settled:
            self._ask_anew(name, placement)

    # --- time, and administrators ---

    @rule(
        seconds=st.sampled_from((0.0, 0.5, 0.5, 1.0, 2.0, 50.0, 1000.0)), placement=placements(), obeyed=st.booleans()
    )
    def later(self, seconds: float, placement: Placement, obeyed: bool) -> None:
        if obeyed:
            self.obey(1.0, opened=True)
        self.now += seconds
        self._advance(placement)

    def _advance(self, placement: Placement) -> None:
        self.homes.advance(self.now)
        for resident, _ in self.homes.take_ended():
            self._ask_anew(resident.name, placement)

    def _ask_anew(self, whose: str, placement: Placement) -> None:
        for session_id, (name, verified) in list(self.waiting.items()):
            if name == whose:
                self._ask(session_id, name, placement, verified)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        del self.waiting[data.draw(st.sampled_from(sorted(self.waiting)))]

    @rule(backend=backends, spread=st.sampled_from((0.0, 4.0, 60.0)), patience=st.sampled_from((0.0, 15.0)))
    def evict(self, backend: str, spread: float, patience: float) -> None:
        self.evicts = True
        outcome = Outcome.DRAINED if patience else Outcome.BACKEND_CLOSED
        there = self.homes.evict(backend, outcome, self.now, spread=spread, patience=patience)
        assert there.sessions == sum(self.lives[session.name] == backend for session in self.live)

    @rule(backend=backends, seconds=st.sampled_from((0.0, 10.0, 300.0)))
    def drain(self, backend: str, seconds: float) -> None:
        self.homes.drain(backend, seconds, self.now)

    @rule(backend=backends, placement=placements())
    def undrain(self, backend: str, placement: Placement) -> None:
        for name in self.homes.undrain(backend):
            self._ask_anew(name, placement)

    @rule(name=names)
    def move(self, name: str) -> None:
        self.homes.move(name, self.now)

    @rule(name=names)
    def unbind(self, name: str) -> None:
        self.homes.unbind(name)

    # --- what has to hold ---

    def _seen(self, name: str) -> object:
        """What can be seen of a user, but for an eviction that a login may hasten."""
        found = self.homes.find(name, self.now)
        return len(self.homes), found

    @invariant()
    def nobody_is_at_two_backends(self) -> None:
        for name in NAMES:
            mine = [session for session in self.live if session.name == name]
            backends = {session.backend for session in mine if session.id not in self.strays}
            assert backends <= {self.lives.get(name)}
            found = self.homes.find(name, self.now)
            assert self.homes.room(name) == MOST_SESSIONS - self._counting(name)
            if mine:
                assert found is not None
                assert (found.backend, found.sessions) == (self.lives[name], len(mine))
            else:
                assert found is None or not found.sessions

    @invariant()
    def whoever_waits_will_be_told(self) -> None:
        for name, _ in self.waiting.values():
            found = self.homes.find(name, self.now)
            assert found is not None
            assert found.moving

    @invariant()
    def there_are_not_too_many_moves(self) -> None:
        assert self.evicts or self.homes.moves_in_flight <= self.most
        assert len(self.homes._pins) <= len(NAMES)
        assert len(self.homes) == len(self.live)
        for backend in BACKENDS:
            there = self.homes.residents_of(backend)
            assert there.sessions == sum(session.backend == backend for session in self.live)
            assert there.users == sum(lives == backend for lives in self.lives.values())

    @invariant()
    def only_live_sessions_are_told_to_end(self) -> None:
        all_of: dict[str, set[str]] = {}
        for closing in self.homes.take_closings():
            mine = {session.id for session in self.live if session.name == closing.name}
            told = set(closing.session_ids)
            assert told
            assert told <= mine
            assert told <= self.strays or closing.backend == self.lives[closing.name]
            if closing.backend == self.lives[closing.name]:
                all_of[closing.name] = told  # of two in one piece the later knows of all
            self.told |= told
        for name, told in all_of.items():
            assert told == {session.id for session in self.live if session.name == name}
        assert self.strays <= self.told

    def teardown(self) -> None:
        """All is over: everybody gets in, everybody leaves, and nothing remains."""
        if not hasattr(self, "homes"):
            return
        open_house = Placement("a", "hash", BACKENDS, BACKENDS)
        for session in list(self.live):
            self._release(session, opened=True)
        for _ in range(3):  # moves that wait for others
            self.now += 1000
            self._advance(open_house)
        assert not self.waiting
        for session in list(self.live):
            self._release(session, opened=True)
        self.now += 1000
        self._advance(open_house)
        moves = self.homes._moves
        homes = self.homes
        remains = (homes._residents, homes._sessions, homes._by_backend, homes._crowds, homes._strays)
        assert not any(
            (*remains, homes._pins._pins, moves._agenda, moves._queue, moves._turns, moves._drains, moves.in_flight)
        )


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
