"""So many at once, first come first served: TLS handshakes under way, and logins.

What is bounded is work, and a client that makes none must keep nobody out: whoever has been inside for two seconds
loses his place, though he goes on. So thousands that open connections and fall silent take each place once, for two
seconds, and no longer.

Nobody overtakes those who wait. The first of them watches for the next place that is lost; it is the only timer.
"""

from __future__ import annotations

from collections import OrderedDict

import trio

from proxy.limits.reached import reached
from proxy.observe import metrics
from proxy.observe.metrics import METRICS
from proxy.observe.tally import NumberTally

PLACE_SECONDS = 2.0

LIMITS = ("handshakes_at_once", "logins_at_once")
_INSIDE = metrics.gauge(
    "porter_turnstile_inside", "Handshakes and logins under way, those without a place included.", limit=LIMITS
)
_WAITING = metrics.gauge("porter_turnstile_waiting", "Handshakes and logins that wait for a place.", limit=LIMITS)
_WAIT = metrics.histogram(
    "porter_turnstile_wait_seconds",
    "How long handshakes and logins waited for a place, of those that found none free.",
    (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
    limit=LIMITS,
)


class _Comer:
    """Somebody who waits."""

    __slots__ = ("granted", "woken")

    def __init__(self) -> None:
        self.granted = False
        self.woken = trio.Event()


class Turnstile:
    """Places for tasks. A task may be in one turnstile once."""

    def __init__(self, limit: str, at_once: int) -> None:
        """Nobody is there.

        Args:
            limit: Its name in the settings, one of LIMITS.
            at_once: How many places there are.
        """
        self._limit, self._at_once = limit, at_once
        self._places: OrderedDict[trio.lowlevel.Task, float] = OrderedDict()  # since when, the longest ago first
        self._queue: OrderedDict[trio.lowlevel.Task, _Comer] = OrderedDict()
        self._inside, self._waiting = NumberTally(_INSIDE.labels(limit)), NumberTally(_WAITING.labels(limit))
        self._wait = _WAIT.labels(limit)
        METRICS.on_flush(self._inside.flush)
        METRICS.on_flush(self._waiting.flush)

    @property
    def inside(self) -> int:
        """How many are inside, with a place or without."""
        return self._inside.value

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._queue)

    def try_enter(self) -> bool:
        """Go inside at once, if nobody waits and there is a place; then leave() is to be called by the same task."""
        if self._queue or not self._has_place(trio.current_time()):
            return False
        self._let_in(trio.lowlevel.current_task())
        return True

    async def enter(self) -> float:
        """Go inside as soon as it is one's turn; gives the seconds that took. Then leave() is to be called."""
        if self.try_enter():
            return 0.0
        reached(self._limit, "delay")
        began = trio.current_time()
        task, comer = trio.lowlevel.current_task(), _Comer()
        self._queue[task] = comer
        self._waiting.value += 1
        try:
            while not comer.granted:
                await self._watch(task, comer)
        except BaseException:
            if comer.granted:  # at the same moment
                self.leave()
            else:
                self._strike(task)
            raise
        waited = trio.current_time() - began
        self._wait.observe(waited)
        return waited

    def leave(self) -> None:
        """Go outside. Nothing is to be awaited for that."""
        self._inside.value -= 1
        if self._places.pop(trio.lowlevel.current_task(), None) is not None:
            self._serve()

    async def _watch(self, task: trio.lowlevel.Task, comer: _Comer) -> None:
        """Until something has changed for a comer; the first looks for places that are lost, too."""
        if next(iter(self._queue)) is not task:
            await comer.woken.wait()
        else:
            oldest = next(iter(self._places.values()))  # nobody would wait, were there none
            with trio.move_on_at(oldest + PLACE_SECONDS):
                await comer.woken.wait()
            self._serve()
        if comer.woken.is_set():
            comer.woken = trio.Event()

    def _serve(self) -> None:
        """Let in whose turn it is, and let the first of the others know that he is the first."""
        now, served = trio.current_time(), False
        while self._queue and self._has_place(now):
            task, comer = self._queue.popitem(last=False)
            self._waiting.value -= 1
            comer.granted = served = True
            self._let_in(task)
            comer.woken.set()
        if served and self._queue:
            next(iter(self._queue.values())).woken.set()

    def _strike(self, task: trio.lowlevel.Task) -> None:
        """Somebody will not wait any longer."""
        first = next(iter(self._queue)) is task
        del self._queue[task]
        self._waiting.value -= 1
        if first and self._queue:
            next(iter(self._queue.values())).woken.set()

    def _has_place(self, now: float) -> bool:
        places = self._places
        if len(places) < self._at_once:
            return True
        if next(iter(places.values())) + PLACE_SECONDS > now:
            return False
        places.popitem(last=False)
        return True

    def _let_in(self, task: trio.lowlevel.Task) -> None:
        self._places[task] = trio.current_time()
        self._inside.value += 1
