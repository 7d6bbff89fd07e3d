"""The story of one connection: TLS, dialogue, identity, backend, and then the relay.

Every way out of the story passes `_account`, once: one log line, the metrics, the freed places.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import trio

from proxy.auth.authenticator import Authenticator
from proxy.backends.login import BackendSession
from proxy.backends.pool import Pool
from proxy.imap.capability import after_login
from proxy.imap.commands import REFUSED_AFTER_LOGIN
from proxy.imap.events import Gone, LoggedOut, LoginOffered, ProtocolViolation, ServerEvent, StartTls
from proxy.imap.observer import Observer
from proxy.imap.server import PreAuthDialogue
from proxy.ledger.host import Ledger
from proxy.ledger.session import Session
from proxy.limits.admission import Admission
from proxy.model import Credentials, Endpoint, Mechanism
from proxy.observe.log import get_logger
from proxy.observe.tally import Tally
from proxy.outcome import FAREWELLS, Outcome, Refused
from proxy.relay.engine import Engine
from proxy.relay.relay import Relay
from proxy.relay.splice import Carriage, Splice
from proxy.routing.router import Router
from proxy.session_metrics import SessionMetrics
from proxy.settings.models import Settings
from proxy.transport.door import Door
from proxy.transport.stream import ConnectionLost, PlainStream, Stream
from proxy.transport.tls import TlsFailed, accept_tls

log = get_logger()

# A failed login is answered after the configured delay times the number of failures so far, at most this.
_LONGEST_DELAY_SECONDS = 15.0
_GOODBYE_SECONDS = 2.0
_REFUSED_WITH_COMPRESS = REFUSED_AFTER_LOGIN | {b"COMPRESS"}
# The first refusal for any other reason is told at once; who asks on and on is slowed down, a backend that starts again
# has enough to do, and sent away.
_OUTAGE_DELAY_SECONDS = 0.1
_MOST_REFUSALS = 20
# A client that sends without a pause is read so often before the others get their turn.
_READS_PER_TURN = 4
# Answers that a client earned by what it offered: they count as tries.
_FAILED_TRIES = frozenset({Outcome.AUTHENTICATION_FAILED, Outcome.AUTHORIZATION_FAILED, Outcome.EXPIRED})


@dataclass(frozen=True, slots=True)
class House:
    """The rooms that a session walks through; `app` furnishes them."""

    settings: Settings
    admission: Admission
    authenticator: Authenticator
    mechanisms: Mapping[str, Callable[[], Mechanism]]
    router: Router
    backends: Pool
    ledger: Ledger
    engine: Engine
    carriage: Carriage
    tally: Tally
    metrics: SessionMetrics
    visits: set[Visit] = field(default_factory=set)  # connections before their login


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """Both sides of a session that is logged in, and what the client said early."""

    client: Stream
    backend: BackendSession
    early: bytes


async def serve_client(sock: socket.socket, client: Endpoint, door: Door, house: House) -> None:
    """Serve one accepted connection up to its login, then hand it to the relay engine.

    The place that `house.admission` gave is given back at the session's end, wherever that is. One boundary for bugs:
    whatever is raised in here ends this session only.
    """
    session = Session(client, door.name)
    house.metrics.opened(door.name)
    visit = Visit(session, door, house, PlainStream(sock))
    house.visits.add(visit)
    outcome = Outcome.SERVER_BUG
    try:
        with visit.scope:
            outcome = await visit.run()
        if visit.scope.cancelled_caught:
            outcome = visit.overdue()
        if outcome is not Outcome.OK:
            await visit.say_goodbye(outcome)
    except trio.Cancelled:
        outcome = Outcome.DRAINED
        await visit.say_goodbye(outcome)
        raise
    except Exception:
        log.exception("session.failed", session_id=session.id)
        await visit.say_goodbye(outcome)
    finally:
        house.visits.discard(visit)
        if outcome is not Outcome.OK:
            visit.stream.close()
            house.metrics.closed_before_login(outcome)
            _account(session, house, outcome, 0, 0)


class Visit:
    """One connection before its login."""

    def __init__(self, session: Session, door: Door, house: House, stream: Stream) -> None:
        self.session, self.door, self.house = session, door, house
        self.stream = stream  # closed by serve_client, or handed to the relay
        now, timeouts = trio.current_time(), house.settings.timeouts
        self._login_deadline = now + timeouts.login
        # Around all of run(). One scope whose deadline moves: scopes, and moving them, are a cost of every login.
        self._shaking_hands = door.tls == "implicit"
        self._offering = self._drained = False
        self._refusals = self._reads = 0
        self._sending = False  # while a send is under way; still True: it was interrupted
        first = min(timeouts.login, timeouts.handshake) if self._shaking_hands else timeouts.login
        self.scope = trio.CancelScope(deadline=now + first)

    async def run(self) -> Outcome:
        """The way to the relay (OK) or to the door (anything else)."""
        try:
            if self.door.tls == "implicit":
                await self._start_tls()
            logged_in = await self._log_in()
        except TlsFailed as exc:
            return self._tls_failed(exc.reason, str(exc))
        except ConnectionLost:
            return Outcome.CLIENT_CLOSED
        if isinstance(logged_in, Outcome):
            return logged_in
        _relay(logged_in, self.session, self.house)
        return Outcome.OK

    def drain(self) -> None:
        """The service is going down: end here, unless a login is under way."""
        if not self._offering:
            self._drained = True
            self.scope.cancel()

    def overdue(self) -> Outcome:
        """run() was cut short by its scope: why?"""
        if self._drained:
            return Outcome.DRAINED
        if self._shaking_hands:
            return self._tls_failed("timeout", "handshake not finished in time")
        return Outcome.LOGIN_TIMEOUT

    async def _start_tls(self) -> None:
        """Handshake within `timeouts.handshake`."""
        began = trio.current_time()
        if not self._shaking_hands:  # STARTTLS
            self._shaking_hands = True
            self.scope.deadline = min(self._login_deadline, began + self.house.settings.timeouts.handshake)
        self.stream = await accept_tls(
            self.stream.socket, self.door.context(), speaks_first=self.door.tls == "implicit"
        )
        self._shaking_hands, self.session.secure = False, True
        self.scope.deadline = self._login_deadline
        self.house.metrics.phase("tls", trio.current_time() - began)

    def _tls_failed(self, reason: str, detail: str) -> Outcome:
        self.house.metrics.tls_failed(reason)
        log.info("tls.failed", session_id=self.session.id, client=str(self.session.client), detail=detail)
        return Outcome.TLS_FAILED

    async def _log_in(self) -> LoggedIn | Outcome:
        """The dialogue until a login succeeds (LoggedIn) or the connection has to end (an Outcome)."""
        dialogue = PreAuthDialogue(
            secure=self.session.secure or self.door.trusted,
            starttls=self.door.tls == "starttls",
            mechanisms=self.house.mechanisms,
        )
        while True:
            try:
                event = await self._next_event(dialogue)
            except ProtocolViolation:
                await self._send(dialogue.data_to_send())
                return Outcome.PROTOCOL_VIOLATION
            match event:
                case StartTls():
                    if dialogue.trailing_data:  # RFC 9051 §6.2.1: commands behind STARTTLS are somebody else's
                        return Outcome.PROTOCOL_VIOLATION
                    await self._start_tls()
                    dialogue = dialogue.after_tls()
                case LoginOffered():
                    self._offering = True
                    backend = await self._offer(event.credentials)
                    if isinstance(backend, BackendSession):
                        return await self._accept(dialogue, backend)
                    self._offering = False
                    dialogue.reject(backend)
                    tries = self.house.settings.limits.login_tries
                    if self.session.failures >= tries or self._refusals >= _MOST_REFUSALS:
                        await self._send(dialogue.data_to_send())
                        return Outcome.TRY_LIMIT
                case LoggedOut():
                    return Outcome.LOGGED_OUT
                case Gone():
                    return Outcome.CLIENT_CLOSED

    async def _next_event(self, dialogue: PreAuthDialogue) -> ServerEvent:
        """The dialogue's next event: sends what is due, reads until there is one."""
        while True:
            event = dialogue.next_event()
            if data := dialogue.data_to_send():
                await self._send(data)
            if event is not None:
                return event
            # What has come already is read without waiting: whoever talks on and on gives the others their turn.
            self._reads += 1
            if not self._reads % _READS_PER_TURN:
                await trio.lowlevel.checkpoint()
            dialogue.receive_data(await self.stream.receive())

    async def _send(self, data: bytes) -> None:
        self._sending = True
        await self.stream.send(data)
        self._sending = False

    async def _accept(self, dialogue: PreAuthDialogue, backend: BackendSession) -> LoggedIn:
        """Tell the client that it is logged in. If that fails nothing of the backend's session may stay behind."""
        capability = after_login(backend.capability, compress=_compress(self.house, backend))
        dialogue.accept(capability, backend.notes)
        try:
            await self._send(dialogue.data_to_send())
        except BaseException:
            backend.stream.close()
            self.house.ledger.release(self.session)
            raise
        return LoggedIn(self.stream, backend, dialogue.trailing_data)

    async def _offer(self, credentials: Credentials) -> BackendSession | Outcome:
        """One try to log in, accounted for: log line, metric, delay."""
        session, house = self.session, self.house
        session.mechanism = credentials.mechanism
        session.authentication_identity = credentials.authentication_identity
        session.authorization_identity = credentials.authorization_identity
        session.name = session.backend = ""
        began = trio.current_time()
        outcome = Outcome.SERVER_BUG
        try:
            backend = await _log_in_at_backend(credentials, session, house)
        except Refused as refusal:
            outcome = refusal.outcome
            self._log_refusal(refusal)
        except trio.Cancelled:
            outcome = Outcome.CANCELLED
            raise
        else:
            outcome = Outcome.OK
            session.login_seconds = trio.current_time() - began
            house.metrics.phase("total", session.login_seconds)
            return backend
        finally:
            house.metrics.attempt(credentials.mechanism, outcome)
        self._refusals += 1
        if outcome in _FAILED_TRIES:
            session.failures += 1
            delay = house.settings.limits.failed_login_delay * session.failures
        else:
            delay = _OUTAGE_DELAY_SECONDS * (self._refusals - 1)
        # From the beginning of the try, so that the time it took tells nothing about the name.
        await trio.sleep_until(began + min(delay, _LONGEST_DELAY_SECONDS))
        return outcome

    def _log_refusal(self, refusal: Refused) -> None:
        session = self.session
        log.info(
            "login.refused",
            session_id=session.id,
            client=str(session.client),
            mechanism=session.mechanism,
            authentication_identity=session.authentication_identity,
            authorization_identity=session.authorization_identity,
            outcome=refusal.outcome.value,
            backend=session.backend,
            step=refusal.step,
            detail=refusal.detail,
        )

    async def say_goodbye(self, outcome: Outcome) -> None:
        """BYE where the stream can carry it, and a moment for it to arrive: short, and never interrupted."""
        with trio.move_on_after(_GOODBYE_SECONDS, shield=True):
            try:
                if outcome in (Outcome.CLIENT_CLOSED, Outcome.TLS_FAILED):
                    return
                # Nothing may be put into a handshake, or behind a part of something. Where the client broke the
                # dialogue's rules, or logged out, the dialogue has taken leave by itself.
                if self._shaking_hands or self._sending:
                    return
                if outcome not in (Outcome.PROTOCOL_VIOLATION, Outcome.LOGGED_OUT):
                    await self.stream.send(FAREWELLS[outcome])
                # Closing with unread octets resets the connection, and a reset may overtake the BYE: read on a little.
                self.stream.end_sending()
                for _ in range(16):
                    if not await self.stream.receive():
                        return
            except ConnectionLost:
                return
            except Exception:  # raised from here it would end more than this session
                log.exception("session.failed", session_id=self.session.id)


async def _log_in_at_backend(credentials: Credentials, session: Session, house: House) -> BackendSession:
    """Who is it, where does he live, and is he let in there.

    Raises:
        Refused: By an identity source, a limit or the backend. The session's place in the ledger is given back.
    """
    clock, metrics = trio.current_time, house.metrics
    began = clock()
    identity = await house.authenticator.authenticate(credentials)
    authenticated = clock()
    choice = house.router.route(identity)
    routed = clock()
    metrics.phase("auth", authenticated - began)
    metrics.phase("route", routed - authenticated)
    session.name, session.backend = identity.name, choice.backend
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
        raise
    metrics.phase("connect", logged_in.connected_at - routed)
    metrics.phase("backend_login", clock() - logged_in.connected_at)
    metrics.backend_answered(choice.backend)
    return logged_in


def _compress(house: House, backend: BackendSession) -> bool:
    """Whether COMPRESS may be used: not where a client could hide UNAUTHENTICATE from us inside it (RFC 8437)."""
    if house.settings.relay.compress == "refuse" or not backend.capability:
        return False
    return b"UNAUTHENTICATE" not in map(bytes.upper, backend.capability)


def _relay(logged_in: LoggedIn, session: Session, house: House) -> None:
    """Hand both sides to the engine; from here on there is no task for this session."""
    refused = REFUSED_AFTER_LOGIN if _compress(house, logged_in.backend) else _REFUSED_WITH_COMPRESS
    observer = Observer(house.tally, time.monotonic, refused=refused)
    relay = Relay(house.engine, session, logged_in.client, logged_in.backend.stream, observer, house.carriage)
    house.metrics.logged_in(session.backend)
    try:
        relay.start(logged_in.early, logged_in.backend.trailing_data)
    except Exception:
        log.exception("session.failed", session_id=session.id)
        relay.fail()


def end_session(relay: Splice, outcome: Outcome, house: House) -> None:
    """An established session is over."""
    house.metrics.closed_after_login(relay.session.backend, outcome)
    house.ledger.release(relay.session)
    _account(relay.session, house, outcome, relay.bytes_from_client, relay.bytes_from_backend)


def _account(session: Session, house: House, outcome: Outcome, from_client: int, from_backend: int) -> None:
    """The one line of a session, and its place given back."""
    house.admission.release(session.client.host)
    log.info(
        "session.closed",
        session_id=session.id,
        outcome=outcome.value,
        listener=session.listener,
        client=str(session.client),
        secure=session.secure,
        mechanism=session.mechanism,
        authentication_identity=session.authentication_identity,
        authorization_identity=session.authorization_identity,
        name=session.name,
        backend=session.backend,
        login_seconds=session.login_seconds,
        session_seconds=time.monotonic() - session.started,
        bytes_from_client=from_client,
        bytes_from_backend=from_backend,
    )
