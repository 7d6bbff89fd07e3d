"""When the clients of a lost backend are told so: not all at once, or they would come back as one wave.

The first few hear of it at once, since a backend that ends a connection now and then is no loss. Further ones within
the same while are told at a moment of their own, spread over `backends.disconnect_spread`.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections.abc import Callable
from typing import Protocol

import trio

from proxy.observe import metrics

AT_ONCE = 8

_POSTPONED = metrics.counter(
    "porter_partings_postponed_total",
    "Clients of a lost backend that were told a little later, so that they do not come back all at once.",
)


class Lingering(Protocol):
    """A session whose backend is gone."""

    def part(self) -> None:
        """Tell the client and end; of no effect where it has ended meanwhile. A bug there is not raised here."""
        ...


class Partings:
    """Sessions that linger until it is their turn."""

    def __init__(
        self,
        spread_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._spread = spread_seconds
        self._clock, self._chance = clock, chance
        self._losses: dict[str, tuple[float, int]] = {}  # by backend: the end of the while, and how many within it
        self._due: list[tuple[float, int, Lingering]] = []
        self._count = itertools.count()
        self._more = trio.Event()

    def postpone(self, session: Lingering, backend: str) -> bool:
        """Whether this client is to be told later; then part() will be called."""
        if not self._spread:
            return False
        now = self._clock()
        end, losses = self._losses.get(backend, (0.0, 0))
        if now >= end:
            end, losses = now + self._spread, 0
        self._losses[backend] = end, losses + 1
        if losses < AT_ONCE:
            return False
        heapq.heappush(self._due, (now + self._spread * self._chance(), next(self._count), session))
        self._more.set()
        _POSTPONED.inc()
        return True

    async def run(self) -> None:
        """Let sessions part, each when it is due, until cancelled."""
        while True:
            if not self._due:
                self._losses.clear()
                self._more = trio.Event()
                await self._more.wait()
            wait = self._due[0][0] - self._clock()
            if wait > 0:
                self._more = trio.Event()
                with trio.move_on_after(wait):
                    await self._more.wait()
            else:
                await trio.lowlevel.checkpoint()
            while self._due and self._due[0][0] <= self._clock():
                heapq.heappop(self._due)[2].part()
