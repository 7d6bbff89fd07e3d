"""One try to log in: who is it, where does he live, is he let in there."""

from __future__ import annotations

import math
import time
from functools import partial

import trio

from proxy.auth.throttle import UNCOUNTED, Attempt
from proxy.backends.backend import Backend
from proxy.backends.last_failure import REACHING_STEPS
from proxy.backends.login import BackendSession
from proxy.ledger.session import Session
from proxy.model import AccountWanted, Credentials, Identity, Origin, Visitor
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
    session.name, session.source, session.stale = identity.name, identity.source, identity.stale
    if session.proxy_ttl < 1:
        raise Refused(Outcome.UNAVAILABLE, "proxies in a ring: x-proxy-ttl has run out")

    if house.tracing:
        house.tracing.note(identity.name, session.id, f"{session.mechanism}: known to {identity.source}")
    backend = await house.registrar.admit(session, identity)
    routed = clock()
    metrics.phase("route", routed - authenticated)
    logged_in: BackendSession | None = None
    try:
        logged_in = await _backend(backend, house).open(
            identity, credentials, partial(_visitor, session, identity, house)
        )
        # Those whom only the backend can tell count from here on: else strangers could take all the places of a user.
        house.registrar.confirm(session)
        if house.closer.withdrawn(session.id):
            raise Refused(Outcome.UNAVAILABLE, "has to live elsewhere since the login began")
    except BaseException as exc:
        if logged_in is not None:
            logged_in.stream.close()
        # Where the answer to LOGIN was not heard the backend may have let him in.
        unheard = not isinstance(exc, Refused) or (exc.silent and exc.step in ("id", "login"))
        house.registrar.release(session, opened=logged_in is not None or unheard)
        house.closer.forget(session.id)  # what was wanted of this try is no word on the connection's next one
        if isinstance(exc, Refused) and exc.step:
            _note_failure(exc, session, house, verified=identity.verified)
            if exc.outcome in _GUESSES and house.settings.backends.login.needs_no_secret:
                # It was our password that the backend refused: an outage, and not the user's to mend.
                raise Refused(
                    Outcome.UNAVAILABLE, f"the proxy's own credentials: {exc.detail}", step=exc.step
                ) from None
        raise
    now = clock()
    metrics.phase("connect", logged_in.connected_at - routed)
    metrics.phase("backend_login", now - logged_in.connected_at)
    metrics.backend_login(backend, now - routed)
    session.ends_at = _end(identity, house.settings.relay.expiry_grace)
    return logged_in


def _note_failure(refusal: Refused, session: Session, house: House, *, verified: bool) -> None:
    """Count a login that a backend did not let in, and tell placement where that is the backend's own fault."""
    house.metrics.backend_failed(session.backend, refusal.step)
    reached = refusal.step not in REACHING_STEPS
    if reached and not (refusal.silent and verified):
        # It was not asked (we are short of something, or too many wait); or it has looked at the login and said no. And
        # with what a backend does to a stranger, who may wait for the answer to a wrong password or be cut off, nobody
        # must be able to shut it for others.
        return
    house.registrar.failed(session, f"{refusal.step}: {refusal.detail}", reached=reached)


def _backend(name: str, house: House) -> Backend:
    try:
        return house.backends[name]
    except KeyError:  # DNS has taken it back since the login was let in
        raise Refused(Outcome.UNAVAILABLE, f"{name} is not there any more") from None


def _visitor(session: Session, identity: Identity, house: House) -> Visitor:
    """What the backend may be told."""
    attributes = identity.attributes
    forward = {name: attributes[name] for name in house.settings.backends.forward_attributes if name in attributes}
    return Visitor(
        session.client,
        session.local or session.client,
        session.id,
        session.tls,
        session.proxy_ttl,
        forward,
    )


def _end(identity: Identity, grace_seconds: float | None) -> float:
    """When the session has to end because of what was shown for the identity, on the monotonic clock."""
    if identity.expires_at is None or grace_seconds is None:
        return math.inf
    return time.monotonic() + identity.expires_at - time.time() + grace_seconds
