"""What is counted of connections, logins and sessions, each moved by one call of the session's story.

All of it runs in the event loop's thread. What moves at every login is a tally (`observe.tally`).
"""

from __future__ import annotations

from collections.abc import Iterable

from proxy.backends import last_failure
from proxy.backends.last_failure import STEPS
from proxy.observe import metrics
from proxy.observe.metrics import METRICS, Counter, Gauge
from proxy.observe.tally import HistogramTally, NumberTally
from proxy.outcome import Outcome
from proxy.sasl import NAMES

MECHANISMS = ("LOGIN", *NAMES)
PHASES = ("tls", "auth", "route", "connect", "backend_login", "total")
LIMITS = ("connections", "connections_per_address", "trusted_networks", "proxy_header")
TLS_FAILURES = ("alpn", "certificate", "closed", "protocol", "timeout")

LOGIN_OUTCOMES = (
    Outcome.OK,
    Outcome.AUTHENTICATION_FAILED,
    Outcome.AUTHORIZATION_FAILED,
    Outcome.EXPIRED,
    Outcome.UNAVAILABLE,
    Outcome.LIMIT,
    Outcome.IN_USE,
    Outcome.CONTACT_ADMIN,
    Outcome.SERVER_BUG,
    Outcome.CANCELLED,
)
SESSION_OUTCOMES = (
    Outcome.LOGGED_OUT,
    Outcome.CLIENT_CLOSED,
    Outcome.BACKEND_CLOSED,
    Outcome.PROTOCOL_VIOLATION,
    Outcome.TLS_FAILED,
    Outcome.LOGIN_TIMEOUT,
    Outcome.IDLE_TIMEOUT,
    Outcome.TRY_LIMIT,
    Outcome.DRAINED,
    Outcome.MOVED,
    Outcome.KICKED,
    Outcome.EXPIRED,
    Outcome.LIMIT,
    Outcome.SERVER_BUG,
)
# A cached identity takes microseconds, an argon2id hash tens of milliseconds, a slow directory seconds.
LOGIN_BUCKETS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BACKEND_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LOOP_DELAY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
OTHER = "other"

_ATTEMPTS = metrics.counter(
    "porter_login_attempts_total",
    "Logins offered by clients, counted at their end.",
    mechanism=(*MECHANISMS, OTHER),
    outcome=LOGIN_OUTCOMES,
)
_LOGIN_DURATION = metrics.histogram(
    "porter_login_duration_seconds",
    "How long the phases of logins took; `total` is a successful login from the client's offer, without `tls`.",
    LOGIN_BUCKETS,
    phase=PHASES,
)
_SESSIONS = metrics.gauge(
    "porter_sessions",
    "Open connections of clients, before and after login.",
    state=("not_authenticated", "authenticated"),
)
_CONNECTIONS = metrics.counter("porter_connections_total", "Connections let in.", listener=None)
_REFUSED = metrics.counter(
    "porter_connections_refused_total",
    "Connections closed at once, by the limit that was reached, or why else.",
    limit=LIMITS,
)
_ENDED = metrics.counter(
    "porter_sessions_ended_total", "Sessions that are over, by how they ended.", outcome=SESSION_OUTCOMES
)
_BACKEND_SESSIONS = metrics.gauge("porter_backend_sessions", "Sessions logged in at the backend.", backend=None)
_BACKEND_FAILURES = metrics.counter(
    "porter_backend_failures_total",
    "Backend logins that failed, by the step where they stuck; a wrong password that the backend judges is at `login`.",
    backend=None,
    step=STEPS,
)
_BACKEND_LOGIN_DURATION = metrics.histogram(
    "porter_backend_login_duration_seconds",
    "How long successful logins at the backend took: waiting for a turn, connecting, TLS and the login itself.",
    BACKEND_BUCKETS,
    backend=None,
)
_TLS_FAILURES = metrics.counter(
    "porter_tls_handshake_failures_total", "TLS handshakes of clients that failed.", reason=(*TLS_FAILURES, OTHER)
)
_LOOP_DELAY = metrics.histogram(
    "porter_event_loop_delay_seconds",
    "How late the event loop woke up, which is what each login waits behind other work.",
    LOOP_DELAY_BUCKETS,
    process=None,
)
_WORKER_SESSIONS = metrics.gauge("porter_worker_sessions", "Open connections of clients, by worker.", process=None)


def show_backend(name: str) -> None:
    """Make zero visible in what is counted of a backend's logins; in the process that shows all metrics, too."""
    _BACKEND_LOGIN_DURATION.labels(name)
    for step in STEPS:
        _BACKEND_FAILURES.labels(name, step)
    last_failure.know(name)


def hide_backend(name: str) -> None:
    """There is no such backend any more."""
    _BACKEND_LOGIN_DURATION.remove(name)
    for step in STEPS:
        _BACKEND_FAILURES.remove(name, step)
    last_failure.forget(name)


class _BackendMetrics:
    """One backend's series."""

    __slots__ = ("durations", "failures", "live", "sessions")

    def __init__(self, name: str, sessions: NumberTally) -> None:
        self.sessions = sessions
        self.live = 0
        self.durations = HistogramTally(_BACKEND_LOGIN_DURATION.labels(name), BACKEND_BUCKETS)
        self.failures = {step: _BACKEND_FAILURES.labels(name, step) for step in STEPS}


class SessionMetrics:
    """All series with their labels looked up beforehand. Names come from the settings."""

    def __init__(self, backend_names: Iterable[str], listener_names: Iterable[str]) -> None:
        self._numbers: list[NumberTally] = []
        number = self._number
        self._attempts = {
            mechanism: {outcome: number(_ATTEMPTS.labels(mechanism, outcome)) for outcome in LOGIN_OUTCOMES}
            for mechanism in (*MECHANISMS, OTHER)
        }
        self._phases = {phase: HistogramTally(_LOGIN_DURATION.labels(phase), LOGIN_BUCKETS) for phase in PHASES}
        self._not_authenticated = number(_SESSIONS.labels("not_authenticated"))
        self._authenticated = number(_SESSIONS.labels("authenticated"))
        self._connections = {name: number(_CONNECTIONS.labels(name)) for name in listener_names}
        self._refused = {limit: _REFUSED.labels(limit) for limit in LIMITS}
        self._ended = {outcome: number(_ENDED.labels(outcome)) for outcome in SESSION_OUTCOMES}
        self._backends: dict[str, _BackendMetrics] = {}
        self._gone: set[str] = set()  # backends that DNS has taken back
        for name in backend_names:
            self._backend(name)
        self._tls_failures = {reason: _TLS_FAILURES.labels(reason) for reason in (*TLS_FAILURES, OTHER)}
        self._loop_delay: HistogramTally | None = None  # the steward's doors count here too, and none of their own
        METRICS.on_flush(self.flush)

    def opened(self, listener: str) -> None:
        """A connection was let in."""
        self._connections[listener].value += 1
        self._not_authenticated.value += 1

    def refused(self, limit: str) -> None:
        """A connection was closed at once because of a limit."""
        self._refused[limit].inc()

    def tls_failed(self, reason: str) -> None:
        """A client's handshake failed."""
        self._tls_failures.get(reason, self._tls_failures[OTHER]).inc()

    def phase(self, phase: str, seconds: float) -> None:
        """A phase of a login is over."""
        self._phases[phase].observe(seconds)

    def attempt(self, mechanism: str, outcome: Outcome) -> None:
        """A login that a client offered came to its end."""
        self._attempts.get(mechanism, self._attempts[OTHER])[outcome].value += 1

    def backend_failed(self, backend: str, step: str) -> None:
        """A backend login failed."""
        if backend in self._gone and backend not in self._backends:
            return
        self._backend(backend).failures[step if step in STEPS else "login"].inc()
        last_failure.failed(backend, step)

    def backend_login(self, backend: str, seconds: float) -> None:
        """A backend has let somebody in."""
        self._backend(backend).durations.observe(seconds)

    def logged_in(self, backend: str) -> None:
        """A session went from the state before login to the one behind it."""
        self._not_authenticated.value -= 1
        self._authenticated.value += 1
        series = self._backend(backend)
        series.sessions.value += 1
        series.live += 1

    def closed_before_login(self, outcome: Outcome) -> None:
        """A connection ended without a session."""
        self._not_authenticated.value -= 1
        self._end(outcome)

    def left_backend(self, backend: str) -> None:
        """A session has no backend any more; its client may linger."""
        series = self._backends[backend]
        series.sessions.value -= 1
        series.live -= 1
        if backend in self._gone:
            self.forget_backend(backend)

    def closed_after_login(self, outcome: Outcome) -> None:
        """An established session ended, after left_backend()."""
        self._authenticated.value -= 1
        self._end(outcome)

    def know_backend(self, name: str) -> None:
        """Discovery names a backend, perhaps again."""
        self._gone.discard(name)
        self._backend(name)

    def forget_backend(self, name: str) -> None:
        """Discovery has taken a backend back; its series go with its last session."""
        self._gone.add(name)
        series = self._backends.get(name)
        if series is None or series.live:
            return
        del self._backends[name]
        self._numbers.remove(series.sessions)
        _BACKEND_SESSIONS.remove(name)
        hide_backend(name)

    def loop_delay(self, seconds: float) -> None:
        """This worker's event loop woke up this late."""
        if self._loop_delay is None:
            self._loop_delay = HistogramTally(_LOOP_DELAY.labels(METRICS.process), LOOP_DELAY_BUCKETS)
        self._loop_delay.observe(seconds)

    def flush(self) -> None:
        """Add what the tallies hold."""
        for number in self._numbers:
            number.flush()
        for tally in self._phases.values():
            tally.flush()
        for backend in self._backends.values():
            backend.durations.flush()
        if self._loop_delay is not None:
            self._loop_delay.flush()
            connections = self._not_authenticated.value + self._authenticated.value
            _WORKER_SESSIONS.labels(METRICS.process).set(connections)

    def _backend(self, name: str) -> _BackendMetrics:
        """One backend's series; those that DNS names are met as they come."""
        series = self._backends.get(name)
        if series is None:
            sessions = self._number(_BACKEND_SESSIONS.labels(name))
            series = self._backends[name] = _BackendMetrics(name, sessions)
            show_backend(name)
        return series

    def _number(self, metric: Counter | Gauge) -> NumberTally:
        tally = NumberTally(metric)
        self._numbers.append(tally)
        return tally

    def _end(self, outcome: Outcome) -> None:
        # Every outcome of a session is touched beforehand; a login's outcome may end one too (UNAVAILABLE, LIMIT).
        series = self._ended.get(outcome)
        if series is None:
            series = self._ended[outcome] = self._number(_ENDED.labels(outcome))
        series.value += 1
