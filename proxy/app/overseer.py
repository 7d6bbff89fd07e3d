"""What goes on around the sessions: backends are checked, found and lost, and their users follow.

Nothing here is asked by a login. It is told of what the checks, the logins, DNS and the administrators say, and has
the registry draw the conclusions. Workers, who let logins wait at a backend's door, learn of it by the view.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import trio

from proxy.admin.socketmap import lmtp_endpoint
from proxy.app.registry import Registry
from proxy.backends.discovered import Found
from proxy.backends.monitor import Monitor
from proxy.backends.pool import Pool
from proxy.ledger.accounts import know_backends
from proxy.model import Endpoint
from proxy.observe import metrics
from proxy.observe.log import get_logger
from proxy.outcome import Outcome
from proxy.routing.cluster import BackendEvent, Seen
from proxy.session.metrics import hide_backend, show_backend
from proxy.settings.models import Settings

log = get_logger()

_TICK_SECONDS = 1.0
STATES = ("up", "drain", "down")

_UP = metrics.gauge(
    "porter_backend_up", "1 if the backend works, by checks and logins; 0 if it is down.", merge="min", backend=None
)
_STATE = metrics.gauge(
    "porter_backend_state",
    "1 for the state that administrators gave the backend.",
    merge="max",
    backend=None,
    state=STATES,
)
_WEIGHT = metrics.gauge("porter_backend_weight", "The backend's weight.", merge="max", backend=None)
_FAILED_OVER = metrics.gauge(
    "porter_backend_failed_over", "1 while the backend's users go to their next choice.", merge="max", backend=None
)
_EPOCH = metrics.gauge(
    "porter_placement_epoch",
    "A number for names, weights, states and tags of all backends: proxies with the same one place alike.",
    merge="max",
)
_TURNS = metrics.counter(
    "porter_backend_turns_total",
    "What happened to backends.",
    kind=("went_down", "came_up", "failed_over", "returned", "closed", "added", "removed", "changed"),
)


class Overseer:
    """The tasks that look after the backends, in the one process that does."""

    def __init__(self, settings: Settings, registry: Registry, pool: Pool) -> None:
        """Args:
        pool: The backends to be checked.
        """
        self._settings = settings
        self._registry = registry
        self._pool = pool
        self._monitor = Monitor(pool, settings.backends.health, self._checked)
        self._discovery = None
        if (found := settings.backends.discovery) is not None:
            from proxy.backends.discovery import Discovery  # sources.import_rooms says why here

            self._discovery = Discovery(found, self._found, pinned=settings.backends.pins_names)
        self._informed = trio.Event()
        self.on_event: Callable[[BackendEvent], None] = lambda event: None  # for whoever looks on
        self.on_change: Callable[[], None] = lambda: None  # something may be worth telling other processes
        registry.cluster.on_event = self._happened
        self._shown: dict[str, str] = {}
        self._show()

    async def run(self) -> None:
        """Look after the backends until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._registry.ledger.run)
            nursery.start_soon(self._discover)
            nursery.start_soon(self._monitor.run)
            while True:
                await trio.sleep(_TICK_SECONDS)
                self._registry.cluster.tick(time.monotonic())
                self._registry.expire_directions()
                self.on_change()

    async def informed(self) -> None:
        """Wait until DNS has been asked for the backends, where it is, well or badly."""
        await self._informed.wait()

    async def _discover(self) -> None:
        async with trio.open_nursery() as nursery:
            if self._discovery is not None:
                await nursery.start(self._discovery.run)
            self._informed.set()

    def lmtp(self, backend: str) -> Endpoint:
        """Where a backend takes deliveries."""
        server = next(server for server in self._registry.cluster.servers() if server.name == backend)
        return lmtp_endpoint(server, self._registry.addresses.get(backend, ()))

    def resume(self) -> None:
        """Go on where the process before this one ended: the registry has recalled what that one knew, and the
        sessions are restored. Who was to leave a backend is told so again.
        """
        registry = self._registry
        self._pool.update(registry.cluster.servers(), registry.addresses)
        for seen in registry.cluster.snapshot(time.monotonic()):
            if registry.ledger.residents_of(seen.name).sessions == 0:
                continue
            if seen.state == "down":
                self._evict(seen.name, Outcome.DRAINED)
            elif seen.failed_over and not seen.up:
                self._evict(seen.name, Outcome.BACKEND_CLOSED)
        registry.resume_drains()
        registry.resume_directions()
        self._show()

    # --- what is heard ---

    def _checked(self, backend: str, reason: str) -> None:
        self._registry.cluster.checked(backend, time.monotonic(), reason)
        self.on_change()

    def _found(self, found: Sequence[Found]) -> None:
        """DNS names these."""
        # A name in the settings is who the settings say, and where they say.
        own = {server.name for server in self._settings.backends.servers}
        self._registry.discovered([each for each in found if each.server.name not in own])
        self._pool.update(self._registry.cluster.servers(), self._registry.addresses)
        self.on_change()

    def _happened(self, event: BackendEvent) -> None:
        """A backend is not what it was."""
        _tell(event, self._registry.cluster.epoch)
        _TURNS.labels(event.kind).inc()
        self.on_event(event)
        if event.kind == "failed_over":
            self._evict(event.backend, Outcome.BACKEND_CLOSED)
        elif event.kind in ("closed", "removed"):
            self._evict(event.backend, Outcome.DRAINED)
        self._show()
        self.on_change()

    def _evict(self, backend: str, outcome: Outcome) -> None:
        # One that has failed cannot be reached, so that nothing there is worth waiting for.
        patience = 0.0 if outcome is Outcome.BACKEND_CLOSED else self._settings.routing.move_patience
        spread = self._settings.backends.disconnect_spread
        self._registry.ledger.evict(backend, outcome, spread=spread, patience=patience)

    # --- what is shown ---

    def _show(self) -> None:
        """Bring the metrics up to date."""
        cluster = self._registry.cluster
        _EPOCH.set(cluster.epoch_number)
        seen = cluster.snapshot(time.monotonic())
        for each in seen:
            self._show_one(each)
        for gone in self._shown.keys() - {each.name for each in seen}:
            self._forget(gone)

    def _show_one(self, seen: Seen) -> None:
        _UP.labels(seen.name).set(int(seen.up))
        _WEIGHT.labels(seen.name).set(seen.weight)
        _FAILED_OVER.labels(seen.name).set(int(seen.failed_over))
        for state in STATES:
            _STATE.labels(seen.name, state).set(int(state == seen.state))
        if seen.name not in self._shown:
            know_backends([seen.name])
            show_backend(seen.name)
        self._shown[seen.name] = seen.state

    def _forget(self, name: str) -> None:
        """Discovery has taken a backend back."""
        del self._shown[name]
        hide_backend(name)
        for gauge in (_UP, _WEIGHT, _FAILED_OVER):
            gauge.remove(name)
        for state in STATES:
            _STATE.remove(name, state)


def _tell(event: BackendEvent, epoch: str) -> None:
    backend, reason = event.backend, event.reason
    match event.kind:
        case "went_down":
            log.warning("backend.went_down", backend=backend, reason=reason, epoch=epoch)
        case "came_up":
            log.info("backend.came_up", backend=backend, reason=reason, epoch=epoch)
        case "failed_over":
            log.warning("backend.failed_over", backend=backend, reason=reason, epoch=epoch)
        case "returned":
            log.info("backend.returned", backend=backend, reason=reason, epoch=epoch)
        case "closed":
            log.info("backend.closed", backend=backend, reason=reason, epoch=epoch)
        case "added":
            log.info("backend.added", backend=backend, reason=reason, epoch=epoch)
        case "removed":
            log.info("backend.removed", backend=backend, reason=reason, epoch=epoch)
        case "changed":
            log.info("backend.changed", backend=backend, reason=reason, epoch=epoch)
