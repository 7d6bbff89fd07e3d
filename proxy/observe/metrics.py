"""Metrics: the only door to prometheus_client, which writes their text.

    _REFUSED = metrics.counter("porter_connections_refused_total", "Connections refused.", limit=LIMITS)

A metric is declared in the file that moves it. Each label comes with its values, from an enum or a tuple, and every
combination exists from the start, so zero is visible; None stands for values that only the settings know: whoever
knows them touches them with `.labels(...)`.

Two kinds of moving. What moves a few times per login calls the series (`series`), which is safe in any thread. What
moves with every command or chunk is kept in plain integers (`tally`) and added up by flush().

Several processes: each tells what has moved (changes()), and one process adds that up (merge()) and shows it
(exposition()). All of them have the same declarations, for all modules are imported before the first fork. Whoever
is forked says begin(): what was counted before is the parent's to tell. See docs/adr/0007-metrics-over-the-link.md.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from pathlib import Path
from typing import Any, Literal, TypeVar

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from proxy.observe.hearsay import HeardCounter, HeardGauge, HeardHistogram, Hearsay
from proxy.observe.series import Change, Counter, Family, Gauge, Histogram, Journal, Merge

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
# Of one answer of changes(): it has to fit into one packet of the link, with what stands around it.
_MOST_BYTES = 48_000
_encode = json.JSONEncoder(separators=(",", ":")).encode

LabelValues = Iterable[str] | None


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
        self.process = "master"  # the name of the process that we are in
        self._journal = Journal()
        self._heard: dict[str, Hearsay] = {}  # by metric
        self._flushes: list[Callable[[], None]] = []

    # --- declaring ---

    def counter(self, name: str, description: str, **labels: LabelValues) -> Counter:
        """Something that is counted; its name ends in `_total`."""
        declared = self._declare(name, "counter", description, labels)
        family = Family(name, "counter", description, tuple(declared), self._journal)
        self._heard[name] = HeardCounter(family)
        return _touched(Counter(family), declared)

    def gauge(
        self,
        name: str,
        description: str,
        *,
        merge: Merge = "sum",
        exported_as: Literal["gauge", "counter"] = "gauge",
        **labels: LabelValues,
    ) -> Gauge:
        """Something that goes up and down.

        Args:
            merge: What the values of several processes make together: their sum, the largest, the smallest.
            exported_as: counter: it only grows, and somebody else counts it.
        """
        declared = self._declare(name, exported_as, description, labels)
        family = Family(name, exported_as, description, tuple(declared), self._journal, merge=merge)
        self._heard[name] = HeardGauge(family)
        return _touched(Gauge(family), declared)

    def histogram(self, name: str, description: str, buckets: Sequence[float], **labels: LabelValues) -> Histogram:
        """Durations or sizes, counted by upper bound; the name ends in its base unit."""
        if not name.endswith(("_seconds", "_bytes")):
            raise ValueError(f"{name}: a histogram's name ends in its base unit, _seconds or _bytes")
        declared = self._declare(name, "histogram", description, labels, tuple(buckets))
        family = Family(name, "histogram", description, tuple(declared), self._journal, bounds=buckets)
        self._heard[name] = HeardHistogram(family)
        return _touched(Histogram(family), declared)

    def on_flush(self, flush: Callable[[], None]) -> None:
        """Call this whenever tallies are due: it adds to metrics what has gathered since its last call."""
        self._flushes.append(flush)

    # --- this process ---

    def begin(self, process: str) -> None:
        """We have been forked: what was counted until now is not ours.

        Args:
            process: How we are called where processes are told apart.
        """
        self.process = process
        self._journal.moved.clear()
        for heard in self._heard.values():
            heard.clear()
            for series in [*heard.family.series.values()]:
                series.reset()
                series.tell()

    def flush(self) -> None:
        """Add up all tallies; in the thread that moves them."""
        for flush in self._flushes:
            flush()

    def changes(self) -> list[Change]:
        """What has moved since the last call, for merge() in another process; [] if nothing has.

        It is as much as fits into a packet; the rest comes with the next call.
        """
        self.flush()
        journal = self._journal
        with journal.lock:
            moved, journal.moved = journal.moved, []
        told: list[Change] = []
        size = 0
        for series in moved:
            if size > _MOST_BYTES:
                break
            told.append(series.tell())
            size += len(_encode(told[-1]))
        if len(told) < len(moved):
            with journal.lock:
                journal.moved[:0] = moved[len(told) :]
        return told

    def everything(self) -> list[Change]:
        """As changes(), for somebody who has heard nothing yet: all gauges, and what has been counted since."""
        for heard in self._heard.values():
            for series in [*heard.family.series.values()]:
                series.recall_told()
        return self.changes()

    # --- all processes ---

    def merge(self, source: str, changes: Iterable[Any]) -> None:
        """Another process has told what has moved there."""
        for change in changes:
            match change:
                case [str() as name, list() as labels, said, *_] if name in self._heard:
                    heard = self._heard[name]
                    if len(labels) == len(heard.family.label_names):
                        heard.hear(source, tuple(map(str, labels)), said)

    def forget(self, source: str) -> None:
        """A process is gone, and its gauges with it. What it has counted stays."""
        for heard in self._heard.values():
            heard.forget(source)

    def totals(self) -> list[Change]:
        """All that has been counted here and told by others, for the process that will show it after this one."""
        self.flush()
        return [change for heard in self._heard.values() for change in heard.totals()]

    def look(self, name: str) -> tuple[tuple[float, ...], list[tuple[tuple[str, ...], Any]]]:
        """A metric's buckets, if it has any, and its series with what they are, as far as all processes have told.

        A histogram's series are their counts, by bucket, and their sum. Tallies of this process are as of the last
        flush().
        """
        heard = self._heard[name]
        return tuple(heard.family.bounds), list(heard.values())

    def exposition(self) -> tuple[bytes, str]:
        """All metrics as text, and its content type; in the thread that moves the tallies."""
        self.flush()
        return generate_latest(_Collected(self._heard.values())), CONTENT_TYPE

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
        if kind == "counter" and not name.endswith("_total"):
            raise ValueError(f"{name}: a counter's name ends in _total")
        if not description.endswith("."):
            raise ValueError(f"{name}: a description is a sentence")
        if name in self._heard:
            raise ValueError(f"{name}: there is one already")
        declared = {
            label: None if values is None else tuple(str(value) for value in values) for label, values in labels.items()
        }
        self.declarations.append(Declaration(name, kind, description, declared, buckets))
        return declared


_Kind = TypeVar("_Kind", Counter, Gauge, Histogram)


def _touched(metric: _Kind, labels: dict[str, tuple[str, ...] | None]) -> _Kind:
    known = [values for values in labels.values() if values is not None]
    if labels and len(known) == len(labels):
        for combination in product(*known):
            metric.labels(*combination)
    return metric


class _Collected(Collector):
    """What prometheus_client wants to know."""

    def __init__(self, heard: Iterable[Hearsay]) -> None:
        self._heard = heard

    def collect(self) -> Iterator[Metric]:
        for heard in self._heard:
            family = heard.family
            metric = Metric(family.name.removesuffix("_total"), family.description, family.kind)
            bounds = [*map(floatToGoString, family.bounds), "+Inf"]
            for key, value in heard.values():
                labels = dict(zip(family.label_names, key, strict=True))
                if family.kind == "histogram":
                    counts, total = value
                    for bound, count in zip(bounds, accumulate(counts), strict=True):
                        metric.add_sample(f"{family.name}_bucket", {**labels, "le": bound}, count)
                    metric.add_sample(f"{family.name}_count", labels, sum(counts))
                    metric.add_sample(f"{family.name}_sum", labels, total)
                else:
                    metric.add_sample(family.name, labels, value)
            yield metric


class _Process:
    """What the kernel knows of this process, among others of its kind."""

    _EVERY_SECONDS = 5.0  # to count descriptors takes milliseconds where there are many, and the kernel is old

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._named = ""
        self._due = 0.0
        self._cpu = metrics.gauge(
            "porter_process_cpu_seconds_total",
            "Processor time that the process has taken, in user and kernel space.",
            exported_as="counter",
            process=None,
        )
        self._resident = metrics.gauge(
            "porter_process_resident_bytes", "Memory of the process in RAM, what it shares included.", process=None
        )
        self._descriptors = metrics.gauge(
            "porter_process_open_descriptors", "Descriptors that the process has open.", process=None
        )
        self._most_descriptors = metrics.gauge(
            "porter_process_max_descriptors", "Descriptors that the process may have open.", merge="min", process=None
        )
        self._start = metrics.gauge(
            "porter_process_start_timestamp_seconds", "When the process began its program, Unix time.", process=None
        )
        metrics.on_flush(self._look)

    def _look(self) -> None:
        name, now = self._metrics.process, time.monotonic()
        if name == self._named and now < self._due:
            return
        self._due = now + self._EVERY_SECONDS
        if name != self._named:
            self._rename(name)
        self._cpu.labels(name).set(time.process_time())
        self._resident.labels(name).set(_resident_bytes())
        self._descriptors.labels(name).set(_open_descriptors())
        self._most_descriptors.labels(name).set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    def _rename(self, name: str) -> None:
        if self._named:
            for gauge in (self._cpu, self._resident, self._descriptors, self._most_descriptors, self._start):
                gauge.remove(self._named)
        self._named = name
        self._start.labels(name).set(time.time())


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGESIZE")


def _open_descriptors() -> int:
    folder = "/proc/self/fd"
    # Linux tells their number since 6.2 as the folder's size, and 0 before.
    return os.stat(folder).st_size or len(os.listdir(folder))


def add_observations(histogram: Histogram, counts: Sequence[int], total: float) -> None:
    """Add many observations at once: how many fell into each bucket (the last: above all bounds), and their sum."""
    histogram.add(counts, total)


METRICS = Metrics()
_Process(METRICS)
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
