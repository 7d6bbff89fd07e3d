"""The rooms that a session walks through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.auth.authenticator import Authenticator
from proxy.auth.throttle import Throttle
from proxy.backends.pool import Pool
from proxy.ledger.host import Ledger
from proxy.limits.admission import Admission
from proxy.observe.tally import Tally
from proxy.relay.closing import Closer
from proxy.relay.engine import Engine
from proxy.relay.splice import Carriage
from proxy.routing.cluster import Cluster
from proxy.session.mechanisms import Mechanisms
from proxy.session.metrics import SessionMetrics
from proxy.settings.models import Settings

if TYPE_CHECKING:
    from proxy.session.visit import Visit


@dataclass(frozen=True, slots=True)
class House:
    """What `app` furnishes: all that the sessions of one worker share."""

    settings: Settings
    admission: Admission
    throttle: Throttle
    authenticator: Authenticator
    mechanisms: Mechanisms
    cluster: Cluster
    backends: Pool
    ledger: Ledger
    engine: Engine
    closer: Closer
    carriage: Carriage
    tally: Tally
    metrics: SessionMetrics
    introduces: bool  # whether backends are told who the client is
    visits: set[Visit] = field(default_factory=set)  # connections before their login
