"""The end: workers drain, the steward goes last."""

from __future__ import annotations

import math
from collections.abc import Callable

from proxy.app.household import Household
from proxy.app.succession import Patience
from proxy.settings.models import Timeouts


class Farewell:
    """How the household leaves, once it has begun."""

    def __init__(
        self, household: Household, timeouts: Timeouts, patience: Patience, clock: Callable[[], float]
    ) -> None:
        """Tell everybody: workers go on for `drain_grace`, and then end their sessions within `drain`."""
        self._household = household
        self._patience = patience
        self._clock = clock
        self._stewards_told = False
        self.seconds = timeouts.drain_grace + timeouts.drain + patience.drained
        self.deadline = clock() + self.seconds
        for child in household.children.values():
            child.leaving = True
            if child.role == "steward":
                child.post(["draining"])
            else:
                child.post(["drain", timeouts.drain_grace, timeouts.drain])

    @property
    def over(self) -> bool:
        """Whether all are gone."""
        return not self._household.children

    def hurry(self) -> None:
        """Now: without regard to sessions, and with force against those who do not hear."""
        for child in self._household.children.values():
            child.post(["stop"])
            child.kill_at = min(child.kill_at or math.inf, self._clock() + self._patience.leave)
        self._stewards_told = True
        self.deadline = math.inf

    def tick(self, now: float) -> None:
        """The steward has nothing left to do without workers; and there is an end to patience."""
        if now >= self.deadline:
            self.hurry()
        if not self._stewards_told and not any(self._household.workers()):
            self._stewards_told = True
            for child in self._household.stewards():
                child.post(["stop"])
                child.kill_at = now + self._patience.leave
