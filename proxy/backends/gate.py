"""How many logins a backend has to carry at a time; a few more wait for their turn, others are sent away."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field

import trio

from proxy.observe import metrics
from proxy.outcome import Outcome, Refused
from proxy.settings.limit_models import LoginsPerBackend

_FIRST_PART = 0.1  # of its room is there at once for a backend that comes back

_LOGINS = metrics.gauge("porter_backend_logins", "Logins under way at the backend.", backend=None)
_WAITING = metrics.gauge(
    "porter_backend_logins_waiting", "Logins that wait for their turn at the backend.", backend=None
)


@dataclass(slots=True, eq=False)
class _Turn:
    called: trio.Event = field(default_factory=trio.Event)
    refused: str = ""  # why it will not come


class Gate:
    """One backend's gate: first come, first served."""

    def __init__(self, backend: str, limits: LoginsPerBackend, patience: float) -> None:
        """Args:
        patience: How many seconds a login waits at most.
        """
        self._backend = backend
        self._limits = limits
        self._patience = patience
        self._inside = 0
        self._waiting: OrderedDict[_Turn, None] = OrderedDict()  # all of them not called yet
        self._closed = ""  # why
        self._recovered_at = -math.inf
        self._logins_gauge = _LOGINS.labels(backend)
        self._waiting_gauge = _WAITING.labels(backend)

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    def recovered(self, now: float) -> None:
        """The backend was down and is up: from now on its room grows back slowly, for it starts with cold caches."""
        self._recovered_at = now
        self.open()

    def close(self, reason: str) -> None:
        """Send away all who wait and whoever comes: the backend is down. Who is inside finds out for himself."""
        self._closed = f"{self._backend} is down: {reason}"
        while self._waiting:
            self._call().refused = self._closed

    def open(self) -> None:
        """Let logins in again."""
        self._closed = ""

    def forget(self) -> None:
        """There is no such backend any more: nothing of it is exported."""
        for gauge in (_LOGINS, _WAITING):
            gauge.remove(self._backend)

    async def enter(self) -> None:
        """Go in, or wait for that. Each that has gone in leaves again.

        Raises:
            Refused: UNAVAILABLE at step `queue`: the backend is down, too many wait already, or the wait was too long.
        """
        if self._closed:
            raise Refused(Outcome.UNAVAILABLE, self._closed, step="queue")
        if not self._waiting and self._inside < self._room():
            self._let_in()
        else:
            await self._wait()

    def leave(self) -> None:
        """The login is over."""
        self._inside -= 1
        self._logins_gauge.dec()
        # There is no timer for a room that grows: as long as anybody waits somebody is inside, and will leave.
        while self._waiting and self._inside < self._room():
            self._call()
            self._let_in()

    def _call(self) -> _Turn:
        """Wake up who has waited longest."""
        turn, _ = self._waiting.popitem(last=False)
        self._waiting_gauge.dec()
        turn.called.set()
        return turn

    async def _wait(self) -> None:
        if len(self._waiting) >= self._limits.waiting:
            detail = f"{self._inside} logins are under way at {self._backend} and {len(self._waiting)} wait"
            raise Refused(Outcome.UNAVAILABLE, detail, step="queue")
        turn = _Turn()
        self._waiting[turn] = None
        self._waiting_gauge.inc()
        try:
            with trio.move_on_after(self._patience):
                await turn.called.wait()
        except BaseException:
            # The turn came after the cancellation, and before the task woke up.
            if turn.called.is_set() and not turn.refused:
                self.leave()
            raise
        finally:
            if not turn.called.is_set():
                del self._waiting[turn]
                self._waiting_gauge.dec()
        if turn.refused:
            raise Refused(Outcome.UNAVAILABLE, turn.refused, step="queue")
        if not turn.called.is_set():
            detail = f"no turn at {self._backend} within {self._patience:g} s, {self._inside} logins are under way"
            raise Refused(Outcome.UNAVAILABLE, detail, step="queue")

    def _let_in(self) -> None:
        self._inside += 1
        self._logins_gauge.inc()

    def _room(self) -> int:
        at_once = self._limits.at_once
        if self._recovered_at == -math.inf:
            return at_once
        since = trio.current_time() - self._recovered_at
        if since >= self._limits.slow_start:
            self._recovered_at = -math.inf
            return at_once
        part = _FIRST_PART + (1 - _FIRST_PART) * since / self._limits.slow_start
        return max(1, int(at_once * part))
