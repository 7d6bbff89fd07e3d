"""Metrics: the only door to prometheus_client.

    _REFUSED = metrics.counter("porter_connections_refused_total", "Connections refused.", limit=LIMITS)

A metric is declared in the file that moves it. Each label comes with its values, from an enum or a tuple, and every
combination exists from the start, so zero is visible; None stands for values that only the settings know: whoever
knows them touches them with `.labels(...)`.

Two kinds of moving. What moves a few times per login calls prometheus_client's objects, which are safe in any thread.
What moves with every command or chunk is kept in plain integers (`tally`) and added up by flush().

Several processes, later: prometheus_client then keeps its values in files shared with the process that serves
/metrics. Nothing changes for callers. Each worker calls flush() once a second instead of exposition() doing so,
exposition() reads all files, and a gauge's `merge` says what its processes' values make together.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

__all__ = [
    "METRICS",
    "Counter",
    "Gauge",
    "Histogram",
    "Metrics",
    "counter",
    "exposition",
    "flush",
    "gauge",
    "histogram",
]

# What Prometheus of any age reads; prometheus_client's own constant names a newer version of the same text.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "porter_"
_NAME = re.compile(PREFIX + r"[a-z]+(_[a-z]+)*\Z")

LabelValues = Iterable[str] | None
Merge = Literal["sum", "max", "min", "each"]

# A second series per counter and histogram with its time of birth: nobody asks for it, and it doubles the text.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the reference tells of a metric."""

    name: str
    kind: str
    description: str
    labels: dict[str, tuple[str, ...] | None]
    buckets: tuple[float, ...] = ()


class Metrics:
    """Metrics that are exported together. The program has one set (`METRICS`); tests make their own."""

    def __init__(self) -> None:
        self.declarations: list[Declaration] = []
        self._registry = CollectorRegistry()
        self._flushes: list[Callable[[], None]] = []

    def counter(self, name: str, description: str, **labels: LabelValues) -> Counter:
        """Something that is counted; its name ends in `_total`."""
        if not name.endswith("_total"):
            raise ValueError(f"{name}: a counter's name ends in _total")
        declared = self._declare(name, "counter", description, labels)
        metric = Counter(name, description, tuple(declared), registry=self._registry)
        _touch(metric, declared)
        return metric

    def gauge(self, name: str, description: str, *, merge: Merge = "sum", **labels: LabelValues) -> Gauge:
        """Something that goes up and down.

        Args:
            merge: What the values of several processes make together: their sum, the largest, the smallest, or
                one series for each.
        """
        declared = self._declare(name, "gauge", description, labels)
        mode: Literal["livesum", "livemax", "livemin", "liveall"]
        mode = {"sum": "livesum", "max": "livemax", "min": "livemin", "each": "liveall"}[merge]  # type: ignore[assignment]
        metric = Gauge(name, description, tuple(declared), registry=self._registry, multiprocess_mode=mode)
        _touch(metric, declared)
        return metric

    def histogram(self, name: str, description: str, buckets: Sequence[float], **labels: LabelValues) -> Histogram:
        """Durations or sizes, counted by upper bound; the name ends in its base unit."""
        if not name.endswith(("_seconds", "_bytes")):
            raise ValueError(f"{name}: a histogram's name ends in its base unit, _seconds or _bytes")
        declared = self._declare(name, "histogram", description, labels, tuple(buckets))
        metric = Histogram(name, description, tuple(declared), registry=self._registry, buckets=buckets)
        _touch(metric, declared)
        return metric

    def watch_process(self) -> None:
        """Export what the kernel knows of this process (`process_*`)."""
        collector = ProcessCollector(registry=self._registry)
        for family in collector.collect():
            name = family.name + "_total" if family.type == "counter" else family.name
            self.declarations.append(Declaration(name, family.type, family.documentation, {}))

    def on_flush(self, flush: Callable[[], None]) -> None:
        """Call this whenever tallies are due: it adds to metrics what has gathered since its last call."""
        self._flushes.append(flush)

    def flush(self) -> None:
        """Add up all tallies; in the thread that moves them."""
        for flush in self._flushes:
            flush()

    def exposition(self) -> tuple[bytes, str]:
        """All metrics as text, and its content type; in the thread that moves the tallies."""
        self.flush()
        return generate_latest(self._registry), CONTENT_TYPE

    def _declare(
        self,
        name: str,
        kind: str,
        description: str,
        labels: dict[str, LabelValues],
        buckets: tuple[float, ...] = (),
    ) -> dict[str, tuple[str, ...] | None]:
        if not _NAME.match(name):
            raise ValueError(f"{name}: a metric's name is {PREFIX} and words in lower case")
        if not description.endswith("."):
            raise ValueError(f"{name}: a description is a sentence")
        declared = {
            label: None if values is None else tuple(str(value) for value in values) for label, values in labels.items()
        }
        self.declarations.append(Declaration(name, kind, description, declared, buckets))
        return declared


def _touch(metric: Counter | Gauge | Histogram, labels: dict[str, tuple[str, ...] | None]) -> None:
    known = [values for values in labels.values() if values is not None]
    if labels and len(known) == len(labels):
        for combination in product(*known):
            metric.labels(*combination)


def add_observations(histogram: Histogram, counts: Sequence[int], total: float) -> None:
    """Add many observations at once: how many fell into each bucket (the last: above all bounds), and their sum.

    prometheus_client has no public way; these two attributes are what its own observe() moves, in one
    process and in several, and a test compares the results.
    """
    for bucket, count in zip(histogram._buckets, counts, strict=True):
        if count:
            bucket.inc(count)
    histogram._sum.inc(total)


METRICS = Metrics()
METRICS.watch_process()
counter = METRICS.counter
gauge = METRICS.gauge
histogram = METRICS.histogram
flush = METRICS.flush
exposition = METRICS.exposition

_BUILD = gauge(
    "porter_build_info",
    "Always 1; the labels say which imap-porter this is and what it runs on.",
    merge="max",
    version=None,
    python=None,
    openssl=None,
)


def set_build_info(version: str, openssl: str) -> None:
    """Say what runs. `openssl` is the library that pyOpenSSL uses, which Python's ssl module does not know."""
    _BUILD.labels(version, platform.python_version(), openssl).set(1)
