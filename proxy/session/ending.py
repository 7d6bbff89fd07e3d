"""What follows the login, and what follows the session: the relay, the accounts, the freed places."""

from __future__ import annotations

import time

from proxy.backends.login import BackendSession
from proxy.imap.commands import REFUSED_AFTER_LOGIN
from proxy.imap.observer import Observer
from proxy.ledger.session import Session
from proxy.observe.log import get_logger
from proxy.outcome import Outcome
from proxy.relay.metered import MeteredRelay
from proxy.relay.relay import Relay
from proxy.relay.splice import Splice
from proxy.session.house import House
from proxy.transport.stream import Stream

log = get_logger()

_REFUSED_WITH_COMPRESS = REFUSED_AFTER_LOGIN | {b"COMPRESS"}


def compresses(house: House, backend: BackendSession) -> bool:
    """Whether COMPRESS may be used: not where a client could hide UNAUTHENTICATE from us inside it (RFC 8437), or
    commands that are limited.
    """
    limits = house.settings.limits
    if house.settings.relay.compress == "refuse" or not backend.capability:
        return False
    if limits.commands_per_user is not None or limits.commands_per_session is not None:
        return False
    return b"UNAUTHENTICATE" not in map(bytes.upper, backend.capability)


def hand_over(client: Stream, backend: BackendSession, early: bytes, session: Session, house: House) -> None:
    """Hand both sides to the engine; from here on there is no task for this session."""
    refused = REFUSED_AFTER_LOGIN if compresses(house, backend) else _REFUSED_WITH_COMPRESS
    meter = house.meters.open(session.name)
    carried: Relay
    if meter is None:
        observer = Observer(house.tally, time.monotonic, refused=refused)
        carried = Relay(house.engine, session, client, backend.stream, observer, house.carriage)
    else:
        permits = meter.permits if meter.counts_commands else None
        observer = Observer(house.tally, time.monotonic, refused=refused, permits=permits)
        carried = MeteredRelay(house.engine, session, client, backend.stream, observer, house.carriage, meter)
    house.metrics.logged_in(session.backend)
    house.tracing.opened(carried, backend.trailing_data)
    try:
        carried.start(early, backend.trailing_data)
    except Exception:
        log.exception("session.failed", session_id=session.id)
        carried.fail()


def end_session(relay: Splice, outcome: Outcome, house: House) -> None:
    """An established session is over."""
    if not relay.session.parted:
        leave_backend(relay, house)
    house.metrics.closed_after_login(outcome)
    house.tracing.closed(relay, outcome)
    if "session" in house.happenings.wanted:
        session = relay.session
        values = {
            "id": session.id,
            "user": session.name,
            "client": str(session.client),
            "backend": session.backend,
            "outcome": outcome.value,
            "seconds": round(time.monotonic() - session.started, 3),
        }
        house.happenings.tell("session", "session.closed", values)
    settle(relay.session, house, outcome, relay.bytes_from_client, relay.bytes_from_backend)


def leave_backend(relay: Splice, house: House) -> None:
    """A session has no backend any more: its user may live elsewhere from now on, even while its client lingers."""
    relay.session.parted = True
    house.metrics.left_backend(relay.session.backend)
    house.registrar.release(relay.session, opened=True)


def settle(session: Session, house: House, outcome: Outcome, from_client: int, from_backend: int) -> None:
    """The one line of a session, and its place given back."""
    house.admission.release(session.admitted)
    log.info(
        "session.closed",
        session_id=session.id,
        outcome=outcome.value,
        listener=session.listener,
        client=str(session.client),
        via=session.via,
        secure=session.secure,
        mechanism=session.mechanism,
        authentication_identity=session.authentication_identity,
        authorization_identity=session.authorization_identity,
        name=session.name,
        source=session.source,
        stale=session.stale,
        backend=session.backend,
        epoch=session.epoch,
        login_seconds=session.login_seconds,
        session_seconds=time.monotonic() - session.started,
        bytes_from_client=from_client,
        bytes_from_backend=from_backend,
    )
