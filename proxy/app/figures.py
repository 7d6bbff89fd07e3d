"""Figures for live charts: what the metrics say, without their text. Cheap enough to be asked every second."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from proxy.ledger.guests import Guests
from proxy.ledger.resident import Stage
from proxy.observe.metrics import METRICS
from proxy.routing.cluster import Seen

_SPAN_SECONDS = 5.0  # that a worker's delay is the mean of, at least
_LOOP_DELAY = "porter_event_loop_delay_seconds"

_Observed = tuple[float, int]  # a sum, and how many


class Figures:
    """What has been counted since the proxy began, by all processes."""

    def __init__(self) -> None:
        self._before: Mapping[str, _Observed] = {}  # the delays of workers, at the end of the span before
        self._since: Mapping[str, _Observed] = {}  # and at its beginning
        self._looked_at = -_SPAN_SECONDS

    def document(self, guests: Guests, backends: list[Seen]) -> dict[str, Any]:
        """All of them."""
        METRICS.flush()
        there = Counter(guest.backend for guest in guests if guest.stage is Stage.OPENED)
        logins = {labels[0]: sum(value[0]) for labels, value in _series("porter_backend_login_duration_seconds")}
        commands = {labels[0]: sum(value[0]) for labels, value in _series("porter_command_duration_seconds")}
        relayed = _by_last("porter_relayed_bytes_total")
        return {
            "time": time.time(),
            "sessions": len(guests),
            "idle": sum(value for _, value in _series("porter_idle_sessions")),
            "logins": _by_last("porter_login_attempts_total"),
            "login_seconds": _durations("porter_login_duration_seconds", "total"),
            "commands": {command: count for command, count in commands.items() if count},
            "command_seconds": _durations("porter_command_duration_seconds"),
            "octets": {"up": relayed.get("from_client", 0), "down": relayed.get("from_backend", 0)},
            "limits": reached_by_limit(),
            "backends": {
                seen.name: {"sessions": there[seen.name], "logins": logins.get(seen.name, 0), "up": seen.up}
                for seen in backends
            },
            "workers": self._workers(),
        }

    def _workers(self) -> list[dict[str, Any]]:
        delays = {labels[-1]: (value[1], sum(value[0])) for labels, value in _series(_LOOP_DELAY) if labels}
        now = time.monotonic()
        if now - self._looked_at >= _SPAN_SECONDS:
            self._before, self._since, self._looked_at = self._since, delays, now
        cpu = dict(_series("porter_process_cpu_seconds_total"))
        resident = dict(_series("porter_process_resident_bytes"))
        return [
            {
                "process": process,
                "loop_delay_seconds": _mean_since(self._before.get(process), observed),
                "cpu_seconds": cpu.get((process,), 0),
                "resident_bytes": resident.get((process,), 0),
            }
            for process, observed in sorted(delays.items())
            if (process,) in resident  # what is counted outlives a process, what it is does not
        ]


def reached_by_limit() -> dict[str, float]:
    """How often each limit was reached."""
    count: Counter[str] = Counter()
    for (limit, _action), value in _series("porter_limits_reached_total"):
        count[limit] += value
    return dict(count)


def reached_by_action(limit: str) -> dict[str, float]:
    """How often a limit was reached, by what was done."""
    return {labels[1]: value for labels, value in _series("porter_limits_reached_total") if labels[0] == limit}


def _series(name: str) -> list[tuple[tuple[str, ...], Any]]:
    return METRICS.look(name)[1]


def _by_last(name: str) -> dict[str, float]:
    """A counter by its last label, over all values of the others."""
    count: Counter[str] = Counter()
    for labels, value in _series(name):
        count[labels[-1]] += value
    return dict(count)


def _durations(name: str, label: str | None = None) -> dict[str, Any]:
    """A histogram over all series, or over those with a label's value."""
    bounds, series = METRICS.look(name)
    counts, total = [0] * (len(bounds) + 1), 0.0
    for labels, (some, their_sum) in series:
        if label is None or label in labels:
            counts = [one + other for one, other in zip(counts, some, strict=True)]
            total += their_sum
    buckets = [*zip([*bounds, None], accumulate(counts), strict=True)]
    return {"buckets": buckets, "sum": total, "count": sum(counts)}


def _mean_since(before: _Observed | None, now: _Observed) -> float | None:
    """What was observed meanwhile; None: nothing was."""
    total, count = before or (0.0, 0)
    return (now[0] - total) / (now[1] - count) if now[1] > count else None
