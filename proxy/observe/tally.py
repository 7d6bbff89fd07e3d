"""Counting what happens with every command: plain Python numbers, added to the metrics when those are read.

A series takes a lock and several calls per observation. Here an observation is one bisect and two additions. It is
safe only in one thread, the event loop's, which also calls flush(): by exposition() in the process that serves
/metrics, by changes() once a second in the others. So up to a second of counting is lost with a worker that is killed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from proxy.observe import metrics
from proxy.observe.metrics import METRICS, Counter, Gauge, Histogram, add_observations

# As in imap/commands.py, which stands a floor above and is pure: neither may import the other.
OTHER = "OTHER"
IDLE = "IDLE"
# As in imap/observer.py, for the same reason.
BLIND_REASONS = ("compress", "backend_literal", "other")

COMMAND_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0)
# Clients leave IDLE after less than 29 minutes (RFC 9051 §6.3.13).
IDLE_BUCKETS = (1.0, 10.0, 60.0, 300.0, 600.0, 900.0, 1200.0, 1500.0, 1740.0, 1800.0)

_COMMAND = metrics.histogram(
    "porter_command_duration_seconds",
    "From a command's line to its tagged response, without IDLE; its count is the number of commands.",
    COMMAND_BUCKETS,
    command=None,
)
_IDLE = metrics.histogram(
    "porter_idle_duration_seconds",
    "How long clients stayed in IDLE.",
    IDLE_BUCKETS,
)
_IDLE_SESSIONS = metrics.gauge("porter_idle_sessions", "Sessions in IDLE.")
_RELAYED = metrics.counter(
    "porter_relayed_bytes_total",
    "Octets carried after login, without TLS.",
    direction=("from_client", "from_backend"),
)
_BLIND = metrics.counter(
    "porter_observer_blind_total",
    "Sessions whose commands can no longer be told apart; their octets flow on.",
    reason=BLIND_REASONS,
)


class HistogramTally:
    """One histogram without labels, or one child of a histogram, moved in one thread."""

    __slots__ = ("_bounds", "_counts", "_histogram", "_total")

    def __init__(self, histogram: Histogram, bounds: Sequence[float]) -> None:
        self._histogram = histogram
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, seconds)] += 1  # a bucket includes its bound
        self._total += seconds

    def flush(self) -> None:
        """Add what has gathered to the histogram."""
        if any(self._counts):
            add_observations(self._histogram, self._counts, self._total)
            self._counts = [0] * len(self._counts)
            self._total = 0.0


class NumberTally:
    """A counter or a gauge without labels, or one child of either, moved in one thread by adding to `value`."""

    __slots__ = ("_flushed", "_metric", "value")

    def __init__(self, metric: Counter | Gauge) -> None:
        self._metric = metric
        self.value = self._flushed = 0

    def flush(self) -> None:
        """Add what has gathered to the metric."""
        if self.value != self._flushed:
            self._metric.inc(self.value - self._flushed)
            self._flushed = self.value


class Tally:
    """What the observer and the relay count for all sessions of this process.

    `bytes_from_client` and `bytes_from_backend` are there to be added to.
    """

    __slots__ = (
        "_blind",
        "_commands",
        "_flushed_from_backend",
        "_flushed_from_client",
        "_flushed_idle",
        "_idle",
        "_other",
        "bytes_from_backend",
        "bytes_from_client",
    )

    def __init__(self, commands: Iterable[str], blind_reasons: Iterable[str] = ()) -> None:
        """Touch every series.

        Args:
            commands: The names that finished() will be called with; any other counts as OTHER.
            blind_reasons: The reasons that blind() will be called with; any other counts as `other`.
        """
        names = {*commands, OTHER} - {IDLE}
        self._commands = {name: HistogramTally(_COMMAND.labels(name), COMMAND_BUCKETS) for name in sorted(names)}
        self._other = self._commands[OTHER]
        self._commands[IDLE] = HistogramTally(_IDLE, IDLE_BUCKETS)
        self._blind = {reason: _BLIND.labels(reason) for reason in sorted({*blind_reasons, "other"})}
        self._idle = self._flushed_idle = 0
        self.bytes_from_client = self._flushed_from_client = 0
        self.bytes_from_backend = self._flushed_from_backend = 0
        METRICS.on_flush(self.flush)

    def finished(self, command: str, seconds: float) -> None:
        """A command has its tagged response, so many seconds after its line."""
        self._commands.get(command, self._other).observe(seconds)

    def idle(self, change: int) -> None:
        """A session went into IDLE (1) or left it (-1)."""
        self._idle += change

    def blind(self, reason: str) -> None:
        """A session's observer gave up."""
        self._blind.get(reason, self._blind["other"]).inc()

    def flush(self) -> None:
        """Add what has gathered since the last time to the metrics."""
        for tally in self._commands.values():
            tally.flush()
        _IDLE_SESSIONS.inc(self._idle - self._flushed_idle)
        self._flushed_idle = self._idle
        _RELAYED.labels("from_client").inc(self.bytes_from_client - self._flushed_from_client)
        self._flushed_from_client = self.bytes_from_client
        _RELAYED.labels("from_backend").inc(self.bytes_from_backend - self._flushed_from_backend)
        self._flushed_from_backend = self.bytes_from_backend
