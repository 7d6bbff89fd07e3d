"""The rooms that a session walks through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.auth.authenticator import Authenticator
from proxy.auth.throttle import Throttle
from proxy.backends.pool import Pool
from proxy.limits.admission import Admission
from proxy.limits.meters import Meters
from proxy.limits.turnstile import Turnstile
from proxy.observe.tally import Tally
from proxy.relay.closing import Closer
from proxy.relay.engine import Engine
from proxy.relay.splice import Carriage
from proxy.relay.tracing import Tracing
from proxy.session.happenings import Happenings
from proxy.session.mechanisms import Mechanisms
from proxy.session.metrics import SessionMetrics
from proxy.session.refusals import Refusals
from proxy.session.registrar import Registrar
from proxy.settings.models import Settings

if TYPE_CHECKING:
    from proxy.session.visit import Visit


@dataclass(frozen=True, slots=True)
class House:
    """What `app` furnishes: all that the sessions of one worker share."""

    settings: Settings
    admission: Admission
    handshakes: Turnstile
    logins: Turnstile
    throttle: Throttle
    authenticator: Authenticator
    mechanisms: Mechanisms
    registrar: Registrar
    backends: Pool
    engine: Engine
    closer: Closer
    carriage: Carriage
    meters: Meters
    tally: Tally
    metrics: SessionMetrics
    introduces: bool  # whether backends are told who the client is
    visits: set[Visit] = field(default_factory=set)  # connections before their login
    tracing: Tracing = field(default_factory=Tracing)
    refusals: Refusals = field(default_factory=Refusals)
    happenings: Happenings = field(default_factory=Happenings)
