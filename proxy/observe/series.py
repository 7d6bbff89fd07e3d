"""Series: the numbers that this process moves, and which of them have moved since that was told.

    connections.labels("[::]:993").inc()

A series that moves for the first time since it was told puts itself on its journal's list. So telling another process
what has moved costs what has moved, however many series there are. All of it may be called in any thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from threading import Lock
from typing import Any, Literal, Self

Key = tuple[str, ...]  # the labels' values, in the order of their names
Change = list[Any]  # [name, [label value…], what has moved; None: the series is gone]
Merge = Literal["sum", "max", "min"]


class Journal:
    """The series that have moved."""

    __slots__ = ("lock", "moved")

    def __init__(self) -> None:
        self.lock = Lock()  # of all numbers too: it is held for some nanoseconds
        self.moved: list[Series] = []


class Family:
    """A metric with all its series."""

    __slots__ = ("bounds", "description", "journal", "kind", "label_names", "merge", "name", "series")

    def __init__(
        self,
        name: str,
        kind: str,
        description: str,
        label_names: Sequence[str],
        journal: Journal,
        *,
        bounds: Sequence[float] = (),
        merge: Merge = "sum",
    ) -> None:
        self.name = name
        self.kind = kind  # how it is exported: counter, gauge, histogram
        self.description = description
        self.label_names = tuple(label_names)
        self.journal = journal
        self.bounds = tuple(bounds)  # of a histogram's buckets; the last, without a bound, is not listed
        self.merge: Merge = merge  # of a gauge
        self.series: dict[Key, Any] = {}


class Series(ABC):
    """One series; or, where there are labels, the door to one for each combination of their values."""

    __slots__ = ("_family", "_gone", "_key", "_noted")

    def __init__(self, family: Family, key: Key | None = None) -> None:
        self._family = family
        self._key = () if key is None and not family.label_names else key
        self._noted = False
        self._gone = False
        if self._key is not None:
            family.series[self._key] = self

    def labels(self, *values: object) -> Self:
        """The series with these values, which exists from now on."""
        key = tuple(map(str, values))
        family = self._family
        known: Self | None = family.series.get(key)
        if known is not None:
            return known
        if len(key) != len(family.label_names) or self._key is not None:
            raise ValueError(f"{family.name} has the labels {family.label_names}")
        with family.journal.lock:
            made: Self = family.series.get(key) or type(self)(family, key)
        return made

    def remove(self, *values: object) -> None:
        """There is no such series any more, here and wherever it was told."""
        family = self._family
        with family.journal.lock:
            gone: Series | None = family.series.pop(tuple(map(str, values)), None)
            if gone is not None:
                gone._gone = True
                gone._note()

    def tell(self) -> Change:
        """What has moved since the last time."""
        family, key = self._family, self._key
        assert key is not None
        with family.journal.lock:
            self._noted = False
            return [family.name, [*key], None if self._gone else self._take()]

    def recall_told(self) -> None:  # noqa: B027 - where nothing is overridden there is nothing to do
        """Somebody new listens, who has been told nothing: values are told again. What is counted is not."""

    @abstractmethod
    def reset(self) -> None:
        """Begin anew: what there was belongs to another process."""

    @abstractmethod
    def _take(self) -> Any:
        """What is to be told of it; from here on it counts as told. Under the lock."""

    def _note(self) -> None:
        """It has moved; under the lock, before it does."""
        if self._key is None:
            raise ValueError(f"{self._family.name} has the labels {self._family.label_names}, and none was given")
        if not self._noted:
            self._noted = True
            self._family.journal.moved.append(self)


class Counter(Series):
    """Something that is counted."""

    __slots__ = ("_told", "value")

    value: float
    _told: float

    def __init__(self, family: Family, key: Key | None = None) -> None:
        super().__init__(family, key)
        self.reset()

    def inc(self, amount: float = 1) -> None:
        """So many more."""
        if amount <= 0:
            if amount < 0:
                raise ValueError("a counter never goes down")
            return
        with self._family.journal.lock:
            if not self._noted:
                self._note()
            self.value += amount

    def reset(self) -> None:
        self.value = self._told = 0

    def _take(self) -> float:
        more, self._told = self.value - self._told, self.value
        return more


class Gauge(Series):
    """Something that goes up and down."""

    __slots__ = ("known", "value")

    value: float
    known: bool  # whether this process has ever said what it is

    def __init__(self, family: Family, key: Key | None = None) -> None:
        super().__init__(family, key)
        self.reset()

    def inc(self, amount: float = 1) -> None:
        """So much more."""
        if amount:
            with self._family.journal.lock:
                self._put(self.value + amount)

    def dec(self, amount: float = 1) -> None:
        """So much less."""
        self.inc(-amount)

    def set(self, value: float) -> None:
        """So much."""
        if value != self.value or not self.known:
            with self._family.journal.lock:
                self._put(value)

    def _put(self, value: float) -> None:
        if not self._noted:
            self._note()
        self.value = value
        self.known = True

    def recall_told(self) -> None:
        if self.known:
            with self._family.journal.lock:
                self._note()

    def reset(self) -> None:
        self.value = 0
        self.known = False

    def _take(self) -> float:
        return self.value


class Histogram(Series):
    """Durations or sizes, counted by upper bound."""

    __slots__ = ("_told_counts", "_told_total", "counts", "total")

    counts: list[int]  # by bucket, each without those below it
    total: float
    _told_counts: list[int]
    _told_total: float

    def __init__(self, family: Family, key: Key | None = None) -> None:
        super().__init__(family, key)
        self.reset()

    def observe(self, amount: float) -> None:
        """One more, of this size."""
        with self._family.journal.lock:
            if not self._noted:
                self._note()
            self.counts[bisect_left(self._family.bounds, amount)] += 1  # a bucket includes its bound
            self.total += amount

    def add(self, counts: Sequence[int], total: float) -> None:
        """Many at once.

        Args:
            counts: How many fell into each bucket; the last is above all bounds.
            total: Their sum.
        """
        with self._family.journal.lock:
            self._note()
            self.counts = [before + more for before, more in zip(self.counts, counts, strict=True)]
            self.total += total

    def reset(self) -> None:
        self.counts = [0] * (len(self._family.bounds) + 1)
        self._told_counts = [*self.counts]
        self.total = self._told_total = 0

    def _take(self) -> list[Any]:
        """[[bound or None, how many more]…, how much more].

        By bound: who hears it may have other buckets, in an upgrade.
        """
        bounds = (*self._family.bounds, None)
        moved = [
            [bound, now - told]
            for bound, now, told in zip(bounds, self.counts, self._told_counts, strict=True)
            if now != told
        ]
        more = self.total - self._told_total
        self._told_counts, self._told_total = [*self.counts], self.total
        return [moved, more]
