"""What happens, for whoever looks on just now: published once, read by many, waited for by nobody.

Every reader has a queue with an end. One that is full loses its oldest event and is told how many are gone before the
next: so a reader that is slow, or frozen, costs its queue and nothing else. What is published while nobody wants its
kind is not even made.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import cached_property
from typing import Any, Final, Self

import trio

from proxy.observe import metrics

MAX_READERS = 256
MAX_QUEUED = 1000  # by reader: some seconds of a busy host, and some 300 KiB

_encode = json.JSONEncoder(separators=(",", ":")).encode  # in ASCII: a name may hold what UTF-8 cannot spell


class Kind(StrEnum):
    """What an event is about."""

    SESSION = "session"
    BACKEND = "backend"
    LIMIT = "limit"
    AUDIT = "audit"
    TRACE = "trace"


LOST: Final = "lost"  # the kind of what readers are told of events that they have missed

_READERS = metrics.gauge("porter_event_readers", "Who reads events over the administrators' doors.")
_LOST = metrics.counter(
    "porter_events_lost_total", "Events that readers missed, since they read more slowly than things happen."
)


class TooManyReaders(Exception):
    """There are MAX_READERS already."""


class Event(dict[str, Any]):
    """An event: `time` (Unix time), `kind`, `event`, and its values. Readers share it: it is not to be changed."""

    @cached_property
    def text(self) -> str:
        """As JSON; made once for all readers."""
        return _encode(self)


class Reader:
    """One who reads; events are had by `async for`, without an end."""

    def __init__(self, kinds: frozenset[Kind], owner: str = "") -> None:
        self.kinds, self.owner = kinds, owner
        self._queue: deque[Event] = deque()
        self._lost = 0
        self._filled = trio.Event()

    def put(self, event: Event) -> None:
        """It has happened."""
        if len(self._queue) >= MAX_QUEUED:
            self._queue.popleft()
            self._lost += 1
            _LOST.inc()
        self._queue.append(event)
        self._filled.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            self._filled = trio.Event()
            await self._filled.wait()
        if self._lost:
            lost, self._lost = self._lost, 0
            return Event(time=time.time(), kind=LOST, events=lost)
        return self._queue.popleft()


class Hub:
    """Where events are published and read, in one thread."""

    def __init__(self) -> None:
        self.wanted: frozenset[Kind] = frozenset()  # what anybody reads
        self.on_wanted: Callable[[], None] = lambda: None  # `wanted` has changed
        self._readers: set[Reader] = set()
        self._by_kind: Counter[Kind] = Counter()

    def __len__(self) -> int:
        return len(self._readers)

    def publish(self, kind: Kind, event: str, /, **values: Any) -> None:
        """Tell whoever wants to know.

        Args:
            kind: What it is about.
            event: As the log calls it: `session.opened`.
            values: JSON; none of them is called `time`, `kind` or `event`.
        """
        if kind not in self.wanted:
            return
        happened = Event(time=round(time.time(), 3), kind=str(kind), event=event, **values)
        for reader in self._readers:
            if kind in reader.kinds:
                reader.put(happened)

    @contextmanager
    def subscribe(self, kinds: Iterable[Kind], owner: str = "") -> Iterator[Reader]:
        """Read events of these kinds from now on.

        Args:
            owner: Who reads; nobody has more than half of the places.
        Raises:
            TooManyReaders: So it says.
        """
        own = sum(reader.owner == owner for reader in self._readers)
        if len(self._readers) >= MAX_READERS or own >= MAX_READERS // 2:
            raise TooManyReaders(f"{len(self._readers)} read events already, {own} of them for {owner}")
        reader = Reader(frozenset(kinds), owner)
        self._readers.add(reader)
        self._count(reader.kinds, 1)
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            self._count(reader.kinds, -1)

    def _count(self, kinds: Iterable[Kind], change: int) -> None:
        for kind in kinds:
            self._by_kind[kind] += change
        _READERS.set(len(self._readers))
        wanted = frozenset(kind for kind in Kind if self._by_kind[kind])
        if wanted != self.wanted:
            self.wanted = wanted
            self.on_wanted()
