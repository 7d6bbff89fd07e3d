"""Whatever logins, routing, administrators and the clock do: no user ever has sessions at two backends."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.ledger.homes import Homes
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


class Walk(RuleBasedStateMachine):
    """The model beside it knows only what callers see."""

    @initialize(
        sticky=st.sampled_from((0.0, 5.0, 900.0)),
        delay=st.sampled_from((0.0, 2.0)),
        most=st.integers(1, 3),
        jitter=st.floats(0, 1, exclude_max=True),
    )
    def furnish(self, sticky: float, delay: float, most: int, jitter: float) -> None:
        self.delay, self.most, self.evicts = delay, most, False
        routing = Routing(sticky=sticky, move_delay=delay, moves_in_flight=most)
        self.homes = Homes(MOST_SESSIONS, routing, lambda: jitter)
        self.now = 1000.0
        self.numbers = itertools.count()
        self.live: list[Live] = []
        self.waiting: dict[str, tuple[str, bool]] = {}  # by id: whose, and whether he is verified
        self.left: dict[str, tuple[str, float]] = {}  # by name: where he had the last session that was let in
        self.told: set[str] = set()  # sessions that were told to end

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
            assert sum(session.counts for session in self.live if session.name == name) == MOST_SESSIONS

    def _admitted(self, session_id: str, name: str, placement: Placement, backend: str, verified: bool) -> None:
        assert backend not in placement.closed
        assert backend == placement.home or backend in placement.joinable
        if placement.why == "override":
            assert backend == placement.home
        last, left_at = self.left.get(name, (backend, 0.0))
        if last != backend and not any(each.name == name for each in self.live):
            assert self.now >= left_at + self.delay
        self.live.append(Live(session_id, name, backend, verified))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(self.live))
        try:
            self.homes.confirm(session.id)
        except Refused:
            self._release(session, opened=True)
        else:
            session.counts = True

    @precondition(lambda self: self.live)
    @rule(data=st.data(), opened=st.booleans())
    def release(self, data: st.DataObject, opened: bool) -> None:
        self._release(data.draw(st.sampled_from(self.live)), opened)

    def _release(self, session: Live, opened: bool) -> None:
        self.live.remove(session)
        self.homes.release(session.id, self.now, opened=opened)
        self.homes.release(session.id, self.now, opened=True)  # twice is once
        if opened:
            self.left[session.name] = session.backend, self.now

    @rule(share=st.sampled_from((0.5, 1.0)), opened=st.booleans())
    def obey(self, share: float, opened: bool) -> None:
        """Sessions that were told to end do so, or some of them."""
        leaving = [session for session in self.live if session.id in self.told]
        for session in leaving[: round(len(leaving) * share)]:
            self._release(session, opened)

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
        assert there.sessions == sum(session.backend == backend for session in self.live)

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

    # --- what has to hold ---

    def _seen(self, name: str) -> object:
        """What can be seen of a user, but for an eviction that a login may hasten."""
        found = self.homes.find(name, self.now)
        return len(self.homes), found

    @invariant()
    def nobody_is_at_two_backends(self) -> None:
        for name in NAMES:
            mine = [session for session in self.live if session.name == name]
            assert len({session.backend for session in mine}) <= 1
            assert sum(session.counts for session in mine) <= MOST_SESSIONS
            found = self.homes.find(name, self.now)
            if mine:
                assert found is not None
                assert (found.backend, found.sessions) == (mine[0].backend, len(mine))
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
        there = [self.homes.residents_of(backend) for backend in BACKENDS]
        assert sum(each.sessions for each in there) == len(self.homes) == len(self.live)
        assert sum(each.users for each in there) == len({session.name for session in self.live})

    @invariant()
    def only_live_sessions_are_told_to_end(self) -> None:
        for closing in self.homes.take_closings():
            mine = {session.id for session in self.live if session.name == closing.name}
            assert set(closing.session_ids) == mine
            assert mine
            self.told |= mine

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
        remains = (self.homes._residents, self.homes._sessions, self.homes._by_backend, self.homes._pins._pins)
        assert not any((*remains, moves._agenda, moves._queue, moves._turns, moves._drains, moves.in_flight))


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
