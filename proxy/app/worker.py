"""A worker: listeners, logins and the relay engine in one trio loop."""

from __future__ import annotations

import random
import signal
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any

import trio

from proxy.admin.http import health_app, metrics_app, serve_http
from proxy.app.house import furnish
from proxy.model import Endpoint
from proxy.observe.log import get_logger
from proxy.outcome import FAREWELLS, Outcome
from proxy.relay.relay import Relay
from proxy.session import House, serve_client
from proxy.settings.models import Settings
from proxy.transport.door import Door
from proxy.transport.listen import accept_forever, bind
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
            door = Door(listener.address, listener.tls, listener.trusted_networks, certificates)
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
        self.house: House = furnish(settings, [door.name for door, _ in doors])
        self._ready = False
        self._draining = False
        self._logins: trio.Nursery
        self.started = trio.Event()

    async def run(self) -> None:
        """Serve until a signal ends it (SIGTERM, SIGINT: drain; a second one: now)."""
        engine = self.house.engine
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run)
            nursery.start_soon(engine.sweep)
            nursery.start_soon(self._watch_loop)
            for setting, address, application in (
                ("metrics.address", self.settings.metrics.address, metrics_app()),
                ("admin.address", self.settings.admin.address, health_app(self._readiness)),
            ):
                if address is not None:
                    await nursery.start(partial(serve_http, application, address, setting=setting))
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                accepting = trio.CancelScope()
                nursery.start_soon(self._serve, accepting)
                await self.started.wait()
                log.info("worker.started", listeners=[door.name for door, _ in self._doors])
                async for number in signals:
                    log.info("worker.draining", signal=signal.Signals(number).name, sessions=len(engine.sessions))
                    self._draining = True
                    break
                accepting.cancel()
                with trio.CancelScope() as patience:
                    async with trio.open_nursery() as ending:
                        ending.start_soon(self._await_second, signals, patience)
                        await self._drain()
                        patience.cancel()
            self._end_all()
            nursery.cancel_scope.cancel()
        log.info("worker.stopped")

    # --- coming in ---

    async def _serve(self, accepting: trio.CancelScope) -> None:
        """Two nurseries: the one that accepts ends first, logins under way may finish."""
        async with trio.open_nursery() as self._logins:
            with accepting:
                async with trio.open_nursery() as listeners:
                    for door, sock in self._doors:
                        listeners.start_soon(accept_forever, sock, self._comer(door))
                    self._ready = True
                    self.started.set()
            for _, sock in self._doors:
                sock.close()

    def _comer(self, door: Door) -> Any:
        """What to do with a connection that a listener accepted; never waits."""
        admission, metrics, logins = self.house.admission, self.house.metrics, self._logins

        def accepted(sock: socket.socket, address: Any) -> None:
            host = address[0]
            if host.startswith("::ffff:"):  # IPv4 on a socket for both (RFC 4291 §2.5.5.2)
                host = host[7:]
            elif "%" in host:
                host = host.partition("%")[0]
            limit = admission.admit(host) if door.lets_in(host) else "trusted_networks"
            if limit is None:
                logins.start_soon(serve_client, sock, Endpoint(host, address[1]), door, self.house)
                return
            metrics.refused(limit)
            log.info("connection.refused", client=host, listener=door.name, limit=limit)
            if door.tls != "implicit":
                try:
                    sock.send(FAREWELLS[Outcome.LIMIT])
                except OSError:
                    pass
            sock.close()

        return accepted

    # --- going out ---

    async def _await_second(self, signals: Any, patience: trio.CancelScope) -> None:
        async for number in signals:
            log.warning("worker.stopping_at_once", signal=signal.Signals(number).name)
            patience.cancel()

    async def _drain(self) -> None:
        """End the sessions at safe points, spread over `timeouts.drain` with jitter; the rest at its end."""
        seconds = self.settings.timeouts.drain
        deadline = trio.current_time() + seconds
        # All sessions should have had their turn after about two thirds of the time.
        rounds = max(1, int(seconds * 2 / 3 / _DRAIN_TICK_SECONDS))
        due: list[Relay] = []
        per_round = 0
        while self._busy() and trio.current_time() < deadline:
            if not due:
                due = [relay for relay in self.house.engine.sessions if isinstance(relay, Relay)]
                random.shuffle(due)
                per_round = max(1, -(-len(due) // rounds))
            for _ in range(min(per_round, len(due))):
                relay = due.pop()
                if relay.at_safe_point:
                    relay.say_goodbye(Outcome.DRAINED)
            await trio.sleep(_DRAIN_TICK_SECONDS * random.uniform(0.7, 1.3))  # noqa: S311 - jitter

    def _busy(self) -> bool:
        return bool(self.house.engine.sessions or self._logins.child_tasks)

    def _end_all(self) -> None:
        for relay in list(self.house.engine.sessions):
            if isinstance(relay, Relay):
                relay.say_goodbye(Outcome.DRAINED)
        self.house.engine.close()

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
