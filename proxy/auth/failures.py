"""Who failed to log in with what, over a sliding time, in tables that are bounded."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Iterator
from itertools import islice

from proxy.outcome import Outcome, Refused
from proxy.settings.limit_models import FailuresPerAddress, FailuresPerUser
from proxy.settings.units import duration_text

# How many are looked at for one who may be forgotten without opening a limit.
_EVICTION_CHOICES = 8


class Failures:
    """Who failed with what, and when last.

    Both levels are in the order of the last failure, so that what is over stands in front; of those who failed
    elsewhere, about. Nobody has more than `count`: of more, the latest tell when the limit opens again.
    """

    __slots__ = ("_by_whom", "_limit", "_most", "_per", "_total", "count")

    def __init__(self, limit: str, settings: FailuresPerAddress | FailuresPerUser, count: int, most: int) -> None:
        self._limit = limit
        self.count = count
        self._per = settings.per
        self._most = max(most, count)  # one alone can always reach his limit
        self._by_whom: OrderedDict[bytes, dict[bytes, float]] = OrderedDict()
        self._total = 0

    def of(self, whom: bytes, now: float) -> Collection[bytes]:
        """With what he has failed and that still counts."""
        failures = self._by_whom.get(whom)
        if failures is None:
            return ()
        over = []
        for tried, last in failures.items():
            if last > now - self._per:
                break
            over.append(tried)
        for tried in over:
            del failures[tried]
        self._total -= len(over)
        if not failures:
            del self._by_whom[whom]
        return failures

    def add(self, whom: bytes, tried: bytes, now: float) -> None:
        """He failed with this."""
        failures = self._by_whom.setdefault(whom, {})
        self._by_whom.move_to_end(whom)
        self._total += failures.pop(tried, None) is None
        failures[tried] = now
        if len(failures) > self.count:
            del failures[next(iter(failures))]
            self._total -= 1
        self._forget(now)

    def learn(self, whom: bytes, tried: bytes, last: float, now: float) -> None:
        """He failed with this a while ago."""
        failures = self._by_whom.get(whom, {})
        if last <= now - self._per or last <= failures.get(tried, -math.inf):
            return
        if not failures or last >= next(reversed(failures.values())):
            self.add(whom, tried, last)
            return
        # Among his own failures the order is kept, for what is over has to be in front.
        self._total += tried not in failures
        failures[tried] = last
        latest = sorted(failures.items(), key=lambda failure: failure[1])[-self.count :]
        self._total += len(latest) - len(failures)
        self._by_whom[whom] = dict(latest)
        self._forget(now)

    def all(self, now: float) -> Iterator[tuple[bytes, bytes, float]]:
        """Who failed with what, and when last, as far as it counts still."""
        for whom, failures in self._by_whom.items():
            for tried, last in failures.items():
                if last > now - self._per:
                    yield whom, tried, last

    def reached(self, failed: int, under_way: int = 0) -> Refused:
        """The refusal of a try at the limit."""
        more = f" and {under_way} under way" if under_way else ""
        detail = f"{self._limit}: {failed}{more} of {self.count} in {duration_text(self._per)}"
        return Refused(Outcome.LIMIT, detail, limit=self._limit)

    def _forget(self, now: float) -> None:
        """Drop what is over, and what is too much. There is always one who stays: the last added."""
        for _ in range(2):  # two for each that comes: so what is over goes, little by little
            whom, failures = next(iter(self._by_whom.items()))
            if next(reversed(failures.values())) > now - self._per:
                break
            self._drop(whom)
        while self._total > self._most:
            self._drop(self._expendable())

    def _expendable(self) -> bytes:
        """The one whose last failure is longest ago, of those who are at no limit if there is one among the first."""
        first = next(iter(self._by_whom))
        older = islice(self._by_whom.items(), min(_EVICTION_CHOICES, len(self._by_whom) - 1))
        return next((whom for whom, failures in older if len(failures) < self.count), first)

    def _drop(self, whom: bytes) -> None:
        self._total -= len(self._by_whom.pop(whom))
