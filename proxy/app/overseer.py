"""What goes on around the sessions: backends are checked, found and lost, and their users follow.

Nothing here is asked by a login. It is told of what the checks, the logins, DNS and the administrators say, and has
the cluster, the pool and the ledger draw the conclusions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import trio

from proxy.admin.socketmap import lmtp_endpoint
from proxy.backends.discovered import Found
from proxy.backends.discovery import Discovery
from proxy.backends.monitor import Monitor
from proxy.ledger.host import know_backends
from proxy.model import Endpoint
from proxy.observe import metrics
from proxy.observe.log import get_logger
from proxy.outcome import Outcome
from proxy.routing.cluster import BackendEvent, Seen
from proxy.session import House

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
    """The tasks of one process that look after its backends."""

    def __init__(self, house: House) -> None:
        self._house = house
        settings = house.settings
        self._monitor = Monitor(house.backends, settings.backends.health, self._checked)
        found = settings.backends.discovery
        self._discovery = None if found is None else Discovery(found, self._found, pinned=settings.backends.pins_names)
        self._addresses: dict[str, tuple[str, ...]] = {}
        house.cluster.on_event = self._happened
        self._shown: dict[str, str] = {}
        self._show()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after the backends until cancelled. Started once DNS has been asked for them, where it is."""
        house = self._house
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.ledger.run)
            nursery.start_soon(house.closer.run)
            nursery.start_soon(house.carriage.partings.run)
            if self._discovery is not None:
                await nursery.start(self._discovery.run)
            nursery.start_soon(self._monitor.run)
            task_status.started()
            while True:
                await trio.sleep(_TICK_SECONDS)
                house.cluster.tick(time.monotonic())

    def lmtp(self, backend: str) -> Endpoint:
        """Where a backend takes deliveries."""
        server = next(server for server in self._house.cluster.servers() if server.name == backend)
        return lmtp_endpoint(server, self._addresses.get(backend, ()))

    # --- what is heard ---

    def _checked(self, backend: str, reason: str) -> None:
        self._house.cluster.checked(backend, time.monotonic(), reason)

    def _found(self, found: Sequence[Found]) -> None:
        """DNS names these."""
        house = self._house
        # A name in the settings is who the settings say, and where they say.
        own = {server.name for server in house.settings.backends.servers}
        found = [each for each in found if each.server.name not in own]
        self._addresses = {each.server.name: each.addresses for each in found}
        # Who is new is there before anybody is told of it, and who is gone until then.
        servers = {server.name: server for server in (*house.cluster.servers(), *(each.server for each in found))}
        house.backends.update(list(servers.values()), self._addresses)
        house.cluster.discovered([each.server for each in found], time.monotonic())
        house.backends.update(house.cluster.servers(), self._addresses)

    def _happened(self, event: BackendEvent) -> None:
        """A backend is not what it was."""
        house, backends = self._house, self._house.settings.backends
        _tell(event, house.cluster.epoch)
        _TURNS.labels(event.kind).inc()
        spread = backends.disconnect_spread
        match event.kind:
            case "went_down":
                house.backends[event.backend].went_down(event.reason)
            case "came_up" | "returned":
                house.backends[event.backend].recovered(trio.current_time())
            case "failed_over":
                # It cannot be reached, so that nothing there is worth waiting for.
                house.ledger.evict(event.backend, Outcome.BACKEND_CLOSED, spread=spread, patience=0.0)
            case "closed" | "removed":
                patience = house.settings.routing.move_patience
                house.ledger.evict(event.backend, Outcome.DRAINED, spread=spread, patience=patience)
        self._show()

    # --- what is shown ---

    def _show(self) -> None:
        """Bring the metrics up to date."""
        cluster = self._house.cluster
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
            self._house.metrics.know_backend(seen.name)
        self._shown[seen.name] = seen.state

    def _forget(self, name: str) -> None:
        """Discovery has taken a backend back."""
        del self._shown[name]
        for gauge in (_UP, _WEIGHT, _FAILED_OVER):
            gauge.remove(name)
        for state in STATES:
            _STATE.remove(name, state)
        self._house.metrics.forget_backend(name)


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
