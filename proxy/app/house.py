"""Furnishing: from settings to the rooms that a session walks through."""

from __future__ import annotations

import time
from collections.abc import Sequence

from proxy.app.sources import authenticator_for, mechanisms_for, sources_for
from proxy.auth.names import NameRules
from proxy.auth.throttle import Throttle
from proxy.backends.pool import Pool
from proxy.imap.commands import COMMANDS
from proxy.imap.observer import BLIND_REASONS
from proxy.ledger.host import Ledger
from proxy.limits.admission import Admission
from proxy.observe.tally import Tally
from proxy.outcome import Outcome
from proxy.relay.closing import Closer
from proxy.relay.engine import Engine
from proxy.relay.partings import Partings
from proxy.relay.splice import Carriage, Splice
from proxy.routing.cluster import Cluster
from proxy.session import House, end_session, leave_backend
from proxy.session.metrics import SessionMetrics
from proxy.settings.models import Settings


def furnish(settings: Settings, listeners: Sequence[str], connections: int | None = None) -> House:
    """Build the rooms. Nothing is started and nothing is connected to.

    Args:
        listeners: The names of the listeners, for metrics.
        connections: How many there is room for, where that is fewer than `limits.connections`.
    """
    if connections is None:
        connections = settings.limits.connections
    engine = Engine()
    tally = Tally(COMMANDS, BLIND_REASONS)
    rules = NameRules(settings.names)
    sources = sources_for(settings, rules)
    authenticator = authenticator_for(settings, rules, sources)
    metrics = SessionMetrics([server.name for server in settings.backends.servers], listeners)

    closer = Closer(engine)
    introduces = any(
        settings.backends.client_address_for(server) != "none" for server in settings.backends.servers
    ) or (settings.backends.discovery is not None and settings.backends.client_address != "none")

    def ended(relay: Splice, outcome: Outcome) -> None:
        end_session(relay, outcome, house)

    def parted(relay: Splice) -> None:
        leave_backend(relay, house)

    house = House(
        settings=settings,
        admission=Admission(connections, settings.limits.connections_per_address, settings.limits.exempt_networks),
        throttle=Throttle(settings.limits),
        authenticator=authenticator,
        mechanisms=mechanisms_for(settings, authenticator, sources),
        cluster=Cluster(settings.backends, settings.routing, time.monotonic()),
        backends=Pool(settings.backends, settings.timeouts, engine.turn, settings.limits.logins_per_backend),
        ledger=Ledger(settings.limits.connections_per_user, settings.routing, closer),
        engine=engine,
        closer=closer,
        carriage=Carriage(tally, settings.timeouts.idle, ended, parted, Partings(settings.backends.disconnect_spread)),
        tally=tally,
        metrics=metrics,
        introduces=introduces,
    )
    return house
