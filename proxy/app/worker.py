"""A worker: listeners, logins and the relay engine in one trio loop.

Theory of operation. The master says when to begin (`accept`), when to serve the sessions that are there to their end
and take no more (`retire`), when to end them (`drain`), and when to go at once (`stop`). Each is an event; serving goes
through its stages as they are set, and none is ever taken back.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable
from typing import Any, cast

import trio

from proxy.app.files import Files
from proxy.app.house import furnish
from proxy.app.informant import Informant
from proxy.app.link import Link
from proxy.app.memory import Ebb, give_back
from proxy.app.plan import Plan, WorkerPlace
from proxy.app.process import prepare
from proxy.app.traces import trace_when_told
from proxy.app.winding_down import busy, end_sessions
from proxy.limits import reached as limits
from proxy.limits.board import Board
from proxy.model import Endpoint
from proxy.observe.log import LEVELS, Level, get_logger, set_level
from proxy.observe.metrics import METRICS
from proxy.outcome import FAREWELLS, Outcome
from proxy.relay.closing import Closer
from proxy.routing.cluster import Cluster
from proxy.session import House, Registrar, serve_client, serve_websocket
from proxy.transport.door import Door
from proxy.transport.listen import accept_forever, plain_host
from proxy.transport.packets import Message, Packets
from proxy.transport.websocket import BUSY

log = get_logger()

_SECOND = 1.0
_LOOK_SECONDS = 0.2


def run_worker(plan: Plan, place: WorkerPlace) -> None:
    """A worker's whole life."""
    # A WebSocket's session has two more descriptors, which lead to it.
    websockets = any(listener.protocol == "websocket" for listener in plan.settings.listeners)
    room = prepare(plan.settings.limits.connections, each=4 if websockets else 2)
    trio.run(Worker(plan, place, room).run)


class Worker:
    """One process that serves mail clients."""

    def __init__(self, plan: Plan, place: WorkerPlace, room: int) -> None:
        """Args:
        room: How many clients there are descriptors for.
        """
        settings = plan.settings
        self._settings, self._place = settings, place
        self._cluster = Cluster(settings.backends, settings.routing, time.monotonic())
        self._about = {"index": place.index, "generation": plan.generation, "pid": os.getpid(), "accepting": False}
        self._link: Link
        self.house: House = furnish(
            settings,
            [door.name for door, _ in place.sockets],
            self._register,
            row=Board(place.board).row(place.row),
            throttle_key=plan.throttle_key,
            workers=plan.workers,
            users=plan.users,
        )
        self._room = room
        self._ebb = Ebb()
        self._works = {server.name: True for server in settings.backends.servers}  # backends, so far as is known
        self._control = Packets(place.control)
        self._files = Files(settings, plan.doors, self.house.authenticator)
        self._usable = True  # some identity source answers, as the steward has been told
        self._accept, self._leave, self._drain, self._stop = (trio.Event() for _ in range(4))
        self._retire_at, self._drain_seconds = math.inf, settings.timeouts.drain
        self._logins: trio.Nursery

    def _register(self, closer: Closer) -> Registrar:
        tag = self._settings.routing.tags.attribute
        self._link = Link(Packets(self._place.link), self._cluster, closer, tag, self._about)
        return self._link

    async def run(self) -> None:
        """Serve until the master has had enough of it, or is gone."""
        house, engine = self.house, self.house.engine
        self._listen_to_others()
        try:
            async with trio.open_nursery() as nursery:
                for task in (engine.run, engine.sweep, house.closer.run, house.carriage.partings.run):
                    nursery.start_soon(task)
                for task in (self._link.run, self._control.run, self._obey, self._every_second, self._files.run):
                    nursery.start_soon(task)
                self._control.post(["ready"])
                with trio.CancelScope() as serving:
                    nursery.start_soon(self._await_stop, serving)
                    await self._serve()
                nursery.cancel_scope.cancel()
        finally:
            # After the nursery: a login that was about to finish may still have handed its session over.
            for session in list(engine.sessions):
                engine.say_goodbye(session, Outcome.DRAINED)
            engine.close()
        log.info("worker.stopped", worker=self._place.worker_id)

    # --- what the master says ---

    async def _obey(self) -> None:
        while True:
            messages, descriptors = await self._control.receive_with_descriptors()
            if not messages:  # the master is gone
                self._begin_drain(0.0, self._settings.timeouts.drain)
                return
            for message in messages:
                self._do(message, descriptors)

    def _do(self, message: Message, descriptors: list[int]) -> None:
        match message:
            case ["accept", *_]:
                self._accept.set()
            case ["retire", float() | int() as seconds, *_]:
                log.info("worker.retired", worker=self._place.worker_id, sessions=len(self.house.engine.sessions))
                self._retire_at = trio.current_time() + seconds
                self._leave.set()
            case ["drain", float() | int() as grace, float() | int() as seconds, *_]:
                self._begin_drain(grace, seconds)
            case ["stop", *_]:
                self._stop.set()
            case ["files", list() as paths, *_]:
                self._files.take(paths, descriptors, self._say_rejected)

    def _begin_drain(self, grace: float, seconds: float) -> None:
        """Go on accepting for a while: whoever balances the load hears of it late."""
        if self._drain.is_set():
            return
        log.info("worker.draining", worker=self._place.worker_id, sessions=len(self.house.engine.sessions))
        self._drain_seconds = seconds
        self._drain_at = trio.current_time() + (grace if self._accept.is_set() and not self._leave.is_set() else 0.0)
        self._drain.set()

    async def _await_stop(self, serving: trio.CancelScope) -> None:
        await self._stop.wait()
        serving.cancel()

    def _say_rejected(self, path: str, why: str) -> None:
        self._control.post(["rejected", path, why])

    # --- stages ---

    async def _serve(self) -> None:
        """From the first client to the last."""
        async with trio.open_nursery() as self._logins:
            await self._any(self._accept, self._leave, self._drain)
            if self._accept.is_set() and not self._leave.is_set():
                await self._take_clients()
            for _, sock in self._place.sockets:
                sock.close()
            self._say_accepting(False)
            with trio.move_on_at(self._retire_at):
                await self._until_left_alone()
            await end_sessions(self.house, self._logins, self._drain_seconds)
            self._logins.cancel_scope.cancel()

    async def _until_left_alone(self) -> None:
        """Until there is nobody any more, or nobody may be."""
        while busy(self.house, self._logins) and not self._drain.is_set():
            with trio.move_on_after(_LOOK_SECONDS):
                await self._drain.wait()

    async def _take_clients(self) -> None:
        """Accept until it is time to stop that."""
        async with trio.open_nursery() as listeners:
            for door, sock in self._place.sockets:
                listeners.start_soon(accept_forever, sock, self._comer(door), self.house.admission.room(self._room))
            self._say_accepting(True)
            log.info("worker.started", worker=self._place.worker_id, pid=os.getpid())
            await self._any(self._leave, self._drain)
            if not self._leave.is_set():
                with trio.move_on_at(self._drain_at):
                    await self._leave.wait()
            listeners.cancel_scope.cancel()

    def _say_accepting(self, accepting: bool) -> None:
        self._about["accepting"] = accepting
        self._control.post(["accepting", accepting])
        self._link.tell(["accepting", accepting])

    @staticmethod
    async def _any(*events: trio.Event) -> None:
        """Wait for the first of them."""
        async with trio.open_nursery() as nursery:

            async def wait(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            for event in events:
                nursery.start_soon(wait, event)

    # --- coming in ---

    def _comer(self, door: Door) -> Callable[[socket.socket, Any], None]:
        """What to do with a connection that a listener accepted; never waits."""
        house, logins = self.house, self._logins
        over_websocket = door.protocol == "websocket"
        serve, farewell = (serve_websocket, BUSY) if over_websocket else (serve_client, FAREWELLS[Outcome.LIMIT])

        def accepted(sock: socket.socket, address: Any) -> None:
            peer = Endpoint(plain_host(address[0]), address[1])
            if not door.lets_in(peer.host):
                self._refuse(sock, peer, door, "trusted_networks", None)
                return
            if door.learns_later(peer.host):
                limit = house.admission.admit_unknown()
            else:
                limit = house.admission.admit(peer.host)
            if limit is None:
                logins.start_soon(serve, sock, peer, door, house)
            else:
                self._refuse(sock, peer, door, limit, farewell)

        return accepted

    def _refuse(self, sock: socket.socket, client: Endpoint, door: Door, limit: str, farewell: bytes | None) -> None:
        """Close a connection that may not come in, with a word where one would be understood."""
        self.house.metrics.refused(limit)
        value = getattr(self._settings.limits, limit, None)
        log.info("connection.refused", client=str(client), via="", listener=door.name, limit=limit, value=value)
        with contextlib.suppress(OSError):
            if farewell is not None and door.tls != "implicit":
                sock.send(farewell)
        sock.close()

    # --- what other workers say, and what the steward knows of the backends ---

    def _listen_to_others(self) -> None:
        link, house = self._link, self.house
        house.throttle.on_wrong = lambda wrong: link.tell(["wrong", wrong])
        house.throttle.on_known = lambda person: link.tell_lazily(["known", person])
        link.on_wrong = house.throttle.learn_wrong
        link.on_known = house.throttle.learn_known
        link.on_used = house.meters.deduct
        link.on_view = self._see
        link.on_hello = self._introduce
        link.on_scrape = self._tell_figures
        trace_when_told(link, house)
        link.on_ask = Informant(house).answer
        link.on_log_level = _set_level
        link.on_watch = self._be_watched
        house.happenings.tell = self._tell_event

    def _tell_event(self, kind: str, event: str, values: dict[str, Any]) -> None:
        """Something has happened that somebody wants to know; perhaps in a callback of the engine's."""
        self.house.engine.stir()
        self._link.tell_if_read(["event", kind, event, values])

    def _be_watched(self, kinds: list[Any]) -> None:
        """Somebody looks on; or nobody does any more."""
        self.house.happenings.wanted = frozenset(kinds)
        tell = self._tell_event
        limits.watch((lambda values: tell("limit", "limit.reached", values)) if "limit" in kinds else None)

    def _introduce(self) -> None:
        """The steward is another, and knows nothing of what was counted here."""
        self._link.tell(["metrics", METRICS.everything()])
        self._usable = True

    def _see(self) -> None:
        """The steward has said what the backends are like."""
        house, now = self.house, trio.current_time()
        house.backends.update(self._cluster.servers(), self._cluster.addresses)
        works = {each.name: (each.up, each.reason) for each in self._cluster.snapshot(time.monotonic())}
        for name, (up, reason) in works.items():
            if name not in self._works:
                house.metrics.know_backend(name)
            if up == self._works.get(name, True):
                continue
            if up:
                house.backends[name].recovered(now)
            else:
                house.backends[name].went_down(reason)
        for name in self._works.keys() - works.keys():
            house.metrics.forget_backend(name)
        self._works = {name: up for name, (up, _) in works.items()}

    def _tell_figures(self) -> None:
        """What has been counted since the last time."""
        while changes := METRICS.changes():
            self._link.tell(["metrics", changes])

    async def _every_second(self) -> None:
        """Tell that this process lives, how late its loop is, and what it has counted."""
        while True:
            due = trio.current_time() + _SECOND
            await trio.sleep_until(due)
            self.house.metrics.loop_delay(trio.current_time() - due)
            self._control.post(["alive"])
            self._tell_figures()
            if self.house.authenticator.usable is not self._usable:
                self._usable = not self._usable
                self._link.tell(["usable", self._usable])
            self.house.tracing.tick()
            self._cluster.directions.expire(time.time())  # the steward says so too, if he lives
            if self._ebb.is_out(self.house.admission.open):
                await trio.to_thread.run_sync(give_back)
            while used := self.house.meters.take_used():
                self._link.tell_lazily(["used", used])


def _set_level(level: str) -> None:
    """The steward has said how much to log."""
    if level in LEVELS:
        set_level(cast(Level, level))
