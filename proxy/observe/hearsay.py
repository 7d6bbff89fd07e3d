"""What other processes have said of a metric's series, in the one process that shows them all.

What they say comes from a program that may be older or newer than this one: what makes no sense is passed over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from math import isfinite
from typing import Any

from proxy.observe.series import Change, Counter, Family, Gauge, Histogram, Key, Merge

Distribution = tuple[list[int], float]  # how many in each bucket, and their sum


class Hearsay(ABC):
    """What has been said of one metric."""

    def __init__(self, family: Family) -> None:
        self.family = family

    @abstractmethod
    def hear(self, source: str, key: Key, said: Any) -> None:
        """A process says what has moved; None: it has no such series any more."""

    def forget(self, source: str) -> None:  # noqa: B027, what is counted stays counted
        """A process is gone."""

    @abstractmethod
    def clear(self) -> None:
        """Nobody has said anything."""

    @abstractmethod
    def values(self) -> Iterator[tuple[Key, Any]]:
        """The series with what they are, here and elsewhere, together."""

    def totals(self) -> Iterator[Change]:
        """All that has ever been counted, as one change."""
        return iter(())


class HeardCounter(Hearsay):
    """Their counts are added up, and outlive them."""

    def __init__(self, family: Family) -> None:
        super().__init__(family)
        self._others: dict[Key, float] = {}

    def hear(self, source: str, key: Key, said: Any) -> None:
        if said is None:
            self._others.pop(key, None)
        elif _is_number(said) and said > 0:
            self._others[key] = self._others.get(key, 0) + said

    def clear(self) -> None:
        self._others.clear()

    def values(self) -> Iterator[tuple[Key, float]]:
        own: dict[Key, Counter] = self.family.series
        for key in _keys(own, self._others):
            yield key, (own[key].value if key in own else 0) + self._others.get(key, 0)

    def totals(self) -> Iterator[Change]:
        return ([self.family.name, [*key], value] for key, value in self.values() if value)


class HeardGauge(Hearsay):
    """Each one's value counts until it says another, or is gone."""

    def __init__(self, family: Family) -> None:
        super().__init__(family)
        self._others: dict[Key, dict[str, float]] = {}
        combine: dict[Merge, Callable[[list[float]], float]] = {"sum": sum, "max": max, "min": min}
        self._together = combine[family.merge]

    def hear(self, source: str, key: Key, said: Any) -> None:
        if said is None:
            self._drop(source, key)
        elif _is_number(said):
            self._others.setdefault(key, {})[source] = said

    def forget(self, source: str) -> None:
        for key in [key for key, said in self._others.items() if source in said]:
            self._drop(source, key)

    def clear(self) -> None:
        self._others.clear()

    def values(self) -> Iterator[tuple[Key, float]]:
        own: dict[Key, Gauge] = self.family.series
        for key in _keys(own, self._others):
            said = [*self._others.get(key, {}).values()]
            # One that has never said what it is has no say in what all make together: a 0 might be the least.
            if key in own and own[key].known:
                said.append(own[key].value)
            yield key, self._together(said) if said else 0

    def _drop(self, source: str, key: Key) -> None:
        said = self._others.get(key, {})
        said.pop(source, None)
        if not said:
            self._others.pop(key, None)


class HeardHistogram(Hearsay):
    """As counters; what has been counted by other bounds goes to the next that there is."""

    def __init__(self, family: Family) -> None:
        super().__init__(family)
        self._others: dict[Key, Distribution] = {}

    def hear(self, source: str, key: Key, said: Any) -> None:
        if said is None:
            self._others.pop(key, None)
            return
        match said:
            case [list() as moved, total, *_] if _is_number(total):
                bounds = self.family.bounds
                counts, before = self._others.get(key, ([0] * (len(bounds) + 1), 0.0))
                for each in moved:
                    match each:
                        case [None, int() as more, *_]:
                            counts[-1] += max(more, 0)
                        case [float() | int() as bound, int() as more, *_]:
                            counts[bisect_left(bounds, bound)] += max(more, 0)
                self._others[key] = counts, before + total

    def clear(self) -> None:
        self._others.clear()

    def values(self) -> Iterator[tuple[Key, Distribution]]:
        own: dict[Key, Histogram] = self.family.series
        for key in _keys(own, self._others):
            counts, total = self._others.get(key, (None, 0.0))
            if key in own:
                mine = own[key].counts
                counts = [*mine] if counts is None else [a + b for a, b in zip(mine, counts, strict=True)]
                total += own[key].total
            assert counts is not None
            yield key, (counts, total)

    def totals(self) -> Iterator[Change]:
        for key, (counts, total) in self.values():
            moved = [[bound, count] for bound, count in zip((*self.family.bounds, None), counts, strict=True) if count]
            if moved:
                yield [self.family.name, [*key], [moved, total]]


def _keys(own: Collection[Key], others: Collection[Key]) -> list[Key]:
    """Ours in the order in which they came, then those that only others know."""
    return [*dict.fromkeys((*own, *others))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)
