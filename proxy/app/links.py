"""The steward's ends of the links to all workers: who they are, what they report, and what they ask. News between them
are passed on by `news`.

Theory of operation. A steward begins by saying hello on every link, with a nonce of his own; a worker answers by a
report, and by all the sessions that he has. Until all have, or for half a second, nobody is admitted: who is where has
to be known first. What a worker says of sessions before his report is not heard, for the report tells it, and whoever
was not answered asks again. A worker who reports late is heard from then on.

Nothing here waits for a worker. One who does not read is told less and less, until the master finds him silent; the end
of his link is the end of his sessions.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import trio

from proxy.app.news import News
from proxy.app.onlookers import Onlookers
from proxy.app.registry import Registry
from proxy.app.worker_link import FEW_WAITING, WorkerLink, lodger_of
from proxy.auth.throttle import Throttle
from proxy.ledger.guests import Guest, by_worker
from proxy.model import NO_ATTRIBUTES, Admitted, Endpoint, Identity
from proxy.observe import metrics
from proxy.observe.log import get_logger
from proxy.observe.metrics import METRICS
from proxy.outcome import Outcome, Refused
from proxy.settings.models import Settings
from proxy.transport.packets import Message, Packets

log = get_logger()

KICK_SECONDS = 5.0  # for a safe point; then it ends anywhere
HOLD_SECONDS = 0.5  # for reports
FIRST_SECONDS = 2.0  # for the first word of DNS and of the fleet; workers wait for 3 until they place by themselves
_PACKETS_PER_TURN = 16
_IDS_AT_ONCE = 500

_ACCEPTING = metrics.gauge("porter_workers_accepting", "Workers that let clients in.")


class Links:
    """All workers, and the registry that answers them."""

    def __init__(self, settings: Settings, throttle: Throttle) -> None:
        """Args:
        throttle: Learns what failed at any worker, for those that come later.
        """
        self.registry = Registry(settings, self)
        self.version = 0  # of the last view, over all stewards
        self.on_restored: Callable[[], None] = lambda: None
        self._tag_attribute = settings.routing.tags.attribute
        self._links: dict[str, WorkerLink] = {}
        self.news = News(self._links, self.registry.guests, throttle)
        self.onlookers = Onlookers(self._links, self.registry, settings.log.level)
        self._deserted = trio.Event()
        self._nonce = secrets.token_hex(8)
        self._nursery: trio.Nursery | None = None  # None: not begun
        self._gathering = True
        self._all_reported = trio.Event()
        self._held: list[tuple[WorkerLink, Message]] | None = []  # None: admits are answered
        # Version and generation, and the memory, of what workers have reported.
        self._newest: tuple[tuple[int, int], dict[str, Any]] = ((0, 0), {})
        self._shown = -1  # the registry's revision of the last view
        self._all_shown = False
        self._do: dict[Any, Callable[[WorkerLink, Message], None]] = {
            "admit": self._admit,
            "confirm": self._confirm,
            "release": self._release,
            "give_up": self._give_up,
            "failed": self._failed,
            "metrics": self.news.counted,
            "wrong": self.news.tried,
            "known": self.news.tried,
            "used": self.news.used,
            "accepting": self._note_accepting,
            "usable": self._note_usable,
            "event": self.onlookers.told,
            "told": self.onlookers.inquiries.told,
            "directions": self._take_directions,
            "scraped": self.news.scraped,
            "report": self._take_report,
            "lodgers": self._take_lodgers,
            "reported": self._take_reported,
        }

    def __iter__(self) -> Iterator[WorkerLink]:
        return iter(self._links.values())

    def __len__(self) -> int:
        return len(self._links)

    @property
    def is_open(self) -> bool:
        """Whether logins are answered."""
        return self._held is None

    @property
    def accepting(self) -> int:
        """How many workers let clients in."""
        return sum(link.accepting for link in self._links.values())

    @property
    def authenticating(self) -> bool:
        """Whether some worker that lets clients in can tell who they are."""
        return any(link.accepting and link.usable for link in self._links.values())

    def logins_waiting(self, backend: str) -> int:
        """How many logins wait for their turn at a backend, in all workers, as they said lately."""
        return int(sum(link.logins_waiting.get(backend, 0) for link in self._links.values()))

    def add(self, name: str, packets: Packets) -> None:
        """There is a worker."""
        if name in self._links:
            packets.close()
            return
        link = self._links[name] = WorkerLink(name, packets)
        self._deserted = trio.Event()
        if self._nursery is not None:
            self._begin(self._nursery, link)

    async def run(self, informed: Callable[[], Awaitable[None]]) -> None:
        """Greet the workers, restore what they report, and answer them until cancelled.

        Args:
            informed: Waits until others, DNS and the fleet, have been asked; begun once the sessions are restored.
        """
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for link in self._links.values():
                self._begin(nursery, link)
            self._look_who_reported()
            with trio.move_on_after(HOLD_SECONDS):
                await self._all_reported.wait()
            self._restore()
            with trio.move_on_after(FIRST_SECONDS):
                await informed()
            self._open()
            log.info(
                "steward.began",
                workers=len(self._links),
                reported=sum(link.reported for link in self._links.values()),
                sessions=len(self.registry.ledger),
                seconds=round(trio.current_time() - began, 3),
            )
            await trio.sleep_forever()

    async def deserted(self) -> None:
        """Wait until no worker is left."""
        while self._links:
            await self._deserted.wait()

    def close(self, session_ids: Sequence[str], outcome: Outcome, *, patience: float) -> None:
        """Have sessions ended by whoever has them; as ledger.SessionCloser."""
        for worker, ids in by_worker(session_ids, self.registry.guests).items():
            link = self._links.get(worker)
            if link is not None:
                for start in range(0, len(ids), _IDS_AT_ONCE):
                    link.post(["close", ids[start : start + _IDS_AT_ONCE], outcome, patience])

    def kick(self, session_ids: Sequence[str]) -> None:
        """Have sessions ended because an administrator wants it."""
        self.close(session_ids, Outcome.KICKED, patience=KICK_SECONDS)

    def show_changes(self) -> None:
        """Tell the workers what has become of the backends, if there is anything new, or if they could not be told."""
        if self._gathering:
            return
        if self.registry.revision != self._shown:
            self._shown = self.registry.revision
            self.version += 1
            self._all_shown = False
        if self._all_shown:
            return
        self._all_shown = True
        view = ["view", self.version, self.registry.view()]
        for link in self._links.values():
            if link.shown == self.version or not link.reported:
                continue
            if link.packets.waiting < FEW_WAITING:  # else the next view will do
                link.shown = self.version
                link.post(view)
            else:
                self._all_shown = False

    # --- beginning and end of a link ---

    def _begin(self, nursery: trio.Nursery, link: WorkerLink) -> None:
        link.post(["hello", self._nonce])
        self.onlookers.greet(link)
        nursery.start_soon(self._listen, link)

    async def _listen(self, link: WorkerLink) -> None:
        """Until the worker has gone."""
        packets = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.packets.run)
            while messages := await link.packets.receive():
                for message in messages:
                    self._hear(link, message)
                self.show_changes()
                packets += 1
                if not packets % _PACKETS_PER_TURN:  # others have their turn while one has much to say
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await self._leave(link)

    async def _leave(self, link: WorkerLink) -> None:
        link.packets.close()
        del self._links[link.name]
        if not self._links:
            self._deserted.set()
        guests = self.registry.guests.gone(link.name)
        for scope in link.waiting.values():
            scope.cancel()
        METRICS.forget(link.name)
        _ACCEPTING.set(self.accepting)
        self._look_who_reported()
        log.info("steward.worker_left", worker=link.name, sessions=len(guests))
        self.onlookers.inquiries.gone(link.name)
        self.onlookers.lost(guests)
        await self.registry.ledger.release_all(guest.id for guest in guests)

    # --- what workers report ---

    def _take_report(self, link: WorkerLink, message: Message) -> None:
        match message:
            case [_, self._nonce, int(version), memory, {"accepting": bool(accepting), **about}, *_]:
                link.shown = version
                link.accepting = accepting
                link.lodgers = []
                _ACCEPTING.set(self.accepting)
                # Of two that have seen the same, the younger generation knows all backends of the settings.
                age = (version, _number(about.get("generation")))
                if isinstance(memory, dict) and age > self._newest[0]:
                    self._newest = (age, memory)

    def _take_lodgers(self, link: WorkerLink, message: Message) -> None:
        match message:
            case [_, self._nonce, list(lodgers), *_]:
                now = time.monotonic()
                for lodger in lodgers:
                    guest = lodger_of(lodger, link.name, now)
                    if guest is not None:
                        self._correct(guest)
                        link.lodgers.append(guest)
                        self.registry.guests.add(guest)

    def _take_directions(self, link: WorkerLink, message: Message) -> None:
        """What the steward before has said of users, so far as he was heard. A worker who reports once more knows of us
        alone: what he has not heard taken back yet must not return.
        """
        match message:
            case [_, self._nonce, list(told), *_] if not link.reported:
                self.registry.directions.learn(told)
                if not self._gathering:  # he comes late: the others may not know
                    for other in self._links.values():
                        self.onlookers.tell_all_directions(other)

    def _correct(self, guest: Guest) -> None:
        """His worker knows better: while we were silent he was placed elsewhere than we had said."""
        known = self.registry.guests.get(guest.id)
        if known is not None and known.backend != guest.backend:
            self.registry.release(guest.id, opened=True)

    def _forget_unreported(self, link: WorkerLink) -> None:
        """A worker who reports once more, since we were silent, has lost some whose end we were not told of."""
        reported = {guest.id for guest in link.lodgers}
        for guest in self.registry.guests.all_of(link.name):
            if guest.id not in reported and not link.is_under_way(guest.id):
                self.registry.release(guest.id, opened=True)

    def _take_reported(self, link: WorkerLink, message: Message) -> None:
        if message[1:2] != [self._nonce]:
            return
        if link.reported:
            self._forget_unreported(link)
        link.reported = True
        if self._gathering:
            self._look_who_reported()
        elif self._bring_back([link]):
            self.on_restored()

    def _look_who_reported(self) -> None:
        if all(link.reported for link in self._links.values()):
            self._all_reported.set()

    def _restore(self) -> None:
        """All that will be heard for now has been."""
        (version, _), memory = self._newest
        if version > self.version:
            self.version = version
            self.registry.recall({"cluster": memory})
        self._gathering = False
        self._bring_back([link for link in self._links.values() if link.reported])
        self.on_restored()
        self.show_changes()

    def _bring_back(self, links: Sequence[WorkerLink]) -> int:
        """Take in the sessions of these, but for those that have ended since; gives how many."""
        guests = self.registry.guests
        there = [guest for link in links for guest in link.lodgers if guests.get(guest.id) is guest]
        self.registry.ledger.restore(there)
        for link in links:
            if not link.shown:
                self.news.tell_failures(link)
            self.onlookers.tell_all_directions(link)
            link.lodgers = []
            self.version = max(self.version, link.shown + 1)  # whatever he has seen is older than what he is shown
            self._all_shown = False
        return len(there)

    def _open(self) -> None:
        """Answer those who have asked meanwhile, and everybody from now on."""
        held, self._held = self._held or [], None
        self.show_changes()
        for link, message in held:
            if self._links.get(link.name) is link:
                self._admit(link, message)

    # --- what workers ask and tell ---

    def _hear(self, link: WorkerLink, message: Message) -> None:
        try:
            do = self._do.get(message[0])
            if do is not None:
                do(link, message)
        except Exception:  # one worker's message, or a bug that it meets, must not end the service for all
            log.exception("steward.message_failed", worker=link.name, kind=message[0])

    def _admit(self, link: WorkerLink, message: Message) -> None:
        if not link.reported:
            return
        if self._held is not None:
            self._held.append((link, message))
            return
        _, question, session_id, name, override, tag, source, verified, host, port, listener, *_ = message
        guest = Guest(
            session_id, name, str(Endpoint(host, port)), listener, link.name, time.monotonic(), verified=verified
        )
        attributes = {self._tag_attribute: tag} if tag is not None else NO_ATTRIBUTES
        identity = Identity(name, source, override, attributes, verified)
        try:
            admitted = self.registry.admit_now(guest, identity)
        except Refused as refusal:
            link.refuse(question, refusal)
            return
        except Exception:
            _refuse_by_mistake(link, question)
            return
        if admitted is not None:
            self._answer(link, question, guest, admitted)
            return
        assert self._nursery is not None
        scope = link.waiting[question] = trio.CancelScope()
        self._nursery.start_soon(self._admit_later, link, question, guest, identity, scope)

    async def _admit_later(
        self, link: WorkerLink, question: int, guest: Guest, identity: Identity, scope: trio.CancelScope
    ) -> None:
        try:
            with scope:
                # He is told of what takes longer than he would wait for a dead steward.
                admitted = await self.registry.admit(guest, identity, lambda: link.post(["waiting", question]))
                if scope.cancel_called:  # given up at the very moment that it was let in
                    self.registry.release(guest.id, opened=False)
                else:
                    self._answer(link, question, guest, admitted)
        except Refused as refusal:
            link.refuse(question, refusal)
        except Exception:
            _refuse_by_mistake(link, question)
        finally:
            link.waiting.pop(question, None)

    def _answer(self, link: WorkerLink, question: int, guest: Guest, admitted: Admitted) -> None:
        if self.registry.revision != self._shown:  # he has to know the backend
            self.show_changes()
        link.remember(question, guest.id)
        link.post(["admitted", question, admitted.backend, admitted.epoch, admitted.why, admitted.room])

    def _give_up(self, link: WorkerLink, message: Message) -> None:
        question = message[1]
        if (scope := link.waiting.get(question)) is not None:
            scope.cancel()
        elif (session_id := link.answered.get(question)) is not None:
            link.forget(session_id)
            self.registry.release(session_id, opened=False)
        elif self._held is not None:
            self._held = [held for held in self._held if held[0] is not link or held[1][1] != question]
            link.post(["heard"])  # whoever gave up believes that nobody is here

    def _confirm(self, link: WorkerLink, message: Message) -> None:
        if not link.reported:
            return
        for session_id in message[1]:
            link.forget(session_id)
            try:
                guest = self.registry.confirm(session_id)
            except Refused as refusal:  # there was room when it was admitted
                self.close([session_id], refusal.outcome, patience=0.0)
            else:
                if guest is not None:
                    self.onlookers.opened(guest)

    def _release(self, link: WorkerLink, message: Message) -> None:
        if link.reported:
            for session_id, opened, *_ in message[1]:
                link.forget(session_id)
                self.registry.release(session_id, opened=opened)

    def _failed(self, link: WorkerLink, message: Message) -> None:
        if link.reported:
            _, backend, name, problem, reached, *_ = message
            self.registry.failed(backend, name, problem, reached=reached)

    def _note_usable(self, link: WorkerLink, message: Message) -> None:
        link.usable = message[1] is True

    def _note_accepting(self, link: WorkerLink, message: Message) -> None:
        link.accepting = message[1] is True
        _ACCEPTING.set(self.accepting)


def _refuse_by_mistake(link: WorkerLink, question: int) -> None:
    """To be called where an exception is handled that nobody has thought of."""
    log.exception("steward.admit_failed", worker=link.name)
    link.refuse(question, Refused(Outcome.SERVER_BUG))


def _number(told: object) -> int:
    return told if isinstance(told, int) else 0
