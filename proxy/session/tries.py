"""The tries of one connection to log in: each accounted for, answered not before its time, and not too many of them."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import trio

from proxy.auth.throttle import Attempt
from proxy.backends.login import BackendSession
from proxy.ledger.session import Session
from proxy.limits.reached import ACTIONS, reached
from proxy.model import Account, AccountWanted, Credentials, Origin
from proxy.observe.log import get_logger
from proxy.outcome import Outcome, Refused
from proxy.session.house import House
from proxy.session.login import FAILED_TRIES, begin_attempt, log_in

log = get_logger()

# A failed login is answered after the configured delay times the number of failures so far, at most this; a source may
# ask for more.
_LONGEST_DELAY_SECONDS = 15.0
# The first refusal for any other reason is told at once; who asks on and on is slowed down, a backend that starts again
# has enough to do, and sent away.
_OUTAGE_DELAY_SECONDS = 0.1
_MOST_REFUSALS = 20

_Gained = TypeVar("_Gained", BackendSession, Account)


class Tries:
    """What a connection has tried so far."""

    def __init__(self, session: Session, house: House) -> None:
        self._session, self._house = session, house
        self._refusals = 0
        self._exchange: Attempt | None = None  # of SCRAM, from the account on
        self.under_way = False  # a login is: nothing may end the connection just now

    @property
    def used_up(self) -> bool:
        """Whether the connection has had enough of them."""
        return self._session.failures >= self._house.settings.limits.login_tries or self._refusals >= _MOST_REFUSALS

    async def offer(self, credentials: Credentials) -> BackendSession | Outcome:
        """A whole try: the backend's session, or how it ended."""
        session, metrics = self._session, self._house.metrics
        self._begin(credentials.mechanism, credentials.authentication_identity, credentials.authorization_identity)
        exchange, self._exchange = self._exchange, None
        began = trio.current_time()
        backend = await self._attempt(self._in_turn(credentials, exchange))
        if isinstance(backend, BackendSession):
            session.login_seconds = trio.current_time() - began
            metrics.attempt(credentials.mechanism, Outcome.OK)
            metrics.phase("total", session.login_seconds)
        return backend

    async def _in_turn(self, credentials: Credentials, exchange: Attempt | None) -> BackendSession:
        """Raises Refused: As log_in(); UNAVAILABLE where so many logins are under way that its turn did not come."""
        house = self._house
        if not house.logins.try_enter():
            await self._wait_for_turn(exchange)
        try:
            return await log_in(credentials, self._session, self._origin(), house, exchange)
        finally:
            house.logins.leave()

    async def _wait_for_turn(self, exchange: Attempt | None) -> None:
        patience = self._house.settings.timeouts.backend_login
        came = False
        try:
            with trio.move_on_after(patience):
                await self._house.logins.enter()
                came = True
        finally:
            if not came and exchange is not None:
                exchange.void()
        if not came:
            raise Refused(Outcome.UNAVAILABLE, f"no turn within {patience:g} s: so many logins", limit="logins_at_once")

    async def look_up(self, wanted: AccountWanted) -> Account | Outcome:
        """The account that an exchange needs; or how the try ended already."""
        self._begin(wanted.mechanism, wanted.name, wanted.authorization_identity)
        account = await self._attempt(self._account(wanted))
        self.under_way = False
        return account

    async def broken_off(self) -> None:
        """The client has ended an exchange after it was told of an account: a try like others."""
        if self._exchange is not None:
            self._exchange.failed(trio.current_time())
            self._exchange = None
        refusal = Refused(Outcome.CANCELLED, "the exchange was broken off")
        self._house.metrics.attempt(self._session.mechanism, refusal.outcome)
        await self._settle(refusal, trio.current_time())

    def close(self) -> None:
        """The connection is over."""
        if self._exchange is not None:
            self._exchange.void()
            self._house.metrics.attempt(self._session.mechanism, Outcome.CANCELLED)
            self._exchange = None

    def _begin(self, mechanism: str, authentication_identity: str, authorization_identity: str) -> None:
        session = self._session
        session.mechanism = mechanism
        session.authentication_identity = authentication_identity
        session.authorization_identity = authorization_identity
        session.name = session.backend = session.source = session.epoch = ""
        session.stale = False

    def _origin(self) -> Origin:
        return Origin(self._session.client, self._session.secure, self._refusals + 1)

    async def _account(self, wanted: AccountWanted) -> Account:
        """Raises Refused: By a limit or an identity source."""
        attempt = begin_attempt(wanted, self._origin(), self._house)
        try:
            account = await self._house.authenticator.account(wanted.name)
        except BaseException:
            attempt.void()
            raise
        self._exchange = attempt
        return account

    async def _attempt(self, attempt: Awaitable[_Gained]) -> _Gained | Outcome:
        """What an attempt gains; or how it ended, accounted for and not told before its time."""
        began = trio.current_time()
        outcome = Outcome.SERVER_BUG
        self.under_way = True
        try:
            gained = await attempt
        except Refused as refused:
            refusal, outcome = refused, refused.outcome
        except trio.Cancelled:
            outcome = Outcome.CANCELLED
            raise
        else:
            outcome = Outcome.OK
            return gained
        finally:
            if outcome is not Outcome.OK:
                self._house.metrics.attempt(self._session.mechanism, outcome)
        await self._settle(refusal, began)
        self.under_way = False
        return outcome

    async def _settle(self, refusal: Refused, began: float) -> None:
        """Count and log a try that failed, and wait until its answer is due."""
        self._refusals += 1
        self._log(refusal)
        if self._house.tracing:
            self._trace(refusal)
        if refusal.limit in ACTIONS:  # another's than ours is counted by its outcome alone
            reached(refusal.limit, name=self._session.name, client=self._session.client.host)
        if refusal.outcome in FAILED_TRIES:
            self._session.failures += 1
            delay = self._house.settings.limits.failed_login_delay * self._session.failures
        else:
            delay = _OUTAGE_DELAY_SECONDS * (self._refusals - 1)
        # From the beginning of the try, so that the time it took tells nothing about the name.
        await trio.sleep_until(began + max(min(delay, _LONGEST_DELAY_SECONDS), refusal.wait_seconds))

    def _trace(self, refusal: Refused) -> None:
        session, house = self._session, self._house
        name = session.name or house.authenticator.known_as(session.authentication_identity)
        told = {"backend": session.backend, "step": refusal.step, "limit": refusal.limit}
        details = "".join(f", {key} {value}" for key, value in told.items() if value)
        house.tracing.note(name, session.id, f"{session.mechanism}: {refusal.outcome}{details}")

    def _log(self, refusal: Refused) -> None:
        session = self._session
        self._house.refusals.note(session, refusal, self._house.authenticator.known_as)
        log.info(
            "login.refused",
            session_id=session.id,
            client=str(session.client),
            via=session.via,
            mechanism=session.mechanism,
            authentication_identity=session.authentication_identity,
            authorization_identity=session.authorization_identity,
            outcome=refusal.outcome.value,
            backend=session.backend,
            epoch=session.epoch,
            step=refusal.step,
            limit=refusal.limit,
            detail=refusal.detail,
        )
