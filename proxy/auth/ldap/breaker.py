"""Whether a server is asked at all: a circuit breaker, and a pause for the proxy's own bind. Neither has a clock.

While a server is up everybody may ask it. One failure takes it down, and then nobody may, but for one trial at a time:
the first that comes after the pause. Its success brings the server up again; its failure begins another pause. Nothing
runs in the background.

A failure counts only if nothing has succeeded since that attempt began: a single connection that a firewall forgot, or
an attempt from before a restart, says nothing about a server that has answered others meanwhile.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

# Clients that are told "unavailable" come again within seconds; a server that is back should be found by the first.
PAUSE_SECONDS = 0.5
# Directories count wrong passwords and lock accounts for them: the proxy's own would stay locked long after its
# password was put right.
BIND_PAUSE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Admission:
    """Somebody may ask. Its holder reports how it went."""

    began: float
    trial: bool


class Breaker:
    """One server's. Its methods may be called from any thread; `now` is of one monotonic clock."""

    def __init__(self, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._pause_seconds = pause_seconds
        self._lock = threading.Lock()
        self._succeeded_at = -math.inf
        self._next_trial_at = 0.0
        self._trial: Admission | None = None
        self.up = True
        self.reason = ""  # why it is down

    def admit(self, now: float, trial_seconds: float) -> Admission | None:
        """May this server be asked? None: no.

        Args:
            now: The time.
            trial_seconds: If nothing is heard of a trial for so long, the next one may begin.
        """
        with self._lock:
            if self.up:
                return Admission(now, trial=False)
            if now < self._next_trial_at:
                return None
            self._next_trial_at = now + trial_seconds
            self._trial = Admission(now, trial=True)
            return self._trial

    def overtaken(self, admission: Admission) -> bool:
        """Whether the server went down while the holder of an admission still waited for its turn."""
        return not self.up and not admission.trial

    def withdraw(self, admission: Admission, now: float) -> None:
        """The holder has gone without having asked: a trial is left to the next one."""
        with self._lock:
            if admission is self._trial:
                self._trial = None
                self._next_trial_at = now

    def succeeded(self, now: float) -> bool:
        """The server has answered, whatever it said. True: it was down until now."""
        with self._lock:
            self._succeeded_at = now
            was_down, self.up = not self.up, True
            self._trial = None
            return was_down

    def failed(self, admission: Admission, now: float, reason: str) -> bool:
        """The server has not answered. True: it was up until now."""
        with self._lock:
            if admission.began < self._succeeded_at:
                return False
            was_up, self.up = self.up, False
            # A straggler from before does not end the trial that runs now.
            if was_up or admission is self._trial:
                self._trial = None
                self._next_trial_at = now + self._pause_seconds
                self.reason = reason
            return was_up


class BindPause:
    """How long the proxy does not bind at a server that has called its password wrong. Used as a Breaker is."""

    def __init__(self, seconds: float = BIND_PAUSE_SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._refused = False
        self._until = 0.0

    def wait(self, now: float) -> float:
        """Seconds not to bind for. 0: whoever asks binds now, and while a no is the last word he alone."""
        with self._lock:
            if not self._refused:
                return 0.0
            if now < self._until:
                return self._until - now
            self._until = now + self._seconds
            return 0.0

    def refused(self, now: float) -> None:
        """The password was wrong."""
        with self._lock:
            self._refused = True
            self._until = now + self._seconds

    def accepted(self) -> None:
        """It was right."""
        with self._lock:
            self._refused = False
