"""A worker: listeners, logins and the relay engine in one trio loop."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import trio

from proxy.admin.api import admin_app
from proxy.admin.http import health_app, metrics_app, serve_http, serve_unix
from proxy.admin.socketmap import Socketmap
from proxy.app.desk import Desk
from proxy.app.house import furnish
from proxy.app.overseer import Overseer
from proxy.app.process import prepare
from proxy.model import Endpoint
from proxy.observe.log import get_logger
from proxy.outcome import FAREWELLS, Outcome
from proxy.relay.engine import Carried
from proxy.session import House, serve_client
from proxy.settings.models import Settings
from proxy.transport.door import Door
from proxy.transport.listen import accept_forever, bind, plain_host
from proxy.transport.tls import ServerCertificates

log = get_logger()

_DRAIN_TICK_SECONDS = 0.1
_LOOP_DELAY_EVERY_SECONDS = 1.0


def open_doors(settings: Settings) -> list[tuple[Door, socket.socket]]:
    """Bind every listener, all or none.

    Raises:
        BindFailed: An address cannot be listened on.
    """
    certificates = None
    if settings.tls.certificates:
        pairs = [(pair.certificate, pair.private_key) for pair in settings.tls.certificates]
        certificates = ServerCertificates(pairs, settings.tls.minimum_version)
    opened: list[tuple[Door, socket.socket]] = []
    try:
        for listener in settings.listeners:
            door = Door(listener, certificates)
            opened.append((door, bind(listener.address)))
    except BaseException:
        for _, sock in opened:
            sock.close()
        raise
    return opened


class Worker:
    """One process that serves mail clients."""

    def __init__(self, settings: Settings, doors: Sequence[tuple[Door, socket.socket]]) -> None:
        self.settings = settings
        self._doors = doors
        room = prepare(settings.limits.connections)
        self.house: House = furnish(settings, [door.name for door, _ in doors], room)
        self._overseer = Overseer(self.house)
        self._desk = Desk(self.house)
        delimiter = settings.names.recipient_delimiter
        self._socketmap = Socketmap(self._desk.backend_of, self._overseer.lmtp, recipient_delimiter=delimiter)
        self._ready = False
        self._draining = False
        self._logins: trio.Nursery
        self.started = trio.Event()

    async def run(self) -> None:
        """Serve until a signal ends it (SIGTERM, SIGINT: drain; a second one: now)."""
        engine = self.house.engine
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine.run)
                nursery.start_soon(engine.sweep)
                await nursery.start(self._overseer.run)
                nursery.start_soon(self._watch_loop)
                nursery.start_soon(self._ignore_hangups)
                await self._open_side_doors(nursery)
                with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                    accepting = trio.CancelScope()
                    nursery.start_soon(self._serve, accepting)
                    await self.started.wait()
                    log.info("worker.started", listeners=[door.name for door, _ in self._doors])
                    number = await anext(signals)
                    log.info("worker.draining", signal=signal.Signals(number).name, sessions=len(engine.sessions))
                    self._draining = True
                    accepting.cancel()
                    with trio.CancelScope() as patience:
                        async with trio.open_nursery() as ending:
                            ending.start_soon(self._await_second, signals, patience)
                            await self._drain()
                            patience.cancel()
                nursery.cancel_scope.cancel()
        finally:
            # After the nursery: a login that was about to finish may still have handed its session over.
            for session in list(engine.sessions):
                engine.say_goodbye(session, Outcome.DRAINED)
            engine.close()
        log.info("worker.stopped")

    async def _open_side_doors(self, nursery: trio.Nursery) -> None:
        """Metrics and health, before clients are let in."""
        for setting, address, application in (
            ("metrics.address", self.settings.metrics.address, metrics_app()),
            ("admin.address", self.settings.admin.address, health_app(self._readiness)),
        ):
            if address is not None:
                await nursery.start(partial(serve_http, application, address, setting=setting))
        if (path := self.settings.admin.socket) is not None:
            application = admin_app(self._desk, {0, os.getuid()})
            await nursery.start(partial(serve_unix, application, path, setting="admin.socket"))

    # --- coming in ---

    async def _serve(self, accepting: trio.CancelScope) -> None:
        """Two nurseries: the one that accepts ends first, logins under way may finish."""
        async with trio.open_nursery() as self._logins:
            with accepting:
                async with trio.open_nursery() as listeners:
                    for door, sock in self._doors:
                        asks = door.protocol == "socketmap"
                        accepted = self._asker(door, listeners) if asks else self._comer(door)
                        listeners.start_soon(accept_forever, sock, accepted)
                    self._ready = True
                    self.started.set()
            for _, sock in self._doors:
                sock.close()

    def _comer(self, door: Door) -> Callable[[socket.socket, Any], None]:
        """What to do with a connection that a listener accepted; never waits."""
        house, logins = self.house, self._logins

        def accepted(sock: socket.socket, address: Any) -> None:
            peer = Endpoint(plain_host(address[0]), address[1])
            if not door.lets_in(peer.host):
                self._refuse(sock, peer, door, "trusted_networks", None)
                return
            if door.expects_header(peer.host):
                limit = house.admission.admit_unknown()
            else:
                limit = house.admission.admit(peer.host)
            if limit is None:
                logins.start_soon(serve_client, sock, peer, door, house)
            else:
                self._refuse(sock, peer, door, limit, FAREWELLS[Outcome.LIMIT])

        return accepted

    def _asker(self, door: Door, nursery: trio.Nursery) -> Callable[[socket.socket, Any], None]:
        """As _comer(), for a listener where Postfix asks: it keeps connections open, which hold up no drain."""

        def accepted(sock: socket.socket, address: Any) -> None:
            peer = Endpoint(plain_host(address[0]), address[1])
            if door.lets_in(peer.host):
                nursery.start_soon(self._socketmap.serve, sock, peer, door.domains)
            else:
                self._refuse(sock, peer, door, "trusted_networks", None)

        return accepted

    def _refuse(self, sock: socket.socket, client: Endpoint, door: Door, limit: str, farewell: bytes | None) -> None:
        """Close a connection that may not come in, with a word where one would be understood."""
        self.house.metrics.refused(limit)
        value = getattr(self.settings.limits, limit, None)
        log.info("connection.refused", client=str(client), via="", listener=door.name, limit=limit, value=value)
        with contextlib.suppress(OSError):
            if farewell is not None and door.tls != "implicit":
                sock.send(farewell)
        sock.close()

    # --- going out ---

    async def _await_second(self, signals: AsyncIterator[int], patience: trio.CancelScope) -> None:
        async for number in signals:
            log.warning("worker.stopping_at_once", signal=signal.Signals(number).name)
            patience.cancel()

    async def _drain(self) -> None:
        """End the sessions at safe points, spread over `timeouts.drain` with jitter; the rest at its end.

        Connections that are not logging in just now end at once; logins under way may finish.
        """
        seconds = self.settings.timeouts.drain
        deadline = trio.current_time() + seconds
        # All sessions should have had their turn after about two thirds of the time.
        rounds = max(1, int(seconds * 2 / 3 / _DRAIN_TICK_SECONDS))
        due: list[Carried] = []
        per_round = 0
        while self._busy() and trio.current_time() < deadline:
            for visit in list(self.house.visits):
                visit.drain()
            if not due:
                due = list(self.house.engine.sessions)
                random.shuffle(due)
                per_round = max(1, -(-len(due) // rounds))
            for _ in range(min(per_round, len(due))):
                session = due.pop()
                if session.at_safe_point:
                    self.house.engine.say_goodbye(session, Outcome.DRAINED)
            await trio.sleep(_DRAIN_TICK_SECONDS * random.uniform(0.7, 1.3))  # noqa: S311 - jitter

    def _busy(self) -> bool:
        return bool(self.house.engine.sessions or self._logins.child_tasks)

    async def _ignore_hangups(self) -> None:
        """Settings cannot be read anew yet; a habit from other servers must not stop this one."""
        with trio.open_signal_receiver(signal.SIGHUP) as hangups:
            async for _ in hangups:
                log.warning("worker.hangup_ignored", reason="settings take hold at a restart")

    # --- being watched ---

    def _readiness(self) -> tuple[bool, dict[str, Any]]:
        ready = self._ready and not self._draining
        return ready, {"ready": ready, "draining": self._draining, "sessions": len(self.house.engine.sessions)}

    async def _watch_loop(self) -> None:
        """How late the loop wakes: what a login waits for behind other work."""
        while True:
            due = trio.current_time() + _LOOP_DELAY_EVERY_SECONDS
            await trio.sleep_until(due)
            self.house.metrics.loop_delay(trio.current_time() - due)
