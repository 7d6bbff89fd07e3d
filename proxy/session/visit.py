"""The story of one connection: PROXY header, TLS, dialogue, identity, backend, and then the relay.

Every way out of the story passes `settle`, once: one log line, the metrics, the freed places.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

import trio

from proxy.backends.login import BackendSession
from proxy.imap.capability import after_login
from proxy.imap.events import ExchangeBrokenOff, Gone, LoggedOut, LoginOffered, ProtocolViolation, ServerEvent, StartTls
from proxy.imap.server import PreAuthDialogue
from proxy.ledger.session import Session
from proxy.limits.reached import reached
from proxy.model import Account, AccountWanted, Endpoint
from proxy.observe.log import get_logger
from proxy.outcome import FAREWELLS, Outcome
from proxy.session.arrival import believed
from proxy.session.ending import compresses, hand_over, settle
from proxy.session.house import House
from proxy.session.tries import Tries
from proxy.session.websocket import OpeningRefused, note_refused, open_websocket
from proxy.transport.door import Door
from proxy.transport.listen import plain_host
from proxy.transport.proxy_header import ProxyHeaderError
from proxy.transport.proxy_reading import read_proxy_header
from proxy.transport.stream import ConnectionLost, PlainStream, Stream
from proxy.transport.tls import TlsFailed, TlsStream, accept_tls

log = get_logger()

_GOODBYE_SECONDS = 2.0
# A client that sends without a pause is read so often before the others get their turn.
_READS_PER_TURN = 4


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """Both sides of a session that is logged in, and what the client said early."""

    client: Stream
    backend: BackendSession
    early: bytes


async def serve_websocket(sock: socket.socket, peer: Endpoint, door: Door, house: House) -> None:
    """As serve_client, at a door for WebSockets: returns when nothing is carried any more."""
    async with trio.open_nursery() as bridges:
        await serve_client(sock, peer, door, house, bridges)


async def serve_client(
    sock: socket.socket, peer: Endpoint, door: Door, house: House, bridges: trio.Nursery | None = None
) -> None:
    """Serve one accepted connection up to its login, then hand it to the relay engine.

    The place that `house.admission` gave is given back at the session's end, wherever that is. One boundary for bugs:
    whatever is raised in here ends this session only.

    Args:
        peer: The other end. Where it is to say who the client is, its place is counted by no address yet.
        bridges: Where WebSockets run, at a door for them.
    """
    session = Session(peer, door.name, admitted=None if door.learns_later(peer.host) else peer.host)
    house.metrics.opened(door.name)
    visit = Visit(session, door, house, PlainStream(sock), bridges)
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
        visit.close()
        if outcome is not Outcome.OK:
            visit.stream.close()
            house.metrics.closed_before_login(outcome)
            settle(session, house, outcome, 0, 0)


class Visit:
    """One connection before its login."""

    def __init__(
        self, session: Session, door: Door, house: House, stream: Stream, bridges: trio.Nursery | None
    ) -> None:
        self.session, self.door, self.house = session, door, house
        self.stream = stream  # closed by serve_client, or handed to the relay
        self._bridges = bridges
        self._carrier: Stream | None = None  # what the WebSocket runs over
        self._upgrades = False  # a WebSocket is being opened
        now, timeouts = trio.current_time(), house.settings.timeouts
        self._login_deadline = now + timeouts.login
        self._peer = session.client
        self._front: Endpoint | None = session.client  # who speaks here, so far as is known
        self._arrived: tuple[Endpoint | None, str] | None = None  # before an ID was believed
        self._header_awaited = door.expects_header(self._peer.host)
        # Around all of run(). One scope whose deadline moves: scopes, and moving them, are a cost of every login.
        self._shaking_hands = door.tls == "implicit"
        self._tries = Tries(session, house)
        self._drained = False
        self._queues = False  # for its turn to shake hands
        self._reads = 0
        self._sending = False  # while a send is under way; still True: it was interrupted
        greets = not (self._shaking_hands or self._header_awaited or bridges is not None)
        first = timeouts.login if greets else min(timeouts.login, timeouts.handshake)
        self.scope = trio.CancelScope(deadline=now + first)

    def close(self) -> None:
        """Give back what the visit holds, but for the stream, which may be the relay's by now."""
        self._tries.close()

    async def run(self) -> Outcome:
        """The way to the relay (OK) or to the door (anything else)."""
        try:
            if self._header_awaited and (limit := await self._read_header()):
                return self._refused(limit)
            if self.door.tls == "implicit" and not await self._start_tls():
                return Outcome.UNAVAILABLE
            if self._bridges is not None and (limit := await self._open_websocket(self._bridges)):
                return self._refused(limit)
            logged_in = await self._log_in()
        except ProxyHeaderError as exc:
            return self._header_failed(str(exc))
        except TlsFailed as exc:
            return self._tls_failed(exc.reason, str(exc))
        except OpeningRefused as exc:
            return self._opening_refused(exc.reason, str(exc))
        except ConnectionLost:
            return Outcome.CLIENT_CLOSED
        if isinstance(logged_in, Outcome):
            return logged_in
        hand_over(logged_in.client, logged_in.backend, logged_in.early, self.session, self.house)
        return Outcome.OK

    def drain(self) -> None:
        """The service is going down: end here, unless a login is under way; a handshake is finished, to say so."""
        if not self._tries.under_way:
            self._drained = True
            if not self._shaking_hands:
                self.scope.cancel()

    def overdue(self) -> Outcome:
        """run() was cut short by its scope: why?"""
        if self._drained:
            return Outcome.DRAINED
        if self._header_awaited:
            return self._header_failed("no PROXY header came in time")
        if self._queues:
            reached("handshakes_at_once", client=self.session.client.host)
            return Outcome.UNAVAILABLE
        if self._upgrades:
            return self._opening_refused("timeout", "handshake not finished in time")
        if self._shaking_hands:
            return self._tls_failed("timeout", "handshake not finished in time")
        return Outcome.LOGIN_TIMEOUT

    async def _read_header(self) -> str | None:
        """Learn who the client is. Gives the limit that it has reached, if it has."""
        session = self.session
        header = await read_proxy_header(self.stream.socket)
        self._header_awaited = False
        if self.door.tls != "implicit":
            self.scope.deadline = self._login_deadline
        if header.client is not None:
            session.client, session.local, session.via = header.client, header.local, str(self._peer)
        self._front = header.client
        session.tls = header.tls
        return None if self.door.believes_forwarded(session.client.host) else self._identify()

    def _identify(self) -> str | None:
        """It is known who the client is. Gives the limit that it has reached, if it has."""
        session = self.session
        limit = self.house.admission.identify(session.client.host)
        if limit is None:
            session.admitted = session.client.host
        return limit

    def _refused(self, limit: str) -> Outcome:
        """There may be no more connections from this client's address."""
        session = self.session
        self.house.metrics.refused(limit)
        value = getattr(self.house.settings.limits, limit, None)
        log.info(
            "connection.refused",
            client=str(session.client),
            via=session.via,
            listener=session.listener,
            limit=limit,
            value=value,
        )
        return Outcome.LIMIT

    def _header_failed(self, detail: str) -> Outcome:
        """Who should have said who the client is has not."""
        self._shaking_hands = True  # nothing can be said: TLS may be expected
        log.warning("proxy_header.refused", peer=str(self._peer), listener=self.session.listener, detail=detail)
        self.house.metrics.refused("proxy_header")
        return Outcome.PROTOCOL_VIOLATION

    async def _start_tls(self) -> bool:
        """Handshake within `timeouts.handshake`, when it is its turn. False: that took too long.

        The handshake is done then all the same: there is no other way to tell the client.
        """
        handshakes, patience = self.house.handshakes, self.house.settings.timeouts.handshake
        began = trio.current_time()
        in_time = True
        if not self._shaking_hands:  # STARTTLS
            self._shaking_hands = True
            self.scope.deadline = min(self._login_deadline, began + patience)
        if not handshakes.try_enter():
            self.scope.deadline = self._login_deadline
            self._queues = True
            await handshakes.enter()
            self._queues = False
            turn = trio.current_time()
            in_time = turn - began <= patience
            self.scope.deadline = turn + patience
        try:
            self.stream = await accept_tls(
                self.stream.socket,
                self.door.context(),
                speaks_first=self.door.tls == "implicit" and self._bridges is None,
                before_work=self.house.engine.turn,
            )
        finally:
            handshakes.leave()
        self._shaking_hands, self.session.secure = False, True
        if self._drained:
            self.scope.cancel()
        if self.house.introduces and isinstance(self.stream, TlsStream):
            self.session.tls = self.stream.facts()
        self.scope.deadline = self._login_deadline
        self.house.metrics.phase("tls", trio.current_time() - began)
        if not in_time:
            reached("handshakes_at_once", client=self.session.client.host)
        return in_time

    def _tls_failed(self, reason: str, detail: str) -> Outcome:
        self.house.metrics.tls_failed(reason)
        log.info("tls.failed", session_id=self.session.id, client=str(self.session.client), detail=detail)
        return Outcome.TLS_FAILED

    async def _open_websocket(self, bridges: trio.Nursery) -> str | None:
        """A session like any other from here on. Gives the limit that the client has reached, if it has."""
        self._shaking_hands = self._upgrades = True
        self.scope.deadline = min(self._login_deadline, trio.current_time() + self.house.settings.timeouts.handshake)
        if self.house.introduces:
            self._note_arrival()
        opened = await open_websocket(self.stream, self._front, self.session, self.door, self._identify)
        if isinstance(opened, str):
            return opened
        self._front, self._carrier, self.stream = opened.front, self.stream, opened.stream
        bridges.start_soon(opened.bridge.run)
        self._shaking_hands = self._upgrades = False
        if self._drained:
            self.scope.cancel()
        self.scope.deadline = self._login_deadline
        return None

    def _opening_refused(self, reason: str, detail: str) -> Outcome:
        note_refused(self.session, reason, detail)
        return Outcome.PROTOCOL_VIOLATION

    async def _log_in(self) -> LoggedIn | Outcome:
        """The dialogue until a login succeeds (LoggedIn) or the connection has to end (an Outcome)."""
        if self.house.introduces:
            self._note_arrival()
        dialogue = PreAuthDialogue(
            secure=self.session.secure or self.door.trusted,
            starttls=self.door.tls == "starttls",
            mechanisms=self.house.mechanisms.offered(self._carrier or self.stream, self.door),
            login=self.house.mechanisms.login,
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
                    if not await self._start_tls():
                        return Outcome.UNAVAILABLE
                    dialogue = dialogue.after_tls(self.house.mechanisms.offered(self.stream, self.door))
                case AccountWanted():
                    self._take_id(dialogue)
                    account = await self._tries.look_up(event)
                    if isinstance(account, Account):
                        dialogue.supply(account)
                    elif await self._reject(dialogue, account):
                        return Outcome.TRY_LIMIT
                case ExchangeBrokenOff():
                    await self._tries.broken_off()
                    if self._tries.used_up:
                        return Outcome.TRY_LIMIT
                case LoginOffered():
                    self._take_id(dialogue)
                    backend = await self._tries.offer(event.credentials)
                    if isinstance(backend, BackendSession):
                        return await self._accept(dialogue, backend)
                    if await self._reject(dialogue, backend):
                        return Outcome.TRY_LIMIT
                case LoggedOut():
                    return Outcome.LOGGED_OUT
                case Gone():
                    return Outcome.CLIENT_CLOSED

    def _note_arrival(self) -> None:
        """What backends are told of the connection, besides whose it is."""
        session = self.session
        if session.local is None:
            host, port, *_ = self.stream.socket.getsockname()
            session.local = Endpoint(plain_host(host), port)

    def _take_id(self, dialogue: PreAuthDialogue) -> None:
        """What the client's ID says of where it came from, so far as it is believed."""
        session, front = self.session, self._front
        if self._arrived is not None and front is not None:  # the last ID counts, and no other
            session.client, session.local, session.via = front, *self._arrived
        if not dialogue.client_id:
            return
        arrival = believed(dialogue.client_id, front or self._peer, session.local or front or self._peer)
        # That there are proxies in a ring may be said by everybody: whom it is untrue of harms himself alone.
        session.proxy_ttl = arrival.proxy_ttl
        # Behind a balancer it is not the balancer who speaks here, even where it does not say who does.
        if front is not None and self.door.believes_id(front.host):
            self._arrived = self._arrived or (session.local, session.via)
            if arrival.client != front:
                session.client, session.local, session.via = arrival.client, arrival.local, str(front)

    async def _next_event(self, dialogue: PreAuthDialogue) -> ServerEvent:
        """The dialogue's next event: sends what is due, reads until there is one."""
        while True:
            self.house.engine.turn()
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
        try:
            capability = after_login(backend.capability, compress=compresses(self.house, backend))
            dialogue.accept(capability, backend.notes)
            await self._send(dialogue.data_to_send())
        except BaseException:
            backend.stream.close()
            self.house.registrar.release(self.session, opened=True)
            raise
        return LoggedIn(self.stream, backend, dialogue.trailing_data)

    async def _reject(self, dialogue: PreAuthDialogue, outcome: Outcome) -> bool:
        """Tell the client; gives whether it has used up its tries."""
        dialogue.reject(outcome, last=self._tries.used_up)
        if self._tries.used_up:
            await self._send(dialogue.data_to_send())
        return self._tries.used_up

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
