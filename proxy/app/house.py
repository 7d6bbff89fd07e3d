"""Furnishing: from settings to the rooms that a session walks through."""

from __future__ import annotations

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
from proxy.relay.engine import Engine
from proxy.relay.splice import Carriage, Splice
from proxy.routing.router import Router
from proxy.session import House, end_session
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

    def ended(relay: Splice, outcome: Outcome) -> None:
        end_session(relay, outcome, house)

    house = House(
        settings=settings,
        admission=Admission(connections, settings.limits.connections_per_address, settings.limits.exempt_networks),
        throttle=Throttle(settings.limits),
        authenticator=authenticator,
        mechanisms=mechanisms_for(settings, authenticator, sources),
        router=Router(settings.backends.servers, settings.routing.hash),
        backends=Pool(settings.backends, settings.timeouts, engine.turn),
        ledger=Ledger(settings.limits.connections_per_user),
        engine=engine,
        carriage=Carriage(tally, settings.timeouts.idle, ended),
        tally=tally,
        metrics=metrics,
    )
    return house
