"""The steward: one process per host that knows all sessions, looks after the backends, and is asked by everybody.

Theory of operation. He is furnished before he is needed, and does nothing until the master says `begin`: until then
another may serve, with whom he shares every socket. Then he takes over what that one has left, or what the workers
report (`Links`), and serves. At `hand_over` he stops hearing workers, writes down what he knows, says so, and ends
within a second, which is there for answers that administrators wait for. No session notices.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from proxy import __version__
from proxy.admin.api import address_app, local_app
from proxy.admin.commands import NotReloaded
from proxy.admin.http import metrics_app, serve_http
from proxy.admin.socketmap import Socketmap
from proxy.admin.tokens import Tokens
from proxy.app import handover
from proxy.app.admin_certificate import AdminCertificate
from proxy.app.desk import Desk
from proxy.app.files import Files
from proxy.app.links import Links
from proxy.app.overseer import Overseer
from proxy.app.plan import Plan, StewardPlace
from proxy.app.sources import authenticator_for, sources_for
from proxy.auth.names import NameRules
from proxy.auth.throttle import Throttle
from proxy.backends.pool import Pool
from proxy.model import Endpoint
from proxy.observe.log import Level, get_logger, set_level
from proxy.observe.metrics import METRICS
from proxy.session.metrics import SessionMetrics
from proxy.transport.door import Door
from proxy.transport.listen import accept_forever, plain_host
from proxy.transport.packets import Message, Packets, send_packet

if TYPE_CHECKING:
    from proxy.app.fleet import Member

log = get_logger()

RELOAD_SECONDS = 60.0
_ADMIN_SECONDS = RELOAD_SECONDS + 10.0  # a connection whose question is a reload
_ALIVE_SECONDS = 1.0
_ORPHAN_SECONDS = 10.0  # beyond the drain of the workers
_BEFORE = "before"  # whose metrics those of earlier stewards are


def run_steward(plan: Plan, place: StewardPlace) -> None:
    """A steward's whole life."""
    trio.run(Steward(plan, place).run)


class Steward:
    """One steward, of one generation."""

    def __init__(self, plan: Plan, place: StewardPlace) -> None:
        """Nothing is started, and nobody is spoken to."""
        settings = plan.settings
        self._settings, self._place, self._generation = settings, place, plan.generation
        self._admin_tls = plan.admin_tls
        self._control = Packets(place.control)
        rules = NameRules(settings.names)
        authenticator = authenticator_for(settings, rules, sources_for(settings, rules, plan.users))
        self._throttle = Throttle(settings.limits, key=plan.throttle_key)
        self.links = Links(settings, self._throttle)
        for name, sock in place.links.items():
            self.links.add(name, Packets(sock))
        self._overseer = Overseer(settings, self.links.registry, Pool(settings.backends, settings.timeouts))
        self._overseer.on_change = self.links.show_changes
        self._overseer.on_event = self.links.onlookers.turned
        self.links.on_restored = self._overseer.resume
        self._hub = self.links.onlookers.hub
        self._log_level = settings.log.level
        self._desk = Desk(
            settings,
            self.links,
            authenticator,
            self._hub,
            status=self._full_status,
            reload=self._reload,
            set_log_level=self._set_log_level,
        )
        self._member = self._member_of_fleet(plan)
        self._restored = trio.Event()
        delimiter = settings.names.recipient_delimiter
        self._socketmap = Socketmap(self._desk.backend_of, self._overseer.lmtp, recipient_delimiter=delimiter)
        self._refused = SessionMetrics((), ()).refused
        tls, context = settings.admin.tls, plan.admin_tls
        shown = None if tls is None or context is None else AdminCertificate(tls, context)
        self._files = Files(settings, plan.doors, authenticator, admin=shown, counts=True)
        self._begun, self._succeeded = trio.Event(), trio.Event()
        self._life = trio.CancelScope()
        self._heir: int | None = None  # where the state goes that is handed over
        self._draining = False
        self._status: dict[str, Any] = {}
        self._questions = itertools.count(1)
        self._asked: dict[int, _Answer] = {}

    async def run(self) -> None:
        """Serve from `begin` on, until another takes over or nobody is left."""
        with self._life:
            async with trio.open_nursery() as nursery:
                for task in (self._control.run, self._obey, self._say_alive, self._files.run):
                    nursery.start_soon(task)
                self._control.post(["ready"])
                await self._begun.wait()
                async with trio.open_nursery() as doors:
                    await self._serve(doors)
                    await self._hand_over()
                    doors.cancel_scope.cancel()
                nursery.cancel_scope.cancel()
        log.info("steward.stopped", generation=self._generation)

    async def _serve(self, doors: trio.Nursery) -> None:
        """Do a steward's work until somebody else is to."""
        async with trio.open_nursery() as nursery:
            self._inherit()
            self._control.post(["log_level", self._log_level])  # the master may remember another steward's
            nursery.start_soon(self._overseer.run)
            nursery.start_soon(self.links.run, self._ask_others)
            nursery.start_soon(self._be_a_member)
            await self._open_doors(doors)
            log.info("steward.started", generation=self._generation, pid=os.getpid(), workers=len(self.links))
            await self._succeeded.wait()
            nursery.cancel_scope.cancel()

    def _member_of_fleet(self, plan: Plan) -> Member | None:
        if plan.settings.fleet is None:
            return None
        from proxy.app.fleet_hands import member_for  # sources.import_rooms says why here

        return member_for(plan.settings, plan.instance, self.links, self._desk)

    async def _be_a_member(self) -> None:
        if self._member is not None:
            await self._restored.wait()  # for it says whom we have
            await self._member.run()

    async def _ask_others(self) -> None:
        """Wait until DNS and the fleet have been asked, well or badly."""
        self._restored.set()
        if not self.links.registry.recalls_discovery:
            await self._overseer.informed()
        if self._member is not None:
            await self._member.tried.wait()

    # --- one after the other ---

    def _inherit(self) -> None:
        """Take over what the steward before has left, if he had the time."""
        if self._place.hand_over is None:
            return
        state = handover.read(self._place.hand_over)
        os.close(self._place.hand_over)
        match state:
            case {"version": int(version), "registry": dict(registry)}:
                self.links.version = version
                self.links.registry.recall(registry)
        match state:
            case {"failures": [list(wrong), list(known)]}:
                self._throttle.learn_wrong(wrong)
                self._throttle.learn_known(known)
        match state:
            case {"fleet": dict(shared)} if self._member is not None:
                self._member.recall(shared)
        match state:
            case {"traces": list(traces)}:
                self.links.onlookers.traces.recall(traces)
        match state:
            case {"metrics": list(totals)}:
                METRICS.merge(_BEFORE, totals)

    async def _hand_over(self) -> None:
        """Write down what the next one has to know. He hears workers from the moment that it is said."""
        assert self._heir is not None
        state = {
            "version": self.links.version,
            "registry": self.links.registry.memory(),
            "failures": list(self._throttle.failures()),
            "metrics": METRICS.totals(),
            "traces": self.links.onlookers.traces.memory(),
            "fleet": None if self._member is None else self._member.memory(),
        }
        try:
            handover.write(self._heir, state)
        except OSError as exc:  # the workers know the rest
            log.error("steward.hand_over_failed", error=exc.strerror)
        os.close(self._heir)
        log.info("steward.handed_over", generation=self._generation, sessions=len(self.links.registry.ledger))
        while not send_packet(self._place.control, [["handed_over"]]):
            await trio.lowlevel.wait_writable(self._place.control)

    # --- what the master says ---

    async def _obey(self) -> None:
        while True:
            messages, descriptors = await self._control.receive_with_descriptors()
            if not messages:
                await self._outlive_master()
                return
            for message in messages:
                self._do(message, descriptors)
            for descriptor in descriptors:  # nobody knew what to do with it
                os.close(descriptor)

    def _do(self, message: Message, descriptors: list[int]) -> None:
        match message:
            case ["begin", *_]:
                self._begun.set()
            case ["hand_over", *_] if descriptors:
                self._heir = descriptors.pop(0)
                for answer in self._asked.values():
                    answer.give(False, "another reload has just ended; ask again")
                self._succeeded.set()
            case ["worker", str(name), *_] if descriptors:
                self.links.add(name, Packets(socket.socket(fileno=descriptors.pop(0))))
            case ["files", list(paths), *_]:
                taken, descriptors[:] = list(descriptors), []
                self._files.take(paths, taken, self._say_rejected)
            case ["draining", *_]:
                self._draining = True
            case ["stop", *_]:
                if self._member is not None:
                    self._member.leaves = True
                self._life.cancel()
            case ["answer", int(question), bool(ok), str(text), *_] if question in self._asked:
                self._asked[question].give(ok, text)
            case ["metrics", list(changes), *_]:
                METRICS.merge("master", changes)
            case ["status", dict(status), *_]:
                self._status = status

    async def _outlive_master(self) -> None:
        """The workers notice as well, and end their sessions."""
        log.error("steward.orphaned")
        self._draining = True
        if self._member is not None:
            self._member.leaves = True
        timeouts = self._settings.timeouts
        with trio.move_on_after(timeouts.drain_grace + timeouts.drain + _ORPHAN_SECONDS):
            if self._begun.is_set():
                await self.links.deserted()
        self._life.cancel()

    async def _say_alive(self) -> None:
        while True:
            self._control.post(["alive"])
            await trio.sleep(_ALIVE_SECONDS)

    def _say_rejected(self, path: str, why: str) -> None:
        self._control.post(["rejected", path, why])

    async def _reload(self) -> str:
        """Ask the master to read the settings anew; gives what changed.

        Raises:
            NotReloaded: They are as they were, so far as is known.
        """
        question = next(self._questions)
        answer = self._asked[question] = _Answer()
        self._control.post(["ask", question, "reload"])
        try:
            with trio.move_on_after(RELOAD_SECONDS):
                await answer.given.wait()
        finally:
            del self._asked[question]
        if not answer.ok:
            raise NotReloaded(answer.text)
        return answer.text

    def _set_log_level(self, level: Level) -> Level:
        """Have all processes log so much; gives the level before."""
        before, self._log_level = self._log_level, level
        set_level(level)
        self.links.onlookers.set_log_level(level)
        self._control.post(["log_level", level])
        return before

    # --- side doors ---

    async def _open_doors(self, nursery: trio.Nursery) -> None:
        """Metrics, health, administrators, Postfix."""
        place, admin = self._place, self._settings.admin
        if place.metrics is not None:
            await nursery.start(serve_http, metrics_app(refresh=self.links.news.refresh), place.metrics)
        if place.admin is not None:
            serve = partial(serve_http, connection_seconds=_ADMIN_SECONDS, tls=self._admin_tls)
            tokens = Tokens(admin.tokens)
            app = address_app(self._desk, self._readiness, tokens, hosts=admin.hosts, origins=admin.origins)
            await nursery.start(serve, app, place.admin)
        if place.admin_socket is not None:
            serve = partial(serve_http, connection_seconds=_ADMIN_SECONDS)
            await nursery.start(serve, local_app(self._desk, {0, os.getuid()}), place.admin_socket)
        for door, sock in place.sockets:
            nursery.start_soon(accept_forever, sock, self._asker(door, nursery))

    def _asker(self, door: Door, nursery: trio.Nursery) -> Callable[[socket.socket, Any], None]:
        """What to do with a connection of Postfix's; never waits."""

        def accepted(sock: socket.socket, address: Any) -> None:
            peer = Endpoint(plain_host(address[0]), address[1])
            if door.lets_in(peer.host):
                nursery.start_soon(self._socketmap.serve, sock, peer, door.domains)
                return
            limit = "trusted_networks"
            self._refused(limit)
            log.info("connection.refused", client=str(peer), via="", listener=door.name, limit=limit, value=None)
            sock.close()

        return accepted

    def _readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether clients who come now would get in, and why not."""
        accepting, registry = self.links.accepting, self.links.registry
        backends = registry.cluster.snapshot(time.monotonic())
        reasons = [
            reason
            for reason, holds in (
                ("the proxy drains", self._draining),
                ("no worker lets clients in", not self.links.is_open or not accepting),
                ("no identity source answers", accepting > 0 and not self.links.authenticating),
                ("no backend is up", not any(seen.up and seen.state != "down" for seen in backends)),
            )
            if holds
        ]
        return not reasons, {
            "ready": not reasons,
            "reasons": reasons,
            "draining": self._draining,
            "workers": accepting,
            "sessions": len(registry.ledger),
        }

    def _full_status(self) -> dict[str, Any]:
        """The master's words, and how many sessions each worker has."""
        guests = self.links.registry.guests
        processes = [
            {**process, "sessions": guests.count(process["process"])} if process.get("role") == "worker" else process
            for process in self._status.get("processes", [])
        ]
        status = {"version": __version__, "generation": self._generation, "last_reload": {}, **self._status}
        fleet = None if self._member is None else self._member.status()
        return {**status, "fleet": fleet, "draining": self._draining, "processes": processes}


class _Answer:
    """What the master says to a question."""

    def __init__(self) -> None:
        self.given = trio.Event()
        self.ok = False
        self.text = f"no answer from the master within {RELOAD_SECONDS:g} s; the log may tell more"

    def give(self, ok: bool, text: str) -> None:
        if not self.given.is_set():
            self.ok, self.text = ok, text
            self.given.set()
