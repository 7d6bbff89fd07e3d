"""A worker's end of the link to the steward, who knows where all users live: the worker's registrar.

Theory of operation. A login asks one question, `admit`, and waits for the answer; all else is told and not answered. A
steward, new or started again, says hello; then he is told of all sessions here, and every open question is asked again.
A session is noted at the moment that its answer is read, so that no report leaves it out.

A steward who is heard of nothing for three seconds while he owes an answer is frozen, or dead and not back yet. Mail
must not wait for that: the logins that waited are placed by this worker alone, where it has sessions of that user
already, else where the hash says, and so are all others, at once, until the steward is heard of. For that the worker
has a cluster of its own, which the steward keeps up to date, and which tells the next steward what the last one knew.
A login that has been told to wait for its user's move goes on waiting: sessions of his may be living elsewhere.

Questions that are not waited for are given up, so that a steward who wakes up forgets what he has let in for them. What
was placed alone is told to the next steward with all the rest. If the old one wakes up instead he hears of it in the
same way: whatever he says after a silence is taken for a hello.

What is told waits here while the steward does not read. Beyond a bound it is dropped, and counted: the next steward,
who takes over when the master finds this one frozen, learns the truth by the report.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import trio

from proxy.ledger.session import Session
from proxy.model import Identity
from proxy.observe import metrics
from proxy.observe.log import get_logger
from proxy.outcome import Outcome, Refused
from proxy.relay.closing import Closer
from proxy.routing.cluster import Cluster
from proxy.transport.packets import Message, Packets, slices

log = get_logger()

PATIENCE_SECONDS = 3.0
_AT_ONCE = 200  # sessions, or directions, in one message
_MOST_LODGERS = 200_000
_MOST_TOLD = 100_000  # messages to a steward who does not read, some 10 MiB
_FEW_TOLD = 4_000  # to one who is behind

_ALONE = metrics.counter(
    "porter_placements_alone_total", "Logins placed by a worker alone, since the steward did not answer."
)
_UNTOLD = metrics.counter(
    "porter_link_messages_untold_total", "Messages from workers to a steward who was behind with reading."
)

_TRYING, _COUNTED, _OPENED = 0, 1, 2  # as the steward has them: ledger.resident.Stage


@dataclass(slots=True, eq=False)
class _Lodger:
    """A session here that was admitted."""

    session: Session
    name: str  # canonical
    why: str
    stage: int
    room: int


class _Question:
    """A login that waits to be admitted."""

    __slots__ = ("answer", "answered", "identity", "number", "session", "since", "waits")

    def __init__(self, number: int, session: Session, identity: Identity) -> None:
        self.number, self.session, self.identity = number, session, identity
        self.since = trio.current_time()
        self.waits = False  # for the end of a move, as the steward has said
        self.answered = trio.Event()
        self.answer: str | Refused | None = None  # a backend; None: nobody gives one


class Link:
    """The registrar of a worker. Sessions are his, the decision is the steward's."""

    def __init__(
        self, packets: Packets, cluster: Cluster, closer: Closer, tag_attribute: str, about: dict[str, Any]
    ) -> None:
        """Args:
        cluster: Brought up to date with what the steward knows.
        closer: Ends the sessions that he wants ended.
        tag_attribute: The attribute of identities that names their pool.
        about: What the steward is told of this worker whenever he asks.
        """
        self._packets, self._cluster, self._closer = packets, cluster, closer
        self._tag_attribute, self._about = tag_attribute, about
        self._numbers = itertools.count(1)
        self._questions: dict[int, _Question] = {}  # the oldest first
        self._asked = trio.Event()
        self._lodgers: dict[str, _Lodger] = {}
        self._by_name: dict[str, dict[str, _Lodger]] = {}
        self._version = 0  # of the last view
        self._nonce: object = None  # of the last hello
        self._heard_at = -math.inf
        self._alone = False  # since he was not heard of
        self.on_view: Callable[[], None] = _nothing
        self.on_hello: Callable[[], None] = _nothing  # he is another, and has been told of the sessions
        self.on_scrape: Callable[[], None] = _nothing  # somebody wants to see the figures of just now
        self.on_wrong: Callable[[list[Any]], None] = _unheard
        self.on_known: Callable[[list[Any]], None] = _unheard
        self.on_used: Callable[[dict[str, Any]], None] = _unheard
        self.on_trace: Callable[[Message], None] = _unheard
        self.on_watch: Callable[[list[Any]], None] = _unheard  # which events somebody wants to see
        self.on_ask: Callable[[str, list[Any]], Any] = _unanswered
        self.on_log_level: Callable[[str], None] = _unheard

    # --- the registrar ---

    async def admit(self, session: Session, identity: Identity) -> str:
        """As session.Registrar."""
        if len(self._lodgers) + len(self._questions) >= _MOST_LODGERS:
            raise Refused(Outcome.UNAVAILABLE, f"{_MOST_LODGERS} sessions of one worker are too many")
        while not self._alone:
            answer = await self._ask(session, identity)
            if isinstance(answer, Refused):
                raise answer
            if answer is not None:
                return answer
        return self._place(session, identity)

    def confirm(self, session: Session) -> None:
        """As session.Registrar. One that was not admitted is no mistake."""
        lodger = self._lodgers.get(session.id)
        if lodger is None:
            return
        if lodger.stage == _TRYING and lodger.room <= 0:
            raise Refused(Outcome.LIMIT, "connections_per_user: no room for one more", limit="connections_per_user")
        # Who counts from here on must count for the next login, whichever worker it comes to.
        tell = self.tell if lodger.stage == _TRYING else self.tell_lazily
        lodger.stage = _OPENED
        tell(["confirm", [session.id]])

    def release(self, session: Session, *, opened: bool) -> None:
        """As session.Registrar."""
        lodger = self._lodgers.pop(session.id, None)
        if lodger is None:
            return
        neighbours = self._by_name[lodger.name]
        del neighbours[session.id]
        if not neighbours:
            del self._by_name[lodger.name]
        self.tell_lazily(["release", [[session.id, opened]]])

    def failed(self, session: Session, problem: str, *, reached: bool) -> None:
        """As session.Registrar."""
        self.tell(["failed", session.backend, session.name, problem, reached])

    # --- telling ---

    def tell(self, message: Message) -> None:
        """Tell the steward, soon."""
        if self._packets.waiting < _MOST_TOLD:
            self._packets.post(message)
        else:
            _UNTOLD.inc()

    def tell_lazily(self, message: Message) -> None:
        """Tell the steward, when there is something else to tell or a moment later."""
        if self._packets.waiting < _MOST_TOLD:
            self._packets.post_lazily(message)
        else:
            _UNTOLD.inc()

    def tell_if_read(self, message: Message) -> bool:
        """Tell the steward, unless he is behind: for what is of use only while it is fresh."""
        if self._packets.waiting >= _FEW_TOLD:
            return False
        self._packets.post_lazily(message)
        return True

    async def run(self) -> None:
        """Listen, until the steward's end is gone for good: then every login is placed alone."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._packets.run)
            nursery.start_soon(self._watch)
            while messages := await self._packets.receive():
                self._hear(messages)
            nursery.cancel_scope.cancel()
        if not self._alone:
            self._be_alone()
        for question in list(self._questions.values()):
            self._dismiss(question)

    # --- questions ---

    async def _ask(self, session: Session, identity: Identity) -> str | Refused | None:
        """What the steward says; None: nothing."""
        question = _Question(next(self._numbers), session, identity)
        self._questions[question.number] = question
        self._put(question)
        try:
            await question.answered.wait()
        except BaseException:
            if self._questions.pop(question.number, None) is not None:
                self.tell(["give_up", question.number])
                self._note_home(session, identity)
            else:  # it was answered at this very moment
                self.release(session, opened=False)
            raise
        return question.answer

    def _put(self, question: _Question) -> None:
        session, identity = question.session, question.identity
        self._packets.post(
            [
                "admit",
                question.number,
                session.id,
                identity.name,
                identity.backend,
                identity.attributes.get(self._tag_attribute),
                identity.source,
                identity.verified,
                session.client.host,
                session.client.port,
                session.listener,
            ]
        )
        self._asked.set()

    def _answer(self, message: Message) -> None:
        question = self._questions.pop(message[1], None)
        if question is None:
            if message[0] == "admitted":  # nobody waits for it: the place is free
                self.tell(["give_up", message[1]])
            return
        session, identity = question.session, question.identity
        match message:
            case ["admitted", _, str(backend), str(epoch), str(why), int(room), *_]:
                self._take_in(session, identity, backend, epoch, why, room)
                question.answer = backend
            case ["refused", _, outcome, str(detail), str(limit), *_]:
                self._note_home(session, identity)
                question.answer = Refused(_known(outcome), detail, limit=limit)
            case _:
                self.tell(["give_up", question.number])
                question.answer = Refused(Outcome.UNAVAILABLE, "an answer of the steward's that makes no sense")
        question.answered.set()

    def _note_home(self, session: Session, identity: Identity) -> None:
        """For the log: where a session would have gone."""
        session.epoch = self._cluster.epoch
        with suppress(Refused):
            session.backend = self._cluster.place(identity).home

    def _take_in(self, session: Session, identity: Identity, backend: str, epoch: str, why: str, room: int) -> None:
        session.backend, session.epoch = backend, epoch
        lodger = _Lodger(session, identity.name, why, _COUNTED if identity.verified else _TRYING, room)
        self._lodgers[session.id] = lodger
        self._by_name.setdefault(identity.name, {})[session.id] = lodger

    # --- without the steward ---

    async def _watch(self) -> None:
        """Notice that he is silent."""
        while True:
            question = next((each for each in self._questions.values() if not each.waits), None)
            if question is None:
                self._asked = trio.Event()
                await self._asked.wait()
                continue
            await trio.sleep_until(self._patience_ends(question))
            # Where it was we who stood still, the answer is there: whoever reads it has his turn first.
            await trio.lowlevel.checkpoint()
            owed = question.number in self._questions and not question.waits
            if owed and trio.current_time() >= self._patience_ends(question):
                self._be_alone()

    def _patience_ends(self, question: _Question) -> float:
        return max(question.since, self._heard_at) + PATIENCE_SECONDS

    def _be_alone(self) -> None:
        self._alone = True
        log.warning("link.steward_silent", questions=len(self._questions), sessions=len(self._lodgers))
        for question in [each for each in self._questions.values() if not each.waits]:
            self._dismiss(question)

    def _dismiss(self, question: _Question) -> None:
        """It is not waited for any more."""
        del self._questions[question.number]
        self.tell(["give_up", question.number])
        question.answered.set()

    def _place(self, session: Session, identity: Identity) -> str:
        """Raises Refused: UNAVAILABLE."""
        session.epoch = self._cluster.epoch
        placement = self._cluster.place(identity)
        said = self._cluster.directions.get(identity.name)
        if said is not None and said.held is not None:  # sessions of his that have not ended yet let nobody in
            raise Refused(Outcome.UNAVAILABLE, placement.problem)
        neighbours = self._by_name.get(identity.name)
        home = next(iter(neighbours.values())).session.backend if neighbours else placement.home
        session.backend = home
        if not home:
            raise Refused(Outcome.UNAVAILABLE, placement.problem or "there is no backend for this user")
        if home in placement.closed:
            raise Refused(Outcome.UNAVAILABLE, f"{home}: {placement.closed[home]}")
        why = placement.why if home == placement.home else "hash"
        self._take_in(session, identity, home, session.epoch, why, 1)
        _ALONE.inc()
        return home

    # --- what the steward says ---

    def _hear(self, messages: Sequence[Message]) -> None:
        self._heard_at = trio.current_time()
        for message in messages:
            try:
                if self._alone:
                    self._end_silence(message)
                self._obey(message)
            except Exception:  # of another version, or a bug: the others' logins go on
                log.exception("link.message_failed", kind=message[0])

    def _end_silence(self, first: Message) -> None:
        self._alone = False
        log.info("link.steward_back", sessions=len(self._lodgers))
        if self._nonce is not None and first[0] != "hello":
            self._report()

    def _obey(self, message: Message) -> None:
        match message:
            case ["admitted" | "refused", int(), *_]:
                self._answer(message)
            case ["waiting", int(number), *_]:
                if (question := self._questions.get(number)) is not None:
                    question.waits = True
            case ["hello", nonce, *_]:
                self._nonce = nonce
                self._report()
                for question in self._questions.values():
                    question.waits = False
                    self._put(question)
                self.on_hello()
            case ["scrape", *_]:
                self.on_scrape()
                self.tell(["scraped"])
            case ["close", list(ids), outcome, int() | float() as patience, *_]:
                # Whoever is not here any more may try again on the same connection, under the same id.
                if here := [session_id for session_id in ids if session_id in self._lodgers]:
                    self._closer.close(here, _known(outcome), patience=patience)
            case ["view", int(version), dict(memory), *_]:
                self._cluster.recall(memory, time.monotonic())
                self._version = version
                self.on_view()
            case ["wrong", *news]:
                self.on_wrong(news)
            case ["known", *news]:
                self.on_known(news)
            case ["used", dict(used), *_]:
                self.on_used(used)
            case ["directions", list(told), *_]:
                self._cluster.directions.take(told)
            case ["undirected", None, *_]:
                self._cluster.directions.clear()
            case ["undirected", list(names), *_]:
                for name in names:
                    self._cluster.directions.drop(name)
            case ["ask", int(question), str(what), list(arguments), *_]:
                self.tell(["told", question, self.on_ask(what, arguments)])
            case ["watch", list(kinds), *_]:
                self.on_watch(kinds)
            case ["log_level", str(level), *_]:
                self.on_log_level(level)
            case ["trace" | "untrace", *_]:
                self.on_trace(message)

    def _report(self) -> None:
        """All that he has to know."""
        post, nonce = self._packets.post, self._nonce
        memory = self._cluster.memory(time.monotonic()) if self._version else None
        post(["report", nonce, self._version, memory, self._about])
        for some in slices(list(self._lodgers.values()), _AT_ONCE):
            post(["lodgers", nonce, [_described(lodger) for lodger in some]])
        for told in slices(self._cluster.directions.memory(), _AT_ONCE):
            post(["directions", nonce, told])
        post(["reported", nonce])


def _known(outcome: Any) -> Outcome:
    """Another version may have words that are not known here."""
    try:
        return Outcome(outcome)
    except ValueError:
        return Outcome.UNAVAILABLE


def _described(lodger: _Lodger) -> list[Any]:
    session = lodger.session
    return [
        session.id,
        lodger.name,
        str(session.client),
        session.listener,
        session.backend,
        lodger.why,
        lodger.stage,
        round(max(0.0, time.monotonic() - session.started), 3),
    ]


def _nothing() -> None:
    """Nobody wants to know."""


def _unanswered(_what: str, _arguments: list[Any]) -> None:
    """Nobody knows."""


def _unheard(news: Any) -> None:
    """Nobody wants to know."""
