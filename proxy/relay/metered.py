"""A relayed session of which commands or octets are limited by time.

The observer asks the meter about each command before it begins: what is refused is answered by the relay, in its turn;
what is delayed stays in `_held`, and the client is not read until it may go on. Meanwhile the backend is: answers that
are owed still come. Octets are paid for once they are carried; where they make a debt neither side is read until it
is paid. So nothing is lost or changes its order: a pause is back-pressure, as that of a peer who does not read.

It makes a class of its own so that sessions without limits cost nothing more.
"""

from __future__ import annotations

from proxy.imap.observer import Observer
from proxy.ledger.session import Session
from proxy.limits.meters import Meter
from proxy.outcome import Outcome
from proxy.relay.engine import LEFT, OUT, Engine
from proxy.relay.relay import Relay
from proxy.relay.splice import BOTH, CLIENT, HALF_CLOSED_SECONDS, NOBODY, Carriage
from proxy.transport.stream import Stream

# Who is refused one command after the other must not keep us busy: after so many it pauses.
_REFUSALS_AT_ONCE = 50
_REFUSALS_PAUSE_SECONDS = 0.1


class MeteredRelay(Relay):
    """A relay that may have to pause."""

    __slots__ = ("_charged", "_left_at", "_limited", "_meter", "_resumes_at")

    def __init__(
        self,
        engine: Engine,
        session: Session,
        client: Stream,
        backend: Stream,
        observer: Observer,
        carriage: Carriage,
        meter: Meter,
    ) -> None:
        """Args:
        observer: Asks the meter's permits(), if that counts commands.
        meter: Belongs to the session from here on, and is closed with it.
        """
        super().__init__(engine, session, client, backend, observer, carriage)
        self._meter = meter
        self._charged = 0  # octets that the meter knows of
        self._limited = 0  # commands that a limit refused
        self._resumes_at = 0.0
        self._left_at: float | None = None  # when the client closed, at least its half, while it was not read

    def start(self, early_client: bytes, early_backend: bytes) -> None:
        super().start(early_client, early_backend)
        if self._client is not None:
            self._charge()  # be it nothing: the user may be in debt already

    def on_client(self, events: int) -> None:
        if self._paused and events & LEFT and self._left_at is None:
            self._left_at = self._engine.now
        super().on_client(events)
        if self._client is not None:
            self._charge()

    def on_backend(self, events: int) -> None:
        super().on_backend(events & OUT if self._paused == BOTH else events)
        if self._client is not None:
            self._charge()

    # --- octets ---

    def _charge(self) -> None:
        carried = self.bytes_from_client + self.bytes_from_backend
        count, self._charged = carried - self._charged, carried
        if not self._meter.carried(count) and self._client is not None:
            self._wait_or_end(BOTH)

    # --- commands ---

    def _hold(self, data: bytes, cleared: int) -> None:
        refusal = self._observer.refusal
        super()._hold(data, cleared)
        if self._client is None:
            return
        if refusal is not None and refusal.limited and self._observer.refusal is None:
            self._limited += 1
            if not self._limited % _REFUSALS_AT_ONCE:
                self._pause(CLIENT, _REFUSALS_PAUSE_SECONDS)
        elif self._meter.delays or self._meter.exhausted:
            self._wait_or_end(CLIENT)

    # --- pauses ---

    def _wait_or_end(self, whom: int) -> None:
        if self._meter.exhausted:
            self.say_goodbye(Outcome.LIMIT)
        elif self._farewell is None:
            self._pause(whom, self._meter.debt() if whom == BOTH else self._meter.delay())

    def _pause(self, whom: int, seconds: float) -> None:
        """Do not read the client, or both sides, for a while."""
        if whom > self._paused:
            self._paused = whom
            self._resumes_at = self._engine.pause(self, seconds)
        self._blocked = True
        self._interest()

    def resume(self, due: float) -> None:
        """The pause is over, or it is time to ask whether it is."""
        if self._client is None or self._farewell is not None or due != self._resumes_at:
            return
        self._paused = NOBODY
        if (debt := self._meter.debt()) > 0:
            self._pause(BOTH, debt)
        elif (delay := self._meter.delay()) > 0:
            self._pause(CLIENT, delay)
        else:
            self._left_at = None
            self._last_active = self._engine.now
            self._pump()

    def sweep(self, now: float) -> None:
        """End a session that was silent too long; not one that has to be silent, unless its client is gone."""
        if self._left_at is not None and now - self._left_at > HALF_CLOSED_SECONDS:
            self.end(Outcome.CLIENT_CLOSED)
            return
        if self._paused and not self._client_ended:
            self._last_active = now
        super().sweep(now)

    def end(self, outcome: Outcome) -> None:
        first = self._client is not None
        super().end(outcome)
        if first:
            self._meter.carried(self.bytes_from_client + self.bytes_from_backend - self._charged)
            self._meter.close()
