"""Furnishing: from settings to the rooms that a session walks through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from proxy.app.sources import NO_USERS, authenticator_for, mechanisms_for, sources_for
from proxy.auth.names import NameRules
from proxy.auth.throttle import Throttle
from proxy.backends.pool import Pool
from proxy.imap.commands import COMMANDS
from proxy.imap.observer import BLIND_REASONS
from proxy.limits.admission import Admission
from proxy.limits.board import Row
from proxy.limits.meters import Meters
from proxy.limits.turnstile import Turnstile
from proxy.observe.tally import Tally
from proxy.outcome import Outcome
from proxy.relay.closing import Closer
from proxy.relay.engine import Engine
from proxy.relay.partings import Partings
from proxy.relay.splice import Carriage, Splice
from proxy.session import House, Registrar, end_session, leave_backend
from proxy.session.metrics import SessionMetrics
from proxy.settings.limit_models import LoginsPerBackend
from proxy.settings.models import Settings


def furnish(
    settings: Settings,
    listeners: Sequence[str],
    register: Callable[[Closer], Registrar],
    *,
    row: Row | None = None,
    throttle_key: bytes | None = None,
    workers: int = 1,
    users: Mapping[Path, bytes] = NO_USERS,
) -> House:
    """Build the rooms of one worker. Nothing is started and nothing is connected to.

    Args:
        listeners: The names of the listeners, for metrics.
        register: Makes the registrar, who may have sessions closed.
        row: Where this worker counts its connections for all to see; None: it is alone.
        throttle_key: What all workers of a host tell failures by; None: it is alone.
        workers: How many share what a backend may be asked for at once.
        users: What users files hold, so far as that is known; others are read.
    """
    engine = Engine()
    closer = Closer(engine)
    limits = settings.limits
    tally = Tally(COMMANDS, BLIND_REASONS)
    rules = NameRules(settings.names)
    sources = sources_for(settings, rules, users)
    authenticator = authenticator_for(settings, rules, sources)
    introduces = any(
        settings.backends.client_address_for(server) != "none" for server in settings.backends.servers
    ) or (settings.backends.discovery is not None and settings.backends.client_address != "none")

    def ended(relay: Splice, outcome: Outcome) -> None:
        end_session(relay, outcome, house)

    def parted(relay: Splice) -> None:
        leave_backend(relay, house)

    house = House(
        settings=settings,
        admission=Admission(limits, row),
        handshakes=Turnstile("handshakes_at_once", limits.handshakes_at_once),
        logins=Turnstile("logins_at_once", limits.logins_at_once),
        throttle=Throttle(limits, key=throttle_key),
        authenticator=authenticator,
        mechanisms=mechanisms_for(settings, authenticator, sources),
        registrar=register(closer),
        backends=Pool(settings.backends, settings.timeouts, engine.turn, _share(limits.logins_per_backend, workers)),
        engine=engine,
        closer=closer,
        carriage=Carriage(tally, settings.timeouts.idle, ended, parted, Partings(settings.backends.disconnect_spread)),
        meters=Meters(limits),
        tally=tally,
        metrics=SessionMetrics([server.name for server in settings.backends.servers], listeners),
        introduces=introduces,
    )
    return house


def _share(limits: LoginsPerBackend, workers: int) -> LoginsPerBackend:
    """What one of so many workers may ask of a backend. Rounded up: each may ask."""
    part = {"at_once": -(-limits.at_once // workers), "waiting": -(-limits.waiting // workers)}
    return limits.model_copy(update=part)
