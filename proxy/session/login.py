"""One try to log in: who is it, where does he live, is he let in there."""

from __future__ import annotations

import math
import time

import trio

from proxy.auth.throttle import UNCOUNTED, Attempt
from proxy.backends.login import BackendSession
from proxy.ledger.session import Session
from proxy.model import AccountWanted, Credentials, Identity, Origin
from proxy.outcome import Outcome, Refused
from proxy.session.house import House

# Answers that a client earned by what it offered: they count as tries of its connection.
FAILED_TRIES = frozenset(
    {Outcome.AUTHENTICATION_FAILED, Outcome.AUTHORIZATION_FAILED, Outcome.EXPIRED, Outcome.CANCELLED}
)
# Of these, those that may be guesses; a token that was good once is none.
_GUESSES = frozenset({Outcome.AUTHENTICATION_FAILED, Outcome.AUTHORIZATION_FAILED})


def begin_attempt(wanted: AccountWanted, origin: Origin, house: House) -> Attempt:
    """A SCRAM exchange, from the moment that the client names somebody: its proof will be a guess, or right.

    Raises:
        Refused: LIMIT.
    """
    name = house.authenticator.known_as(wanted.name)
    return house.throttle.begin(origin.client.host, name, b"", trio.current_time())


async def log_in(
    credentials: Credentials, session: Session, origin: Origin, house: House, attempt: Attempt | None
) -> BackendSession:
    """From credentials to a session at the right backend, within the limits on failures.

    Args:
        attempt: Of the exchange that led here, where one has begun.
    Raises:
        Refused: By a limit, an identity source or the backend. Nothing stays open, no place stays taken.
    """
    with attempt or _attempt(credentials, origin, house) as counted:
        try:
            identity = await _authenticate(credentials, origin, house)
            if identity.verified:
                counted.succeeded(trio.current_time())
            backend = await _log_in_at_backend(identity, credentials, session, house)
        except Refused as refusal:
            if refusal.outcome in _GUESSES:
                counted.failed(trio.current_time())  # of no effect where the secret was found right before
            raise
        counted.succeeded(trio.current_time())
    return backend


def _attempt(credentials: Credentials, origin: Origin, house: House) -> Attempt:
    if not credentials.secret:
        # A certificate was verified by TLS; an exchange that could not begin, and a question for the scopes that a
        # token needs (RFC 7628 §4.3), have shown nothing.
        return UNCOUNTED
    name = house.authenticator.known_as(credentials.authentication_identity)
    return house.throttle.begin(origin.client.host, name, credentials.secret, trio.current_time())


async def _authenticate(credentials: Credentials, origin: Origin, house: House) -> Identity:
    began = trio.current_time()
    identity = await house.authenticator.authenticate(credentials, origin)
    house.metrics.phase("auth", trio.current_time() - began)
    return identity


async def _log_in_at_backend(
    identity: Identity, credentials: Credentials, session: Session, house: House
) -> BackendSession:
    clock, metrics = trio.current_time, house.metrics
    authenticated = clock()
    choice = house.router.route(identity)
    routed = clock()
    metrics.phase("route", routed - authenticated)
    _remember(session, identity, choice.backend)
    logged_in: BackendSession | None = None
    try:
        if identity.verified:
            await house.ledger.admit(session)
        logged_in = await house.backends[choice.backend].open(identity, credentials)
        if not identity.verified:  # else a stranger without a password could take all the places of a user
            await house.ledger.admit(session)
    except BaseException as exc:
        if logged_in is not None:
            logged_in.stream.close()
        house.ledger.release(session)
        if isinstance(exc, Refused) and exc.step:
            metrics.backend_failed(choice.backend, exc.outcome, exc.step)
            if exc.outcome in _GUESSES and house.settings.backends.login.needs_no_secret:
                # It was our password that the backend refused: an outage, and not the user's to mend.
                raise Refused(
                    Outcome.UNAVAILABLE, f"the proxy's own credentials: {exc.detail}", step=exc.step
                ) from None
        raise
    metrics.phase("connect", logged_in.connected_at - routed)
    metrics.phase("backend_login", clock() - logged_in.connected_at)
    metrics.backend_answered(choice.backend)
    session.ends_at = _end(identity, house.settings.relay.expiry_grace)
    return logged_in


def _remember(session: Session, identity: Identity, backend: str) -> None:
    """What the log tells of it."""
    session.name, session.backend = identity.name, backend
    session.source, session.stale = identity.source, identity.stale


def _end(identity: Identity, grace_seconds: float | None) -> float:
    """When the session has to end because of what was shown for the identity, on the monotonic clock."""
    if identity.expires_at is None or grace_seconds is None:
        return math.inf
    return time.monotonic() + identity.expires_at - time.time() + grace_seconds
